# `make quickstart` and `make test` each do everything from a bare clone.
# Targets are files, so a second run reuses what is there. Works with GNU make 3.81 (macOS) and newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

EMOJI := data/emoji
TOKENIZER := data/emoji_tokenizer
TRAINED := runs/emoji
UNTRAINED := runs/emoji_untrained

.PHONY: help install quickstart test lint clean
.DELETE_ON_ERROR:

help:
	@echo "make install      a Python environment in $(VENV) with cclm in it"
	@echo "make quickstart   train, evaluate and search on emoji in 20 languages (10 minutes on two cores)"
	@echo "make test         lint and tests (at most 10 minutes on two cores)"
	@echo "make lint         ruff alone"
	@echo "make clean        remove what quickstart made, but for the environment and the packages it fetched"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cclm needs Python 3.11 or newer and \
	$(PYTHON) is $$($(PYTHON) --version 2>&1): run make PYTHON=python3.12, or whatever your newer one is called" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,quickstart]'
	@touch $@

# Prerequisites after `|` must exist but may be newer: an edited configuration or a fresh environment does not silently
# train anew what is there. `make clean` does.
quickstart: $(TRAINED)/pretrained/config.json $(UNTRAINED)/report.json $(TRAINED)/index/config.json
	$(BIN)/cclm evaluate retrieval --model $(TRAINED)/pretrained --data $(EMOJI)/test \
		--output $(TRAINED)/report.json --baseline $(UNTRAINED)/report.json
	$(BIN)/cclm search $(TRAINED)/index "dog" -k 5
	$(BIN)/cclm search $(TRAINED)/index "Hund" -k 5
	$(BIN)/cclm search $(TRAINED)/index "犬" -k 5
	@echo
	@echo "What next:"
	@echo "  $(BIN)/cclm search $(TRAINED)/index 'зонт'      # any of the 20 languages, or the path of a picture"
	@echo "  $(BIN)/cclm evaluate retrieval --model $(TRAINED)/pretrained --data $(EMOJI)/test --rerank 16 --output $(TRAINED)/reranked.json"
	@echo "  $(BIN)/cclm fit --config configs/pretrain/emoji_full.yaml      # an hour on two cores, minutes on a GPU"
	@echo "  $(BIN)/cclm data build folder --source YOUR_PICTURES --output data/yours"

$(EMOJI)/train/manifest.json: | $(INSTALLED)
	@echo "fetching and drawing 7,000 emoji: about a minute"
	$(BIN)/cclm data build emoji --source data/emoji_packages --output $(EMOJI)

$(TOKENIZER)/tokenizer.json: | $(EMOJI)/train/manifest.json
	$(BIN)/cclm data tokenizer --data '[$(EMOJI)/names]' --output $(TOKENIZER) --lowercase true

$(TRAINED)/pretrained/config.json: | $(TOKENIZER)/tokenizer.json
	$(BIN)/cclm fit --config configs/pretrain/emoji.yaml

$(UNTRAINED)/pretrained/config.json: | $(TOKENIZER)/tokenizer.json
	$(BIN)/cclm fit --config configs/pretrain/emoji.yaml --trainer.max_steps 0 --trainer.default_root_dir $(UNTRAINED)

$(UNTRAINED)/report.json: | $(UNTRAINED)/pretrained/config.json
	$(BIN)/cclm evaluate retrieval --model $(UNTRAINED)/pretrained --data $(EMOJI)/test --output $@

$(TRAINED)/index/config.json: | $(TRAINED)/pretrained/config.json
	$(BIN)/cclm index build --model $(TRAINED)/pretrained --data $(EMOJI)/test --output $(TRAINED)/index

test: lint
	$(BIN)/python -m pytest

lint: | $(INSTALLED)
	$(BIN)/ruff check .

clean:
	rm -rf $(TRAINED) $(UNTRAINED) $(EMOJI) $(TOKENIZER)
