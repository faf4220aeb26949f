"""The model card of a pretrained folder: README.md as the hub reads it, made from facts that whoever exports knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from cclm.models.config import CCLMConfig
from cclm.storage import pretrained_hash, whole_file

CARD = "README.md"
# Verb of `cclm evaluate` -> metrics that are shown of its reports, and what they are of.
MEASURES = {
    "retrieval": (("R@1", "R@5", "R@10"), "gallery"),
    "statements": (("accuracy", "consistency"), "statements"),
}
METRICS = tuple(name for names, _ in MEASURES.values() for name in names)
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
    """What a card says. `origin`: a sentence on where the weights come from; `recipe`: what was set, and to what.

    `languages`: codes, where whoever exports knows them; those of the streams where it is empty. `licence`: an
    identifier of the hub such as apache-2.0, None where nobody has said. `validation`: what the last validation of the
    training logged, by "<set>/<language>/<direction>/<metric>".
    """

    name: str
    origin: str
    config: CCLMConfig
    streams: tuple[StreamFacts, ...] = ()
    recipe: dict[str, str] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    licence: str | None = None
    validation: dict[str, float] = field(default_factory=dict)


def write_card(folder: Path | str, facts: CardFacts) -> None:
    """Write README.md into a pretrained folder that is otherwise complete; reports of it beside it are shown."""
    folder = Path(folder)
    sections = [
        f"---\n{_front_matter(facts)}\n---",
        f"# {facts.name}\n\n{facts.origin} {_geometry(facts.config)}",
        f"## Use\n\n```python\n{_snippet(facts.config)}\n```",
        *([f"```bash\n{commands}\n```"] if (commands := _commands(facts.config)) else []),
        *([_SENTENCE] if (folder / "modules.json").is_file() else []),
        f"## Data\n\n{_data(facts)}",
        f"## Recipe\n\n{_table(('setting', 'value'), list(facts.recipe.items())) or 'Not known.'}",
        f"## Scores\n\n{_BEGIN}\n{_scores(folder, facts.config)}\n{_END}",
    ]
    if rows := _validation(facts.validation):
        sections.append(f"### Last validation of the training, %\n\n{rows}")
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
    scores = _scores(path.parent, CCLMConfig.from_pretrained(path.parent))
    renewed = f"{before}{begin}\n{scores}\n{end}{after}"
    if renewed != text:
        with whole_file(path) as partial:
            partial.write_text(renewed, encoding="utf-8")
    return True


def _front_matter(facts: CardFacts) -> str:
    data = ModelCardData(
        language=sorted(_languages(facts)) or None,
        license=facts.licence or "unknown",
        library_name="cclm",
        pipeline_tag="feature-extraction" if facts.config.embedding_size else None,
        tags=["cclm", "image-text", "multilingual", "cross-view-language-modelling"],
    )
    return data.to_yaml()


def _languages(facts: CardFacts) -> set[str]:
    return set(facts.languages) or {language for stream in facts.streams for language in stream.languages}


def _geometry(config: CCLMConfig) -> str:
    parts = f"image encoder `{config.backbone}` at {config.image_size} pixels, {config.text_layers} text layers and "
    parts += f"{config.fusion_layers} fusion layers of width {config.hidden_size}"
    embedding = f"embeddings of width {config.embedding_size}" if config.embedding_size else "no embeddings"
    return f"It has {parts}; {embedding}; heads: {', '.join(config.heads) or 'none'}."


def _verbs(config: CCLMConfig) -> list[str]:
    """Those of `cclm evaluate` that can measure such a model."""
    able = {"retrieval": config.embedding_size > 0, "statements": bool({"classify", "answer"} & set(config.heads))}
    return [verb for verb in MEASURES if able[verb]]


def _commands(config: CCLMConfig) -> str:
    given = '--model "this folder" --data "a split" --output report.json'
    return "\n".join(f"cclm evaluate {verb} {given}" for verb in _verbs(config))


def _snippet(config: CCLMConfig) -> str:
    head, lines = ["from cclm import CCLMModel", ""], []
    if config.embedding_size:
        lines += [
            'images = model.embed_images(["dog.jpg", "boat.jpg"])  # (2, E) unit norm',
            'texts = model.embed_texts(["a dog in the snow", "ein Boot"])  # (2, E) unit norm',
            "similarity = texts @ images.T",
        ]
    if "match" in config.heads and config.images_per_text == 1:
        lines.append('match = model.score("dog.jpg", ["a dog", "a cat"])  # (2,) probabilities')
    if "classify" in config.heads or not lines:
        head, lines = ["import torch", "from PIL import Image", "", *head], [*lines, *_reading(config)]
    return "\n".join([*head, 'model = CCLMModel.from_pretrained("this folder").eval()', *lines])


def _reading(config: CCLMConfig) -> list[str]:
    """Lines for a text in the light of its images: the label, or the states where no head gives one."""
    opened = ", ".join(f'Image.open("{number}.jpg")' for number in range(1, config.images_per_text + 1))
    encode = "encode_image(pixels)" if config.images_per_text == 1 else "encode_images(pixels.unsqueeze(0))"
    lines = [
        f"pixels = model.processor.images([{opened}])",
        'text = model.processor.texts(["a dog runs in the snow"])',
        "with torch.inference_mode():",
        f"    seen, read = model.{encode}, model.encode_text(text.input_ids, text.attention_mask)",
    ]
    if "classify" not in config.heads:
        return [*lines, "    fused = model.fuse(read, seen)  # (1, L, D) states"]
    return [
        *lines,
        f"    logits = model.class_logits(read, model.readings(seen))  # (1, {len(config.labels)})",
        "label = model.config.labels[logits.argmax(1).item()]",
    ]


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
    return _table(("stream", "shards", "records", "languages (records)", "objectives", "batch"), rows)


def _licence(facts: CardFacts) -> str:
    if facts.licence:
        return f"{facts.licence}."
    return (
        "Unknown: whoever exported this folder has not said. The weights may stay under the terms of the data and of "
        "the weights that the training started from."
    )


def _scores(folder: Path, config: CCLMConfig) -> str:
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
        metrics, size = MEASURES[verb]
        lines = [
            (language, _direction(way), *_percent(scores, metrics), f"{scores[size]:,}")
            for language, ways in report["languages"].items()
            for way, scores in ways.items()
        ]
        head = f"`{path.name}`: {verb} on `{report['data']}`, {report['date']}, %"
        tables.append(f"{head}\n\n{_table(('language', 'direction', *metrics, size), lines)}")
    return "\n\n".join(tables) or _unmeasured(config)


def _unmeasured(config: CCLMConfig) -> str:
    verbs = " or ".join(f"`cclm evaluate {verb}`" for verb in _verbs(config))
    if not verbs:
        return "None: no verb of cclm measures a model with these heads and without embeddings."
    return f"None yet: {verbs} puts them here where its report lies beside this folder."


def _report(path: Path) -> tuple[str, dict[str, Any]]:
    """The verb of `cclm evaluate` that wrote this report, and the report; nothing of any other file."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        measured = [scores for ways in stored["languages"].values() for scores in ways.values()]
        if not measured or not {"model_hash", "data", "date"} <= set(stored):
            return "", {}
        for verb, (metrics, size) in MEASURES.items():
            if all(isinstance(scores.get(name), int | float) for scores in measured for name in (*metrics, size)):
                return verb, stored
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return "", {}


def _validation(logged: dict[str, float]) -> str:
    scores: dict[tuple[str, ...], dict[str, float]] = {}
    for name, value in logged.items():
        *place, metric = name.split("/")
        if len(place) == 3:
            scores.setdefault(tuple(place), {})[metric] = value
    shown = [name for name in METRICS if any(name in own for own in scores.values())]
    rows = [(place[0], place[1], _direction(place[2]), *_percent(own, shown)) for place, own in scores.items()]
    return _table(("set", "language", "direction", *shown), rows)


def _direction(way: str) -> str:
    plain = way.removesuffix("_rerank")
    return _WAYS.get(plain, plain) + (", reranked" if plain != way else "")


def _percent(scores: dict[str, float], names: tuple[str, ...] | list[str]) -> Iterator[str]:
    return (f"{scores[name]:.1f}" if name in scores else "" for name in names)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown, nothing where there are no rows."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '¦') for cell in line)} |" for line in lines) if rows else ""
