"""What a model's card says by its kind: of what it is made, how it is used, which verbs measure it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cclm.models.config import CCLMConfig


@dataclass(frozen=True)
class Portrait:
    """`about`: of what it is made, in sentences. `start`: the weights that its training began with, if any. `python`
    and `bash`: how it is used, its folder being "this folder". `library`, `task` and `tags`: how the hub files it.

    `verbs`: of `cclm evaluate`, whose scores the card shows; None where it has no place for scores. `languages`: codes;
    none where those of the data are all. `sections`: title -> Markdown. `recipe`: settings of this kind alone.
    """

    about: str
    python: str
    bash: str = ""
    start: str = ""
    library: str = "cclm"
    task: str | None = None
    tags: tuple[str, ...] = ()
    verbs: tuple[str, ...] | None = None
    languages: tuple[str, ...] = ()
    sections: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, str] = field(default_factory=dict)


def cross_view(config: CCLMConfig, start: str = "") -> Portrait:
    """Of a CCLM model."""
    verbs = verbs_of(config)
    return Portrait(
        about=_geometry(config),
        python=_snippet(config),
        bash=evaluations(verbs),
        start=start,
        task="feature-extraction" if config.embedding_size else None,
        tags=("image-text", "multilingual", "cross-view-language-modelling"),
        verbs=verbs,
    )


def verbs_of(config: CCLMConfig) -> tuple[str, ...]:
    """Those of `cclm evaluate` that can measure such a model."""
    able = {"retrieval": config.embedding_size > 0, "statements": bool({"classify", "answer"} & set(config.heads))}
    return tuple(verb for verb, is_able in able.items() if is_able)


def evaluations(verbs: tuple[str, ...], more: str = "") -> str:
    """Commands."""
    given = f'--model "this folder" --data "a split"{more} --output report.json'
    return "\n".join(f"cclm evaluate {verb} {given}" for verb in verbs)


def _geometry(config: CCLMConfig) -> str:
    parts = f"image encoder `{config.backbone}` at {config.image_size} pixels, {config.text_layers} text layers and "
    parts += f"{config.fusion_layers} fusion layers of width {config.hidden_size}"
    embedding = f"embeddings of width {config.embedding_size}" if config.embedding_size else "no embeddings"
    return f"It has {parts}; {embedding}; heads: {', '.join(config.heads) or 'none'}."


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
