"""A tiny model that has learned nothing, with a tokenizer of the benchmarks' own words, and what makes runs tiny."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from cclm.data.tokenizer import train_tokenizer
from cclm.evaluation.task import DataFolder, find
from cclm.models.model import CCLMConfig, CCLMModel
from cclm.models.processor import CCLMProcessor, ImageSettings, load_tokenizer

SIZE, TOKENS = 32, 24
READ = (("xvnli", "train_48", "en ar"), ("xgqa", "train_10", "en"), ("xflickrco", "train_100", "de ja"))
CHANGES = {
    "processor": {
        "max_tokens": TOKENS,
        "image": {"image_size": SIZE, "crop_scale": [1.0, 1.0], "flip": 0.0, "augment": False},
    },
    "trainer": {"enable_progress_bar": False, "enable_model_summary": False, "check_val_every_n_epoch": 5},
    "model": {"optimizer": {"lr": 1e-3}},
    "data": {"loader": {"workers": 0}},
}


def start_model(bundle: Path, folder: Path) -> Path:
    """A pretrained folder with a matching head and embeddings."""
    data = DataFolder(bundle)
    texts = [
        item.text
        for name, split, languages in READ
        for language in languages.split()
        for item in find(name).items(data, language, split)
    ]
    train_tokenizer(texts, folder / "tokenizer", 1500)
    processor = CCLMProcessor(load_tokenizer(str(folder / "tokenizer")), ImageSettings(image_size=SIZE), TOKENS)
    torch.manual_seed(0)
    config = CCLMConfig(
        vocab_size=processor.vocab_size,
        backbone="test_resnet",
        image_size=SIZE,
        hidden_size=32,
        text_layers=1,
        fusion_layers=1,
        num_heads=2,
        intermediate_size=64,
        embedding_size=16,
        max_positions=40,
        pre_norm=True,
        pooling="mean",
        heads=["match"],
    )
    CCLMModel(config).save_pretrained(folder / "start")
    processor.save_pretrained(folder / "start")
    return folder / "start"


def changes(folder: Path) -> Path:
    """As a file for --config."""
    path = folder / "changes.yaml"
    path.write_text(yaml.safe_dump(CHANGES))
    return path
