# `make quickstart` and `make test` each do everything from a bare clone.
# Targets are files, so a second run reuses what is there. Works with GNU make 3.81 (macOS) and newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

EMOJI := data/emoji
TOKENIZER := data/emoji_tokenizer
RUN := runs/emoji
PORT := 8000

.PHONY: help install quickstart demo test lint clean
.DELETE_ON_ERROR:

help:
	@echo "make install      a Python environment in $(VENV) with cclm in it"
	@echo "make quickstart   train, evaluate and search on emoji in 20 languages (10 minutes on two cores)"
	@echo "make demo         search quickstart's pictures in a browser (PORT=8000 sets its port)"
	@echo "make test         lint and tests (22 minutes on two slow cores)"
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
quickstart: $(RUN)/untrained.json $(RUN)/index/manifest.json
	$(BIN)/cclm evaluate retrieval --model $(RUN)/pretrained --data $(EMOJI)/test \
		--output $(RUN)/report.json --baseline $(RUN)/untrained.json
	$(BIN)/cclm search $(RUN)/index "heart" -k 5
	$(BIN)/cclm search $(RUN)/index "Herz" -k 5
	$(BIN)/cclm search $(RUN)/index "ハート" -k 5
	@echo
	@echo "What next:"
	@echo "  $(BIN)/cclm search $(RUN)/index 'зонт'      # any of the 20 languages, or the path of a picture"
	@echo "  $(BIN)/cclm evaluate retrieval --model $(RUN)/pretrained --data $(EMOJI)/test --rerank 16 --output $(RUN)/reranked.json"
	@echo "  $(BIN)/cclm fit --config configs/pretrain/emoji_full.yaml      # an hour on two cores"
	@echo "  $(BIN)/cclm data build folder --source YOUR_PICTURES --output data/yours"

$(EMOJI)/train/manifest.json: | $(INSTALLED)
	@echo "fetching and drawing 7,000 emoji: about a minute"
	$(BIN)/cclm data build emoji --source data/emoji_packages --output $(EMOJI)

$(TOKENIZER)/tokenizer.json: | $(EMOJI)/train/manifest.json
	$(BIN)/cclm data tokenizer --data '[$(EMOJI)/names]' --output $(TOKENIZER) --lowercase true

# Writes runs/emoji/untrained before the first step and runs/emoji/pretrained after the last.
$(RUN)/pretrained/config.json: | $(TOKENIZER)/tokenizer.json
	$(BIN)/cclm fit --config configs/pretrain/emoji.yaml

$(RUN)/untrained.json: | $(RUN)/pretrained/config.json
	$(BIN)/cclm evaluate retrieval --model $(RUN)/untrained --data $(EMOJI)/test --output $@

$(RUN)/index/manifest.json: | $(RUN)/pretrained/config.json
	$(BIN)/cclm index build --model $(RUN)/pretrained --source $(EMOJI)/test --output $(RUN)/index

# The pictures that quickstart searches, and a page to do it in; Ctrl-C ends it.
demo: $(RUN)/index/manifest.json
	$(BIN)/cclm serve $(RUN)/index --port $(PORT) --open

test: lint
	$(BIN)/python -m pytest

lint: | $(INSTALLED)
	$(BIN)/ruff check .

clean:
	rm -rf $(RUN) $(EMOJI) $(TOKENIZER)
