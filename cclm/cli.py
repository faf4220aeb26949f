"""The command line: `cclm VERB ...`. Thin: every verb wires parts that know nothing of each other."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.errors import printable
from cclm.verbs import (
    alignment,
    captions,
    convert,
    data,
    embed,
    evaluate,
    generate,
    generation,
    index,
    living,
    search,
    serve,
)
from cclm.verbs.iglue import check as iglue_check
from cclm.verbs.iglue import evaluate as iglue_evaluate
from cclm.verbs.iglue import report as iglue_report
from cclm.verbs.iglue import run as iglue_run
from cclm.verbs.iglue import score as iglue_score

if TYPE_CHECKING:
    from argparse import Action

    from jsonargparse import ArgumentParser, Namespace

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h

USAGE = """usage: cclm VERB [options]      (cclm VERB --help tells them)

  fit | validate | test --config FILE      train a model, or measure it as the config says
  data build RECIPE --source S --output O  raw data -> shards
  data check DIR                           verify shards: counts, checksums, every sample
  data index DIR --output F | --check F    a folder of downloaded pictures: sizes, checksums, what is damaged
  data leaks SHARDS --task T --data DIR    images and texts of a test that are in training shards
  data tokenizer --data DIRS --output O    train a tokenizer on the texts of shards
  evaluate alignment --model M --data D    in which layer of a text model translations meet: table, chart
  evaluate captions --model M --data D --languages en,de   what a model writes about pictures: CIDEr, fidelity ..
  evaluate generation --model M --judge J --data D --languages en,de   pictures of translated prompts, judged by J
  evaluate retrieval --model M --data D    image-text retrieval per language: report.json, table, chart
  evaluate statements --model M --data D   labels or answers (XVNLI, xGQA, MaRVL ..): the same
  iglue check --data DIR [--open]          what of the benchmarks is there, readable, and what to fetch
  iglue evaluate --model M --tasks T --data D   any model on the benchmarks' own files: IGLUE, Multi30K, COCO ..
  iglue report RUNS .. [--output O]        tables, charts and files of runs, beside the published numbers
  iglue run --model M --regime R --tasks T --data D --output O   fine-tune as the regime asks, then evaluate
  iglue score TASK --predictions F --language L --data D   the number of any system's predictions
  convert SOURCE OUT                       a released checkpoint -> a pretrained folder, and back (--to-original)
  generate MODEL --image F --language de   texts about pictures, or pictures of texts (--prompt ".." --output F)
  embed --model M --source S --output O    embeddings of pictures, and captions, as numpy and parquet files
  index build --model M --source S --output O   embed, choose an index for a budget, measure it
  index add DIR --source S [--new-only]    more pictures, embedded by the index's own model (or --replace)
  index delete DIR --keys a,b | --where "lang = 'de' and width < 100"   [--dry-run]
  index compact DIR                        all segments into one, without the deleted rows
  index duplicates DIR [--threshold 0.96]  pictures that are there twice, or nearly
  index show DIR [--verify] [--json]       version, segments, what is deleted, model, folders, size
  search DIR QUERY [-k 10] [--json]        QUERY: 'beach -people' in any language, or an image file
  serve DIR [--open] [--port 8000]         an index behind a page and JSON, on this machine alone by default
"""


@dataclass(frozen=True)
class Verb:
    """What `cclm NAME` does: its options are declared apart from its work, so that a command can be checked alone."""

    description: str
    options: Callable[[ArgumentParser], object]
    run: Callable[[Namespace], None]


def main(arguments: list[str] | None = None) -> None:
    """Entry point. What a user can get wrong ends as one line on standard error and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _keep_freed_memory()
    signal.signal(signal.SIGTERM, _terminated)  # Lightning's own handler ends a run as if it had succeeded
    logging.basicConfig(level=os.environ.get("CCLM_LOG", "WARNING"), format="%(name)s: %(message)s")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a missing folder was asked of the hub: we tell that
    warnings.filterwarnings("ignore", module="pytorch_lightning|torchvision|timm")
    warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")  # refused by us, in our own words
    try:
        _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read what we print has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to be flushed at the end goes there
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (ValueError, OSError, TypeError) as error:
        if os.environ.get("CCLM_LOG") == "DEBUG":
            raise
        print(f"cclm: {_first_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("cclm: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _terminated(number: int, frame: object) -> None:
    print("cclm: terminated", file=sys.stderr)
    raise SystemExit(128 + number)  # on its way out, what is half-written is removed


def _keep_freed_memory() -> None:
    """Have glibc keep the blocks that torch frees: else every layer gives them back and faults them in again.

    On a CPU that can take as long as the layers of an image encoder. Other C libraries are left as they are.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter, size in ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(parameter, size)


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    # How jsonargparse passes on what settings that may be null have refused.
    if refused := re.search(
        r"Does not .*? the Union subtypes .*? Errors: - (.+?) - Expected .*?(Given value: .*)", text
    ):
        told, value = refused.groups()
        text = f"{text[: refused.start()]}{told}. {value}" if told.startswith("Expected a") else told
    return printable(text) or type(error).__name__


def _run(arguments: list[str]) -> None:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(USAGE, end="")
    elif verb in ("fit", "validate", "test"):
        from cclm.training.cli import run

        run(arguments)
    else:
        chosen, given = parse(arguments)
        chosen.run(given)


def parse(arguments: list[str]) -> tuple[Verb, Namespace]:
    """The verb of VERBS that `arguments` begin with, and its options. Errors: ValueError; nothing is run."""
    name = next((name for name in (" ".join(arguments[:2]), arguments[0]) if name in VERBS), None)
    if name is None:
        given = " ".join(arguments[:2])
        raise ValueError(f"no verb {given!r}; there are fit, validate, test, {', '.join(VERBS)} (cclm --help)")
    verb = VERBS[name]
    parser = _parser(name, verb.description)
    verb.options(parser)
    return verb, parser.instantiate_classes(parser.parse_args(arguments[len(name.split()) :]))


def _parser(name: str, description: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    class OneLine(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> None:
            raise ValueError(f"{name}: {message}") from ex

        def _match_arguments_partial(self, actions: Sequence[Action], pattern: str) -> list[int]:
            """Have what may be left out, but is not, stand behind options too, as in Python 3.13."""
            counts = super()._match_arguments_partial(actions, pattern)
            while counts and not counts[-1] and "O" in pattern:
                counts.pop()
            return counts

    return OneLine(prog=f"cclm {name}", description=description, allow_abbrev=False)


def _build_options(parser: ArgumentParser) -> None:
    from cclm.data.build import build

    parser.add_argument("recipe", help="a file of data_recipes: folder, parallel_text, emoji ..")
    parser.add_function_arguments(build, skip={"recipe"})


def _data_build(given: Namespace) -> None:
    from cclm.data.build import build

    print(build(**given.as_dict()))


def _check_options(parser: ArgumentParser) -> None:
    parser.add_argument("directory", type=Path)


def _data_check(given: Namespace) -> None:
    from cclm.data.check import check_dataset

    print(check_dataset(given.directory))


def _tokenizer_options(parser: ArgumentParser) -> None:
    from cclm.data.build import TokenizerOptions

    parser.add_class_arguments(TokenizerOptions)


def _data_tokenizer(given: Namespace) -> None:
    from cclm.data.build import TokenizerOptions, tokenizer

    print(tokenizer(TokenizerOptions(**given.as_dict())))


VERBS = {
    "data build": Verb("Raw data -> shards.", _build_options, _data_build),
    "data check": Verb("Verify a built dataset; names every bad shard.", _check_options, _data_check),
    "data index": Verb("Pictures of a folder: checksums, sizes, damage.", data.index_options, data.index),
    "data leaks": Verb("What of a benchmark's test is in training shards.", data.leaks_options, data.leaks),
    "data tokenizer": Verb("Train a tokenizer on the texts of shards.", _tokenizer_options, _data_tokenizer),
    "evaluate alignment": Verb("In which layer translations meet.", alignment.options, alignment.run),
    "evaluate captions": Verb("What a model writes about pictures, per language.", captions.options, captions.run),
    "evaluate generation": Verb("Pictures of translated prompts, judged.", generation.options, generation.run),
    "evaluate retrieval": Verb(
        "Image-text retrieval per language, both directions.", evaluate.retrieval_options, evaluate.retrieval
    ),
    "evaluate statements": Verb(
        "Labels or answers about images, per language.", evaluate.statements_options, evaluate.statements
    ),
    "iglue check": Verb("What of the benchmarks is there, and what to fetch.", iglue_check.options, iglue_check.run),
    "iglue evaluate": Verb(
        "A model of any kind on the tests of benchmark tasks.", iglue_evaluate.options, iglue_evaluate.run
    ),
    "iglue report": Verb("Runs' results beside the published numbers.", iglue_report.options, iglue_report.run),
    "iglue run": Verb("Fine-tune as a regime asks, then evaluate; resumes.", iglue_run.options, iglue_run.run),
    "iglue score": Verb("The number of any system's predictions.", iglue_score.options, iglue_score.run),
    "convert": Verb("Released checkpoints to pretrained folders, and back.", convert.options, convert.run),
    "generate": Verb("Texts about pictures, or pictures of texts, in any language.", generate.options, generate.run),
    "embed": Verb("Embeddings of pictures, and of captions, in clip-retrieval's layout.", embed.options, embed.run),
    "index build": Verb("Embed pictures and index them under a budget.", index.build_options, index.build),
    "index add": Verb("Add pictures to an index, or replace them by key.", living.add_options, living.add),
    "index delete": Verb("Delete pictures by key, or by a condition.", living.delete_options, living.delete),
    "index compact": Verb("Index what is left in one segment.", living.compact_options, living.compact),
    "index duplicates": Verb("Pictures that an index holds twice.", living.duplicates_options, living.duplicates),
    "index show": Verb("What an index consists of.", living.show_options, living.show),
    "search": Verb("Search an index with texts in any language, images, or both.", search.options, search.run),
    "serve": Verb("An index behind a page, JSON and clip-retrieval's routes.", serve.options, serve.run),
}
