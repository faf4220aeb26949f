"""The verbs `cclm data build` and `cclm data tokenizer`: raw data -> shards -> vocabulary."""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import pkgutil
import random
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_type_hints

from cclm.data.records import texts_of
from cclm.data.shards import MANIFEST, Manifest, ShardWriter, read_records
from cclm.data.tokenizer import balance, train_tokenizer
from cclm.storage import check_replaceable, whole_folder
from cclm.types import Record

log = logging.getLogger(__name__)

RECIPES = "data_recipes"
_SPLIT = re.compile(r"[A-Za-z0-9_-]+")
OptionValue: TypeAlias = bool | int | float | str
Recipe: TypeAlias = Callable[..., Iterator[tuple[str, Record]]]


@dataclass(frozen=True)
class Built:
    """What a build left behind."""

    output: Path
    splits: dict[str, Manifest]

    def __str__(self) -> str:
        lines = []
        for split, manifest in self.splits.items():
            languages = " ".join(f"{language} {count}" for language, count in manifest.languages.items())
            lines.append(
                f"{self.output / split}: {manifest.samples} {manifest.kind} records, {len(manifest.shards)} shards"
                f"; {languages}"
            )
        return "\n".join(lines)


def recipe_names() -> list[str]:
    return sorted(found.name for found in pkgutil.iter_modules(importlib.import_module(RECIPES).__path__))


def nearest(given: str, allowed: list[str]) -> str:
    """The end of a message: the likely meaning and everything allowed."""
    close = difflib.get_close_matches(given, allowed, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + "allowed: " + (", ".join(allowed) or "none")


def load_recipe(name: str) -> Recipe:
    """The function `records` of data_recipes/<name>.py. Errors: ValueError with the nearest name."""
    names = recipe_names()
    if name not in names:
        raise ValueError(f"data build: no recipe {name!r}; {nearest(name, names)}")
    return importlib.import_module(f"{RECIPES}.{name}").records


def check_options(name: str, recipe: Recipe, options: dict[str, OptionValue]) -> dict[str, Any]:
    """The options in the types of the recipe's signature. Errors: ValueError for unknown or ill-typed ones."""
    allowed = {key: kind for key, kind in get_type_hints(recipe).items() if key not in ("source", "return")}
    assert set(inspect.signature(recipe).parameters) == {"source", *allowed}
    checked: dict[str, Any] = {}
    for key, value in options.items():
        if key not in allowed:
            raise ValueError(f"data build: recipe {name} has no option {key!r}; {nearest(key, sorted(allowed))}")
        kind = allowed[key]
        value = float(value) if kind is float and type(value) is int else value
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"data build: option {key}={value!r} of recipe {name} must be of type {kind.__name__}")
        checked[key] = value
    return checked


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse to replace anything without being told to, and anything but a dataset even then."""
    check_replaceable(output, (f"*/{MANIFEST}", "*/[0-9][0-9][0-9][0-9][0-9][0-9].tar"))
    if not overwrite and output.is_dir() and any(output.iterdir()):
        raise ValueError(f"data build: {output} holds a dataset already: --overwrite true replaces it")


def build(
    recipe: str,
    source: Path,
    output: Path,
    options: dict[str, OptionValue] | None = None,
    overwrite: bool = False,
) -> Built:
    """Turn raw data into shards: `output/<split>/{000000.tar, .., manifest.json}`.

    Args:
        recipe: a file of data_recipes: what the raw data is and how it reads.
        source: where the raw data lies.
        output: the folder to write; it appears when it is complete, and not before.
        options: further arguments of the recipe, named in its `records` function.
        overwrite: replace a dataset that stands at `output`.

    Errors: ValueError for an unknown recipe or option, for bad input and an occupied output; OSError of a full disk.
    """
    output = Path(output)
    read = load_recipe(recipe)
    checked = check_options(recipe, read, options or {})
    check_output(output, overwrite)
    writers: dict[str, ShardWriter] = {}
    with whole_folder(output) as folder:
        with ExitStack() as stack:
            for number, (split, record) in enumerate(read(Path(source), **checked), 1):
                if split not in writers:
                    if not _SPLIT.fullmatch(split):  # it becomes a folder
                        raise ValueError(f"data build: split {split!r} is no name; use letters, digits, - and _")
                    writers[split] = stack.enter_context(ShardWriter(folder / split))
                writers[split].write(record)
                if number % 10_000 == 0:
                    log.info("%s: %d records written", recipe, number)
        if not writers:
            raise ValueError(
                f"data build: recipe {recipe} found no record in {source}: see what it expects in its docstring"
            )
    splits = {split: writer.manifest for split, writer in writers.items() if writer.manifest is not None}
    return Built(output, splits)


def read_sentences(data: list[str], max_sentences: int, seed: int) -> dict[str, list[str]]:
    """Language -> its texts in the named shards, a uniform sample of at most `max_sentences` where there are more."""
    sentences: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    generator = random.Random(seed)
    for entry in data:
        path, _, chosen = entry.partition(":")
        wanted = set(chosen.split("+")) if chosen else None
        met = set()
        for record in read_records(path):
            for language, text in texts_of(record):
                met.add(language)
                if wanted is not None and language not in wanted:
                    continue
                kept = sentences.setdefault(language, [])
                counts[language] = counts.get(language, 0) + 1
                if len(kept) < max_sentences:
                    kept.append(text)
                elif (place := generator.randrange(counts[language])) < max_sentences:
                    kept[place] = text
        if wanted is not None and not wanted <= met:
            missing, present = ", ".join(sorted(wanted - met)), ", ".join(sorted(met))
            raise ValueError(f"data tokenizer: {path} has no text in {missing}; it has {present}")
    return sentences


@dataclass(frozen=True)
class TokenizerOptions:
    """What a tokenizer is made of.

    Args:
        data: split folders of built datasets; `folder:en+de` takes these languages only.
        output: the folder to write, for `AutoTokenizer.from_pretrained`.
        vocab_size: number of pieces, the special tokens and tags included.
        temperature: 1 weighs languages by their number of sentences, 0 all alike.
        lowercase: make no difference between upper and lower case.
        character_coverage: share of the characters' occurrences that must be spelled by the pieces.
        max_sentences: sentences kept per language, drawn at random from all.
        seed: of that draw.
        language_model: for a language model from scratch: a tag <2de> for every language, and a chat template.
    """

    data: list[str]
    output: Path
    vocab_size: int = 16000
    temperature: float = 0.5
    lowercase: bool = False
    character_coverage: float = 1.0
    max_sentences: int = 1_000_000
    seed: int = 0
    language_model: bool = False


def tokenizer(options: TokenizerOptions) -> str:
    """Train a sentencepiece tokenizer with XLM-R's special ids on the texts of built shards.

    Errors: ValueError for data without text, an unknown language or a vocabulary that the text does not yield.
    """
    sentences = read_sentences(options.data, options.max_sentences, options.seed)
    if not sentences:
        raise ValueError(
            f"data tokenizer: no text in {', '.join(options.data) or 'no data'}: give split folders of built datasets"
        )
    trained = train_tokenizer(
        balance(sentences, options.temperature, options.seed),
        Path(options.output),
        options.vocab_size,
        lowercase=options.lowercase,
        character_coverage=options.character_coverage,
        languages=sorted(sentences) if options.language_model else (),
    )
    total = sum(map(len, sentences.values()))
    return f"{options.output}: {len(trained)} pieces from {total} sentences in {' '.join(sorted(sentences))}"
