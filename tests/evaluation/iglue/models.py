"""Tiny random models of other makes, saved as their libraries save them."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPProcessor,
    BertConfig,
    BertModel,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessor,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MetaClip2Config,
    MetaClip2Model,
    NllbTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
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


def dual_encoder(family: str, folder: Path, texts: list[str]) -> Path:
    """Of the families that are neither CLIP nor SigLIP."""
    torch.manual_seed(7)
    words = tokenizer(texts, 64)
    tokens = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    text = TEXT | tokens | {"vocab_size": len(words), "pad_token_id": words.pad_token_id, "max_position_embeddings": 80}
    both = {"vision_config": VISION, "projection_dim": 8}
    crop = {"height": SIZE, "width": SIZE}
    plain = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=crop)
    if family == "chinese_clip":
        model = ChineseCLIPModel(ChineseCLIPConfig(text_config=text, **both))
        processor = ChineseCLIPProcessor(ChineseCLIPImageProcessor(size=crop, crop_size=crop), words)
    elif family == "altclip":
        model = AltCLIPModel(AltCLIPConfig(text_config=text | {"project_dim": WIDTH}, **both))
        processor = AltCLIPProcessor(plain, words)
    elif family == "metaclip_2":
        model = MetaClip2Model(MetaClip2Config(text_config=text, **both))
        processor = CLIPProcessor(plain, words)
    else:
        text = TEXT | {"vocab_size": len(words), "max_position_embeddings": 64, "projection_size": WIDTH}
        vision = {name: value for name, value in VISION.items() if name != "image_size"} | {"num_patches": 16}
        model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
        processor = Siglip2Processor(Siglip2ImageProcessor(patch_size=16, max_num_patches=16), words)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
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


SEQUENCES = {
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
}


def _saved(model: torch.nn.Module, words: PreTrainedTokenizerBase, folder: Path) -> Path:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.7)  # so that what is decoded depends on what is read
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _pieces(folder: Path, texts: list[str]) -> tuple[Path, list[str]]:
    """A sentencepiece model of single characters, and its pieces without the special ones."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "words.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, model_type="char", character_coverage=1.0, vocab_size=400,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    trained = sentencepiece.SentencePieceProcessor(model_file=str(folder / "words.model"))
    return folder / "words.model", [trained.id_to_piece(row) for row in range(3, len(trained))]


def nllb(folder: Path, texts: list[str]) -> Path:
    torch.manual_seed(3)
    names = ["<s>", "<pad>", "</s>", "<unk>", "▁", *sorted(set("".join(texts)) - {" "})]
    languages = ["deu_Latn", "eng_Latn", "rus_Cyrl"]
    words = NllbTokenizer({name: row for row, name in enumerate(names)}, [], extra_special_tokens=languages)
    return _saved(M2M100ForConditionalGeneration(M2M100Config(vocab_size=len(words), **SEQUENCES)), words, folder)


def m2m100(folder: Path, texts: list[str]) -> Path:
    torch.manual_seed(4)
    model, pieces = _pieces(folder / "made", texts)
    vocabulary = {name: row for row, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces])}
    (folder / "made" / "vocab.json").write_text(json.dumps(vocabulary))
    words = M2M100Tokenizer(str(folder / "made" / "vocab.json"), str(model))
    size = len(vocabulary) + len(words.lang_code_to_id) + 10
    whole = M2M100ForConditionalGeneration(M2M100Config(vocab_size=size, **SEQUENCES))
    return _saved(whole, words, folder / "whole")


def mbart(folder: Path, texts: list[str]) -> Path:
    torch.manual_seed(5)
    pieces = ["<unk>", "<s>", "</s>", "▁", *sorted(set("".join(texts)) - {" "})]
    words = MBart50Tokenizer([(piece, -float(row)) for row, piece in enumerate(pieces)])
    return _saved(MBartForConditionalGeneration(MBartConfig(vocab_size=len(words), **SEQUENCES)), words, folder)


def marian(folder: Path, texts: list[str], source: str | None, target: str | None = "en") -> Path:
    torch.manual_seed(6)
    model, pieces = _pieces(folder / "made", texts)
    vocabulary = {name: row for row, name in enumerate(["</s>", "<unk>", *pieces, "<pad>"])}
    (folder / "made" / "vocab.json").write_text(json.dumps(vocabulary))
    words = MarianTokenizer(
        str(model), str(model), str(folder / "made" / "vocab.json"), source_lang=source, target_lang=target
    )
    pad = vocabulary["<pad>"]
    config = MarianConfig(
        vocab_size=len(vocabulary), pad_token_id=pad, decoder_start_token_id=pad, eos_token_id=0, forced_eos_token_id=0,
        **SEQUENCES,
    )  # fmt: skip
    return _saved(MarianMTModel(config), words, folder / "whole")
