"""`cclm convert`: a released checkpoint -> a pretrained folder, and back, with an account of every tensor."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.models.convert import Converted
    from cclm.models.processor import CCLMProcessor

CHECKPOINTS = (".th", ".pth", ".pt", ".bin", ".ckpt", ".safetensors")


def options(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=str, help="a checkpoint file; or a folder of XLM-R, Swin or BEiT-v2")
    parser.add_argument("output", type=Path, help="the pretrained folder to write")
    parser.add_argument("--image-size", type=int, default=None, help="pixels; relative positions are resized")
    parser.add_argument(
        "--tokenizer", type=str, default=None, help="xlm-roberta-large, or a folder; kept in the output"
    )
    parser.add_argument("--text", type=str, default=None, help="XLM-R's weights, for a source without text layers")
    parser.add_argument("--num-heads", type=int, default=None, help="of the text layers, where they are guessed wrong")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="run code in the file; only if you trust its writer"
    )
    parser.add_argument("--to-original", action="store_true", help="the way back: source a folder, output a file")
    parser.add_argument("--dry-run", action="store_true", help="tell, and write nothing")
    parser.add_argument("--list", action="store_true", help="name every tensor in the account")


def run(given: Namespace) -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    _back(given) if given.to_original else _forth(given)


def _forth(given: Namespace) -> None:
    from cclm.models.card import CardFacts, write_card
    from cclm.models.config import CCLMConfig
    from cclm.models.convert import ConvertOptions, convert
    from cclm.models.names import check_export
    from cclm.models.portrait import cross_view
    from cclm.models.processor import save_settings
    from cclm.models.sentence import write_modules
    from cclm.storage import whole_folder

    _check_apart(given)
    check_export(given.output, CCLMConfig.model_type)
    options = ConvertOptions(given.image_size, given.num_heads, given.text, given.trust_pickle)
    converted = convert(given.source, options)
    processor = _processor(given.tokenizer, converted) if given.tokenizer else None
    for line in account(converted, given.list):
        print(line)
    if given.dry_run:
        print("dry run: nothing is written")
        return
    with whole_folder(given.output) as partial:
        converted.save(partial)
        if processor is not None:
            processor.save_pretrained(partial)
            if converted.config.embedding_size:
                write_modules(partial)
        else:
            save_settings(partial, *_settings(converted))
        origin = f"Converted from `{Path(given.source).name}`, a {converted.family} checkpoint."
        write_card(partial, CardFacts(given.output.name, origin, cross_view(converted.config)))
    print(f"{given.output}: written")
    if processor is None:
        print(f"it holds no tokenizer: add the model's own with --tokenizer ({_published_tokenizer(converted)})")


def _published_tokenizer(converted: Converted) -> str:
    """XLM-R's are the same in all sizes; the name is that of the text layers."""
    base = converted.config.position_offset and converted.config.hidden_size < 1024  # CCLM-X2VLM's
    return "CCLM-X2VLM base's is xlm-roberta-base" if base else "CCLM's is xlm-roberta-large"


def _check_apart(given: Namespace) -> None:
    """Errors: ValueError where writing the output would replace what is read."""
    output = given.output.resolve()
    for name in (given.source, given.text, given.tokenizer):
        if name and Path(name).exists() and (Path(name).resolve() == output or output in Path(name).resolve().parents):
            raise ValueError(f"output {given.output} would replace {name}, which is read; choose a new folder")


def account(converted: Converted, whole: bool) -> list[str]:
    """What the source is, and what became of its tensors; by name with `whole`."""
    config, report = converted.config, converted.report
    lines = [
        f"{converted.family}: images of {config.image_size} pixels, {config.text_layers} text and "
        f"{config.fusion_layers} fusion layers of width {config.hidden_size}, vocabulary {config.vocab_size}, "
        f"heads: {', '.join(config.heads)}",
        str(report),
    ]
    lines += [f"  left over: {count} x {why}" for why, count in Counter(report.left_over.values()).most_common()]
    if converted.resized:
        lines.append(f"  resized: {converted.resized} relative-position tables")
    lines += [f"  guessed: {name} {why}" for name, why in converted.guessed.items()]
    if whole:
        lines += [f"filled            {theirs} -> {ours}" for theirs, ours in report.taken]
        lines += [f"newly initialised {name}" for name in report.new]
        lines += [f"left over         {name}: {why}" for name, why in report.left_over.items()]
    elif report.new:
        lines.append("  newly initialised: " + ", ".join(sorted({name.split(".")[0] for name in report.new})))
    return lines


def _settings(converted: Converted) -> tuple:
    """How the originals prepare inputs (reference/cclm.md 3.2): image settings, tokens, cleaning, words."""
    from cclm.models.processor import ImageSettings

    config = converted.config
    most = config.max_positions - config.position_offset
    return ImageSettings(image_size=config.image_size, augment=True), min(80, most), "caption", 80


def _processor(tokenizer: str, converted: Converted) -> CCLMProcessor:
    from cclm.models.processor import CCLMProcessor, load_tokenizer

    processor = CCLMProcessor(load_tokenizer(tokenizer), *_settings(converted))
    processor.check_fits(converted.config)
    return processor


def _back(given: Namespace) -> None:
    from cclm.models.convert import to_original

    for name in ("image_size", "num_heads", "text", "tokenizer"):
        if getattr(given, name) is not None:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is for the way to a pretrained folder; leave it out with --to-original")
    if Path(given.source).is_file():
        raise ValueError(f"{given.source} is a file; --to-original reads a pretrained folder, and writes such a file")
    _check_file(given.output)
    count = to_original(Path(given.source), None if given.dry_run else given.output)
    print(f"{given.output}: {count} tensors in the released layout" + (" (dry run)" if given.dry_run else ""))


def _check_file(output: Path) -> None:
    """Errors: ValueError for a place where no checkpoint can stand, or where something other than one stands."""
    if output.is_dir():
        raise ValueError(f"output {output} is a folder; give the file to write, such as {output}/model.th")
    if output.exists() and output.suffix not in CHECKPOINTS:
        raise ValueError(f"output {output} exists and is no checkpoint; give a new file, such as {output.stem}.th")
    above = next(parent for parent in output.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"output {output} cannot be written: {above} is no folder that you may write to")
