"""The model card of a pretrained folder: README.md as the hub reads it, made from facts that whoever exports knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData

from cclm.models.config import CCLMConfig
from cclm.models.names import as_seen_from, model_type
from cclm.models.portrait import Portrait, verbs_of
from cclm.storage import pretrained_hash, whole_file

CARD = "README.md"


class Measure(NamedTuple):
    """What is shown of the reports of a verb of `cclm evaluate`. `size`: of what the scores are of."""

    metrics: tuple[str, ...]
    size: str
    way: str = "direction"


MEASURES = {
    "retrieval": Measure(("R@1", "R@5", "R@10"), "gallery"),
    "statements": Measure(("accuracy", "consistency"), "statements"),
    "captions": Measure(("CIDEr", "BLEU-4", "chrF", "fidelity"), "pictures", "references"),
}
METRICS = tuple(name for measure in MEASURES.values() for name in measure.metrics)  # in percent
LOSS = "loss"  # of a token
_PIVOTS = {"cclm_image_to_text": ("captions",)}  # model_type -> verbs that measure it
_BEGIN, _END = "<!-- scores: begin (made by cclm evaluate) -->", "<!-- scores: end -->"
_SENTENCE = (
    "`sentence_transformers.SentenceTransformer(folder, trust_remote_code=True).encode(texts)` gives the same vectors, "
    "where cclm is installed."
)
_WAYS = {"text_to_image": "text → image", "image_to_text": "image → text"}


@dataclass(frozen=True)
class StreamFacts:
    """What one stream of training read. `samples` None: its shards have no manifest that tells."""

    name: str
    shards: tuple[str, ...]
    samples: int | None
    languages: dict[str, int]  # language -> records with a text in it, of those that were trained on
    batch_size: int
    objectives: tuple[str, ...]


@dataclass(frozen=True)
class CardFacts:
    """What a card says. `origin`: a sentence on where the weights come from; `portrait`: what is told of every model of
    its kind; `recipe`: what was set, and to what.

    `licence`: an identifier of the hub such as apache-2.0, None where nobody has said. `validation`: what the last
    validation of the training logged, by "<set>/<language>/<direction>/<metric>".
    """

    name: str
    origin: str
    portrait: Portrait
    streams: tuple[StreamFacts, ...] = ()
    recipe: dict[str, str] = field(default_factory=dict)
    licence: str | None = None
    validation: dict[str, float] = field(default_factory=dict)


def write_card(folder: Path | str, facts: CardFacts) -> None:
    """Write README.md into a pretrained folder that is otherwise complete; reports of it beside it are shown."""
    folder, portrait = Path(folder), facts.portrait
    sections = [
        f"---\n{_front_matter(facts)}\n---",
        f"# {facts.name}\n\n{facts.origin} {portrait.about}",
        *(f"## {title}\n\n{text}" for title, text in portrait.sections.items()),
        f"## Use\n\n```python\n{portrait.python}\n```",
        *([f"```bash\n{portrait.bash}\n```"] if portrait.bash else []),
        *([_SENTENCE] if (folder / "modules.json").is_file() else []),
        f"## Data\n\n{_data(facts)}",
        f"## Recipe\n\n{table(('setting', 'value'), list(facts.recipe.items())) or 'Not known.'}",
    ]
    if portrait.verbs is not None:
        sections.append(f"## Scores\n\n{_BEGIN}\n{_scores(folder, portrait.verbs)}\n{_END}")
    if rows := _validation(facts.validation):
        sections.append(f"### Last validation of the training\n\n{rows}")
    sections.append(f"## Licence\n\n{_licence(facts)}")
    with whole_file(folder / CARD) as partial:
        partial.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def refresh_scores(folder: Path | str) -> bool:
    """Bring the scores of a card of ours up to the reports beside its folder; False where there is no such card."""
    path = Path(folder) / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        return False
    kind = str(model_type(path.parent / "config.json"))
    verbs = _PIVOTS.get(kind) or verbs_of(CCLMConfig.from_pretrained(path.parent))
    scores = _scores(path.parent, verbs)
    renewed = f"{before}{begin}\n{scores}\n{end}{after}"
    if renewed != text:
        with whole_file(path) as partial:
            partial.write_text(renewed, encoding="utf-8")
    return True


def _front_matter(facts: CardFacts) -> str:
    portrait = facts.portrait
    data = ModelCardData(
        language=sorted(_languages(facts)) or None,
        license=facts.licence or "unknown",
        library_name=portrait.library,
        pipeline_tag=portrait.task,
        tags=["cclm", *portrait.tags],
    )
    return data.to_yaml()


def _languages(facts: CardFacts) -> set[str]:
    return set(facts.portrait.languages) or {language for stream in facts.streams for language in stream.languages}


def _data(facts: CardFacts) -> str:
    if not facts.streams:
        return "Not known."
    rows = [
        (
            stream.name,
            ", ".join(f"`{shards}`" for shards in stream.shards),
            "?" if stream.samples is None else f"{stream.samples:,}",
            ", ".join(f"{language} {count:,}" for language, count in stream.languages.items()) or "?",
            ", ".join(stream.objectives),
            str(stream.batch_size),
        )
        for stream in facts.streams
    ]
    return table(("stream", "shards", "records", "languages (records)", "objectives", "batch"), rows)


def _licence(facts: CardFacts) -> str:
    if facts.licence:
        return f"{facts.licence}."
    return (
        "Unknown: whoever exported this folder has not said. The weights may stay under the terms of the data and of "
        "the weights that the training started from."
    )


def _scores(folder: Path, verbs: tuple[str, ...]) -> str:
    """Tables of the reports beside `folder` that are of exactly these weights."""
    tables = []
    sha256: str | None = None
    for path in sorted(folder.absolute().parent.glob("*.json")):
        verb, report = _report(path)
        if not verb:
            continue
        sha256 = sha256 or pretrained_hash(folder)
        if report["model_hash"] != sha256:
            continue
        measure = MEASURES[verb]
        lines = [
            (language, _direction(way), *_percent(scores, measure.metrics), f"{scores[measure.size]:,}")
            for language, ways in report["languages"].items()
            for way, scores in ways.items()
        ]
        data = as_seen_from(folder, report["data"])
        head = f"`{path.name}`: {verb} on `{data}`, {report['date']}, %"
        tables.append(f"{head}\n\n{table(('language', measure.way, *measure.metrics, measure.size), lines)}")
    return "\n\n".join(tables) or _unmeasured(verbs)


def _unmeasured(verbs: tuple[str, ...]) -> str:
    told = " or ".join(f"`cclm evaluate {verb}`" for verb in verbs)
    if not told:
        return "None: no verb of cclm measures a model with these heads and without embeddings."
    return f"None yet: {told} puts them here where its report lies beside this folder."


def _report(path: Path) -> tuple[str, dict[str, Any]]:
    """The verb of `cclm evaluate` that wrote this report, and the report; nothing of any other file."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        measured = [scores for ways in stored["languages"].values() for scores in ways.values()]
        if not measured or not {"model_hash", "data", "date"} <= set(stored):
            return "", {}
        for verb, measure in MEASURES.items():
            needed = (*measure.metrics[:-1], measure.size)  # not every language's fidelity can be told
            if all(isinstance(scores.get(name), int | float) for scores in measured for name in needed):
                return verb, stored
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return "", {}


def _validation(logged: dict[str, float]) -> str:
    """Tables of what is measured in percent, and of losses."""
    scores: dict[tuple[str, ...], dict[str, float]] = {}
    for name, value in logged.items():
        *place, metric = name.split("/")
        if len(place) == 3:
            scores.setdefault(tuple(place), {})[metric] = value
    shown = [name for name in METRICS if any(name in own for own in scores.values())]
    rows = [
        (place[0], place[1], _direction(place[2]), *_percent(own, shown))
        for place, own in scores.items()
        if LOSS not in own
    ]
    lost = [(place[0], place[1], f"{own[LOSS]:.3f}") for place, own in scores.items() if LOSS in own]
    percent = table(("set", "language", "direction", *(f"{name}, %" for name in shown)), rows)
    return "\n\n".join(filter(None, (percent, table(("set", "language", "loss of a token"), lost))))


def _direction(way: str) -> str:
    plain = way.removesuffix("_rerank")
    return _WAYS.get(plain, plain) + (", reranked" if plain != way else "")


def _percent(scores: dict[str, float], names: tuple[str, ...] | list[str]) -> Iterator[str]:
    return (f"{scores[name]:.1f}" if name in scores else "" for name in names)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown, nothing where there are no rows."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '¦') for cell in line)} |" for line in lines) if rows else ""
