"""A pretrained folder of ours: embeddings, the matching head, the heads that give labels.

Shapes: N images, T texts, L patches, D width, E embedding, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from PIL import Image
from torch import Tensor

from cclm.evaluation.embedder import Asked, Images, System
from cclm.evaluation.statements import Labeller, StatementOptions
from cclm.models.encoding import (
    EncodedImages,
    EncodingOptions,
    MatchScore,
    encode_texts,
    inference,
    match_scores,
)
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.types import View


class CrossView:
    """All four protocols, as far as the model has the heads. Errors: ValueError where it has no processor."""

    def __init__(self, model: CCLMModel, encoding: EncodingOptions, score: MatchScore = "log_odds") -> None:
        self.model, self.processor, self.encoding, self.score = model, model.processor, encoding, score
        self._held: list[View] = []
        self._seen: tuple[object, View] | None = None  # the last images, and what was made of them

    @property
    def similarity_scale(self) -> float:
        return self.model.scale().item()

    def embed_texts(self, texts: Sequence[str], language: str) -> Tensor:
        return encode_texts(self.model, self.processor, list(texts), self.encoding).embeddings

    def embed_images(self, images: Images) -> Tensor:
        return self._view(images).embedding.float().cpu()

    def _view(self, images: Images) -> View:
        if self._seen is None or self._seen[0] is not images:
            self._seen = images, self._encoded(images, self.model.encode_image)
        return self._seen[1]

    def _encoded(self, images: Sequence[Image.Image], encode: Callable[[Tensor], View]) -> View:
        with inference(self.model, self.encoding) as device:
            return encode(self.processor.images(list(images)).to(device))

    def hold_images(self, images: Images) -> None:
        self._held.append(self._view(images).to("cpu"))

    def forget_images(self) -> None:
        self._held, self._seen = [], None

    def score_pairs(self, texts: Sequence[str], pairs: Tensor, language: str) -> Tensor:
        whole = View(*(torch.cat([getattr(view, f.name) for view in self._held]) for f in fields(View)))
        self._held = [whole]  # one copy of them, and the next call finds it
        images = EncodedImages(whole, torch.arange(len(whole.mask)))
        read = encode_texts(self.model, self.processor, list(texts), self.encoding, keep_states=True)
        return match_scores(self.model, images, read, pairs, self.encoding, self.score)

    def check_labels(self, labels: tuple[str, ...], images: int) -> None:
        self.model.check_images(images)
        own = self.model.config.labels or ()
        if self._head() == "answer" or set(own) == set(labels):
            return
        lacks, strange = sorted(set(labels) - set(own)), sorted(set(own) - set(labels))
        raise ValueError(
            f"the model's {len(own)} labels are not the task's {len(labels)}: "
            + "; ".join(
                f"{len(some)} are {whose} alone, first {some[0]!r}"
                for some, whose in ((lacks, "the task's"), (strange, "the model's"))
                if some
            )
            + "; give a model that was fine-tuned for this task"
        )

    def _head(self) -> str:
        return next(name for name in ("classify", "answer") if name in self.model.config.heads)

    def label(self, images: Sequence[Images], asked: Sequence[Asked], labels: tuple[str, ...]) -> list[str]:
        head = self._head()
        chosen = tuple(self.model.config.labels or ()) if head == "classify" else labels
        labeller = Labeller(self.model, self.processor, StatementOptions(head, chosen, encoding=self.encoding))
        count = len(images[0])
        view = self._encoded(
            [image for row in images for image in row],
            lambda pixels: (
                self.model.encode_image(pixels)
                if count == 1
                else self.model.encode_images(pixels.unflatten(0, (-1, count)))
            ),
        )
        with inference(self.model, self.encoding):
            contexts = labeller.contexts(view)
        return labeller.labels([item.text for item in asked], torch.tensor([item.row for item in asked]), contexts)


def open_cross_view(
    name: str, sha256: str, device: torch.device, encoding: EncodingOptions, score: MatchScore
) -> System:
    """Errors: ValueError, one line, for a folder that is damaged."""
    model = CCLMModel.from_pretrained(name, dtype=torch.float32).eval().to(device)
    adapter, heads = CrossView(model, encoding, score), model.config.heads
    system = System.of(adapter, name, f"cclm model with the heads {', '.join(heads) or 'none'}", sha256)
    embeds = bool(model.config.embedding_size)
    return replace(
        system,
        texts=adapter if embeds else None,
        dual=adapter if embeds else None,
        pairs=adapter if "match" in heads else None,
        labels=adapter if {"classify", "answer"} & set(heads) else None,
        image_size=model.processor.image_size,
        settings={"text_cleaning": model.processor.text_cleaning, "max_words": model.processor.max_words},
        pair_settings={"match_score": score},
        notes=_cleaning(model.processor),
    )


def _cleaning(processor: CCLMProcessor) -> tuple[str, ...]:
    """What is done to texts, which others read as they stand (reference/iglue.md 1.8)."""
    told = [processor.text_cleaning] if processor.text_cleaning != "none" else []
    told += [f"{processor.max_words} words"] if processor.max_words is not None else []
    return (f"texts cleaned by the model: {', '.join(told)}",) if told else ()
