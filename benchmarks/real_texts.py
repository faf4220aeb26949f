"""Captions and sentence pairs of real lengths, from the photos' captions and the parallel text that README names."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from cclm.data.tokenizer import train_tokenizer

BUILT = Path(__file__).resolve().parent.parent / "data" / "photos_tokenizer"
LANGUAGES = ["de", "en", "pt"]  # of the captions' languages those that README's tokenizer is made for


def translations(data: Path, stream: str) -> Iterator[dict[str, list[str]]]:
    """Language -> texts of one thing: captions of a picture, or a sentence."""
    if stream == "image":
        with gzip.open(data / "photos" / "captions.jsonl.gz", "rt", encoding="utf-8") as lines:
            for captions in (json.loads(line)["captions"] for line in lines):
                yield {language: captions[language] for language in LANGUAGES if language in captions}
        return
    with gzip.open(data / "parallel" / "captions_en-de-fr-cs-pt.tsv.gz", "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield {language: [text] for language, text in row.items() if text}


def drawn_texts(data: Path, stream: str, count: int) -> list[tuple[str, ...]]:
    """`count` captions, or sentences in two languages."""
    draw = random.Random(0)
    sides = 1 if stream == "image" else 2
    usable = [texts for texts in itertools.islice(translations(data, stream), 5000) if len(texts) >= sides]
    return [
        tuple(draw.choice(texts[language]) for language in draw.sample(sorted(texts), sides))
        for texts in draw.sample(usable, count)
    ]


def tokenizer(data: Path, spare: Path) -> Path:
    """README's tokenizer where it has been made; else one like it, trained into `spare`."""
    if BUILT.is_dir():
        return BUILT
    things = itertools.chain(translations(data, "image"), translations(data, "text"))
    sentences = (text for thing in things for texts in thing.values() for text in texts)
    train_tokenizer(sentences, spare / "tokenizer", 16000, lowercase=True)
    return spare / "tokenizer"
