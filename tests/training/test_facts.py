"""The card of a run says what the run was: data, recipe, last validation, licence."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

from cclm.training.facts import CONFIG_OF_RUN
from tests.training.conftest import Run


def test_the_card_of_a_run(fit: Run, data: Path, tmp_path: Path) -> None:
    export = {"folder": str(tmp_path / "model"), "initial": str(tmp_path / "first"), "licence": "cc-by-4.0"}
    folder = fit(
        trainer__callbacks=[{"class_path": "cclm.training.callbacks.Export", "init_args": export}],
        trainer__val_check_interval=4,
        trainer__check_val_every_n_epoch=None,
        trainer__limit_val_batches=1,
        data__validation={"own": {"shards": str(data / "photos"), "languages": ["en", "de"]}},
    )
    card = ModelCard.load(folder / "model" / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.language == ["de", "en", "fr"]
    assert f"| image | `{data / 'photos'}` | 64 | " in card.text and f"| text | `{data / 'texts'}` | 60 | " in card.text
    assert "| contrastive, masked_lm, matching | 8 |" in card.text
    assert "| updates | 4 of 4 |" in card.text and "rate 0.001," in card.text and "2 steps of warm-up" in card.text
    assert "| own | de | image → text |" in card.text
    place = next(line for line in card.text.splitlines() if line.startswith("| whole configuration")).split("`")[1]
    assert (folder / "model" / place).name == CONFIG_OF_RUN and (folder / "model" / place).is_file()
    first = ModelCard.load(folder / "first" / "README.md").text
    assert "nothing learned yet" in first and "Last validation" not in first
    assert "SentenceTransformer" in card.text and not list((folder / "model").glob(".*"))
