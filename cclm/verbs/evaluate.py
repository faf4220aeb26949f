"""`cclm evaluate retrieval | statements`: a model's report on a dataset, by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclm.verbs.inputs import add_inputs, codes, load

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.evaluation.encoding import ImageViews
    from cclm.evaluation.report import Provenance, Report
    from cclm.models.model import CCLMModel
    from cclm.models.processor import CCLMProcessor
    from cclm.types import Record

    Evaluate = Callable[[CCLMModel, CCLMProcessor, Iterable[Record], ImageViews, Provenance], Report]


def retrieval_options(parser: ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--texts", default="auto", help="auto, captions or parallel: which texts are queries")
    parser.add_argument("--rerank", type=int, default=0, help="candidates per query for the matching head")
    parser.add_argument(
        "--rerank_similarity", type=float, default=0.0, help="weight of the similarity beside the match score"
    )
    parser.add_argument("--rerank_score", default="log_odds", help="log_odds of a match, or the original's logit")


def retrieval(given: Namespace) -> None:
    from cclm.evaluation.retrieval import RetrievalOptions, evaluate_retrieval

    options = RetrievalOptions(
        codes(given.languages),
        texts=given.texts,
        rerank=given.rerank,
        rerank_similarity=given.rerank_similarity,
        rerank_score=given.rerank_score,
        encoding=given.encoding,
    )
    _report(given, "text_to_image", lambda *inputs: evaluate_retrieval(*inputs, options))


def statements_options(parser: ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--head", default=None, help="classify or answer; the one that the model has by default")
    parser.add_argument("--labels", type=Path, default=None, help="a file of what is chosen among; the model's own")
    parser.add_argument("--candidates", type=int, default=128, help="answers kept by their first token")
    parser.add_argument("--first_token", default="once", help="once, or twice as the original counts it")


def statements(given: Namespace) -> None:
    from cclm.evaluation.answering import RankOptions
    from cclm.evaluation.statements import StatementOptions, evaluate_statements
    from cclm.models.labels import read_labels

    rank = RankOptions(given.candidates, given.first_token)
    labels = tuple(read_labels(given.labels)) if given.labels else None

    def evaluate(model: CCLMModel, *inputs: Any) -> Report:
        head = given.head or next((name for name in ("classify", "answer") if name in model.config.heads), "classify")
        own = tuple(model.config.labels or ())
        if (
            head == "classify"
            and labels
            and (len(labels) != len(own) or (sorted(labels) == sorted(own) and labels != own))
        ):
            raise ValueError(
                f"{given.labels}: {len(labels)} labels do not name the classifier's {len(own)} logits in their order; "
                "leave --labels out"
            )
        chosen = labels or own
        options = StatementOptions(head, chosen, codes(given.languages), rank, encoding=given.encoding)
        return evaluate_statements(model, *inputs, options)

    _report(given, "statements", evaluate)


def _add_common(parser: ArgumentParser) -> None:
    from cclm.models.encoding import EncodingOptions

    add_inputs(parser)
    parser.add_argument("--output", type=Path, required=True, help="report.json; the chart goes beside it")
    parser.add_argument("--baseline", type=Path, default=None, help="another report to show beside this one")
    parser.add_argument("--languages", type=list[str] | str | None, default=None, help="de,fr; all by default")
    parser.add_argument("--encoding", type=EncodingOptions, default=EncodingOptions())


def _report(given: Namespace, way: str, evaluate: Evaluate) -> None:
    """Everything that can be wrong is looked at before the work; then the report is written and shown."""
    from rich.console import Console

    from cclm.data.shards import check_languages, read_records
    from cclm.evaluation.encoding import pixel_views
    from cclm.evaluation.report import Provenance, Report, check_output, table
    from cclm.images import open_image
    from cclm.models.card import refresh_scores
    from cclm.models.choice import Choice
    from cclm.retrieval.manifest import ModelSource

    output = check_output(given.output)
    baseline = Report.read(given.baseline) if given.baseline else None
    if baseline is not None and way not in baseline.directions():
        raise ValueError(f"baseline {given.baseline} is a report of another kind; give one of the same verb")
    source = ModelSource.of(given.model)
    choice = Choice.read(given.model)
    check_languages(given.data, codes(given.languages))
    model, processor = load(given.model, given.device)
    today = date.today().isoformat()
    provenance = Provenance(source.path, source.sha256, given.data, _data_hash(given.data), today, str(choice or ""))
    views = pixel_views(model, processor, lambda data: open_image(data, processor.image_size))
    skipped: Counter[str] = Counter()
    report = evaluate(model, processor, read_records(given.data, skipped=skipped), views, provenance)
    report = replace(report, skipped=dict(skipped))
    report.write(output, baseline)
    refresh_scores(given.model)
    Console().print(table(report, baseline))
    if choice is not None:
        print(f"the model is of {choice}")


def _data_hash(source: str) -> str:
    from cclm.data.shards import MANIFEST
    from cclm.storage import file_hash

    manifest = Path(source) / MANIFEST
    return file_hash(manifest) if manifest.is_file() else ""
