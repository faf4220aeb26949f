"""Tiny random models of other makes, saved as their libraries save them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

WIDTH = 16
SIZE = 32  # pixels
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 16,
}
TEXT = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def tokenizer(texts: list[str], tokens: int, closing: bool = True) -> PreTrainedTokenizerFast:
    """Pieces of words, `<s> text </s>`; upper case is kept apart from lower."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<s>", "<pad>", "<unk>", "</s>"]
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    if closing:
        ends = [(name, made.token_to_id(name)) for name in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=tokens, **names)


def clip(folder: Path, texts: list[str]) -> Path:
    torch.manual_seed(0)
    words = tokenizer(texts, 24)
    text = TEXT | {
        "vocab_size": len(words),
        "max_position_embeddings": 24,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    CLIPProcessor(CLIPImageProcessor(**sizes), words).save_pretrained(folder)
    return folder


def siglip(folder: Path, texts: list[str]) -> Path:
    torch.manual_seed(1)
    words = tokenizer(texts, 64)
    text = TEXT | {"vocab_size": len(words), "max_position_embeddings": 64, "projection_size": WIDTH}
    SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).save_pretrained(folder)
    SiglipProcessor(SiglipImageProcessor(size={"height": SIZE, "width": SIZE}), words).save_pretrained(folder)
    return folder


def sentence_encoder(folder: Path, texts: list[str]) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(2)
    words = tokenizer(texts, 24)
    config = BertConfig(vocab_size=len(words), max_position_embeddings=24, pad_token_id=words.pad_token_id, **TEXT)
    BertModel(config).save_pretrained(folder / "encoder")
    words.save_pretrained(folder / "encoder")
    encoder = Transformer(str(folder / "encoder"))
    SentenceTransformer(modules=[encoder, Pooling(WIDTH)]).save(str(folder / "whole"))
    return folder / "whole"
