"""`cclm iglue score`: the number of a file of predictions, of any system, on a benchmark's own files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.evaluation.items import Captions, Sentences, TestSet
    from cclm.evaluation.predictions import Given
    from cclm.evaluation.protocol import Protocol
    from cclm.evaluation.result import Result
    from cclm.evaluation.scoring import Scored


def options(parser: ArgumentParser) -> None:
    parser.add_argument("task", type=str, help="xvnli, xgqa, xflickrco ..; or a task file of your own")
    parser.add_argument("--predictions", type=Path, required=True, help="answers by id, ranked lists, or a TREC run")
    parser.add_argument("--language", type=str, required=True, help="of the test: de, id ..")
    parser.add_argument("--data", type=Path, required=True, help="folder of the benchmarks' files")
    parser.add_argument("--protocol", type=str, default=None, help="how it is measured; the task's first by default")
    parser.add_argument("--partial", action="store_true", help="score a test of which items are missing")
    parser.add_argument("--system", type=str, default="", help="name of the system, for reports")
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap; 0 for no intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument(
        "--direction",
        type=str,
        default=None,
        help="of ranked lists that do not tell theirs, and of the two files below; the task's first by default",
    )
    parser.add_argument("--trec-run", type=Path, default=None, help="also write the ranked lists as a TREC run")
    parser.add_argument("--trec-qrels", type=Path, default=None, help="also write what is relevant as TREC qrels")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(given: Namespace) -> None:
    from cclm.evaluation.task import DataFolder, find
    from cclm.storage import file_hash

    task, data = find(given.task), DataFolder(given.data)
    protocol = task.protocol(given.protocol)
    test = task.test_set(data, given.language, protocol, whole=not given.partial)
    scored, others = _scored(given, task, data, test)
    provenance: dict[str, Any] = {"predictions": given.predictions.name, "sha256": file_hash(given.predictions)}
    if others:
        told = {other.protocol: {"items": other.items, "accuracy": other.scores["accuracy"]} for other in others}
        provenance["other_protocols"] = told
    result = replace(scored.result, system=given.system, provenance=provenance)
    if given.json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
    else:
        print("\n".join(summary(result, protocol)))


def _scored(given: Namespace, task: Any, data: Any, test: TestSet) -> tuple[Scored, list[Result]]:
    """What the predictions score; of answers also under the other protocols that they suffice for."""
    from cclm.evaluation.captioning import score_captions
    from cclm.evaluation.conversion import fitting_protocols, other_protocols
    from cclm.evaluation.items import Captions, Descriptions, Questions, Sentences
    from cclm.evaluation.predictions import read_answers, read_captions, read_rankings
    from cclm.evaluation.scoring import ScoreOptions, score_answers, score_rankings

    options = ScoreOptions(given.draws, given.seed)
    ranked = isinstance(test, Captions | Sentences)
    if not ranked and (given.trec_run or given.trec_qrels):
        raise ValueError(f"task {test.task} ranks nothing; leave --trec-run and --trec-qrels out")
    read: Given[Any]
    if ranked:
        read, score = read_rankings(given.predictions, test, given.direction), score_rankings
    elif isinstance(test, Descriptions):
        read, score = read_captions(given.predictions, test), score_captions
    else:
        read, score = read_answers(given.predictions, test), score_answers
    try:
        scored = score(test, read.predictions, options)
    except ValueError as error:
        if fitting := fitting_protocols(task, data, test, read.predictions):
            raise ValueError(f"{error}; the ids are exactly those of --protocol {' or '.join(fitting)}") from None
        raise
    scored = replace(scored, result=replace(scored.result, notes=(*scored.result.notes, *read.notes)))
    if ranked:
        _write_trec(given, test, scored)
    if not isinstance(test, Questions):
        return scored, []
    return scored, other_protocols(task, data, test, read.predictions, options)


def _write_trec(given: Namespace, test: Captions | Sentences, scored: Scored) -> None:
    from cclm.evaluation.trec import write_qrels, write_run
    from cclm.evaluation.ways import ways

    direction = given.direction or ways(test)[0].name
    if given.trec_qrels:
        write_qrels(test, given.trec_qrels, direction)
    if given.trec_run:
        write_run(scored.items, given.trec_run, direction, given.system or given.predictions.stem)


def summary(result: Result, protocol: Protocol) -> Iterator[str]:
    """The number first, then all that it depends on."""
    yield f"{result.task} in {result.language}" + (f", {result.system}" if result.system else "")
    for name, value in result.scores.items():
        if isinstance(value, dict):
            yield f"  {name.replace('_', ' ')} of {value['queries']:,} queries in {value['gallery']:,}"
            yield from (f"    {told}" for told in _told(value))
        elif value is None:
            yield f"  {name.replace('_', ' ')}: not in the predictions"
    yield from (f"  {told}" for told in _told(result.scores))
    for name, other in result.provenance.get("other_protocols", {}).items():
        yield f"  the same answers under protocol {name}, {other['items']:,} items: {other['accuracy']:.2f}"
    yield f"  protocol {protocol.name}: {protocol.about}"
    yield f"  items {result.items:,}, ids {result.ids[:12]}"
    yield from (f"  {note}" for note in result.notes)


def _told(scores: dict[str, Any]) -> Iterator[str]:
    """Single numbers by name, with their intervals."""
    for name, value in scores.items():
        if isinstance(value, float):
            low, high = scores.get(f"{name}_interval", (None, None))
            yield f"{name.replace('_', ' ')} {value:.2f}" + (f"  ({low:.2f} to {high:.2f})" if low is not None else "")
