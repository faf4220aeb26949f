"""Inputs -> embeddings, and states where the matching head will read them; batched, equal inputs once.

Any dual encoder fits. Shapes: N images, T texts, L tokens or patches, D width, E embedding, P (image, text) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import islice, pairwise
from typing import Literal, Protocol, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cclm.models.options import EncodingOptions
from cclm.types import Encoder, Memory, TextInput, View

# Images whose keys and values stand in memory at once while pairs are matched: 12 layers of 1024 x 145 patches each
# take 14 MB per image.
MATCH_IMAGES = 32
# Pairs whose images' keys and values are read at once by a CPU: more of them leave its cache.
CPU_PAIRS = 32

Item = TypeVar("Item")
MatchScore: TypeAlias = Literal["log_odds", "logit"]


class Processor(Protocol):
    """What turns raw inputs into tensors, as the model was trained."""

    def images(self, images: list[Image.Image]) -> Tensor: ...

    def texts(self, texts: list[str], max_tokens: int | None = None, clean: bool = True) -> TextInput: ...


class Matcher(Encoder, Protocol):
    """An encoder that can also judge a pair: needed for reranking only."""

    def project(self, context: View) -> Memory: ...

    def fuse_ahead(self, target: View) -> View: ...

    def fuse_first(self, ahead: View, memory: Memory) -> Tensor: ...

    def match_logits(self, fused: Tensor) -> Tensor: ...

    def scale(self) -> Tensor: ...


@dataclass(frozen=True)
class EncodedImages:
    """Images in the order read; equal files are encoded once, so that they tie exactly."""

    distinct: View  # N' images; states and mask have L = 0 where they are not kept
    rows: Tensor  # (N,) int64: where each image is among the distinct ones

    @property
    def embeddings(self) -> Tensor:
        """(N, E) float32."""
        return self.distinct.embedding[self.rows]


@dataclass(frozen=True)
class EncodedTexts:
    """Texts in the order given; equal texts are encoded once, so that they tie exactly."""

    distinct: Tensor  # (T', E) float32
    rows: Tensor  # (T,) int64: where each text is among the distinct ones
    states: list[Tensor] = field(default_factory=list)  # T' of (L, D), without padding, where they are kept

    @property
    def embeddings(self) -> Tensor:
        """(T, E) float32."""
        return self.distinct[self.rows]


def batches(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Tuples of `size` items, the last one perhaps shorter."""
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch


@contextmanager
def inference(model: nn.Module, options: EncodingOptions) -> Iterator[torch.device]:
    """Yield the model's device with dropout off, gradients off and autocast as asked; the former mode comes back."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with (
            torch.inference_mode(),
            torch.autocast(
                device.type,
                dtype=getattr(torch, options.precision) if options.precision != "float32" else None,
                enabled=options.precision != "float32",
            ),
        ):
            yield device
    finally:
        model.train(training)


def image_batches(
    model: Encoder, items: Iterable[Item], views: Callable[[tuple[Item, ...]], View], options: EncodingOptions
) -> Iterator[tuple[tuple[Item, ...], View]]:
    """Yield (items, view of their images) batch after batch; an item is whatever `views` makes a view of."""
    for batch in batches(items, options.image_batch):
        with inference(model, options):
            view = views(batch)
        yield batch, view


def encode_images(
    model: Encoder,
    items: Iterable[Item],
    views: Callable[[tuple[Item, ...]], View],
    key: Callable[[Item], Hashable],
    options: EncodingOptions,
    keep_states: bool = False,
) -> EncodedImages:
    """Encode images in one pass, those of equal `key` once. Errors: what `views` raises; ValueError for no items."""
    places: dict[Hashable, int] = {}
    rows: list[int] = []

    def first_seen() -> Iterator[Item]:
        for item in items:
            own = key(item)
            known = own in places
            rows.append(places.setdefault(own, len(places)))
            if not known:
                yield item

    parts = []
    for _, view in image_batches(model, first_seen(), views, options):
        length = view.states.shape[1] if keep_states else 0
        parts.append(View(view.states[:, :length].cpu(), view.mask[:, :length].cpu(), view.embedding.float().cpu()))
    if not parts:
        raise ValueError("no image to encode: the data is empty, or nothing in it whole; `cclm data check` it")
    distinct = View(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(View)))
    return EncodedImages(distinct, torch.tensor(rows))


def encode_texts(
    model: Encoder,
    processor: Processor,
    texts: list[str],
    options: EncodingOptions,
    keep_states: bool = False,
    shown: Callable[[list[tuple[str, ...]]], Iterable[tuple[str, ...]]] = iter,
) -> EncodedTexts:
    """Encode texts in batches of similar length, so that little is padding; `shown` watches the batches go by."""
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    embeddings, states = [], []
    for batch in shown(list(batches(distinct, options.text_batch))):
        with inference(model, options) as device:
            tokens = processor.texts(list(batch), options.max_tokens).to(device)
            view = model.encode_text(tokens.input_ids, tokens.attention_mask)
            embeddings.append(view.embedding.float().cpu())
            if keep_states:
                states += [row[mask].cpu() for row, mask in zip(view.states, view.mask, strict=True)]
    places = {text: row for row, text in enumerate(distinct)}
    return EncodedTexts(torch.cat(embeddings), torch.tensor([places[text] for text in texts]), states)


def match_scores(
    model: Matcher,
    images: EncodedImages,
    texts: EncodedTexts,
    pairs: Tensor,
    options: EncodingOptions,
    score: MatchScore = "log_odds",
) -> Tensor:
    """Log-odds of a match for pairs (P, 2) of (image row, text row) -> (P,) float32; or its logit, as the original has.

    Log-odds, not the probability: that saturates at 1 and would tie the best candidates.
    """
    logits = match_logits(model, images, texts, pairs, options)
    return logits[:, 1] - logits[:, 0] if score == "log_odds" else logits[:, 1]


def match_logits(
    model: Matcher, images: EncodedImages, texts: EncodedTexts, pairs: Tensor, options: EncodingOptions
) -> Tensor:
    """The matching head's logits (P, 2) float32 for pairs (P, 2) of (image row, text row); class 1 = a match.

    An image's keys and values are projected once, for all the texts it is paired with; a text is read as far as it can
    be without an image once, for all its images; equal pairs are matched once.
    """
    assert images.distinct.states.shape[1] and texts.states
    pairs = torch.stack([images.rows[pairs[:, 0]], texts.rows[pairs[:, 1]]], dim=1)
    pairs, inverse = torch.unique(pairs, dim=0, return_inverse=True)
    read, local = torch.unique(pairs[:, 1], return_inverse=True)  # the texts that are in any pair
    ahead = _ahead(model, texts, read, options)
    lengths = torch.tensor([len(states) for states in ahead])
    chunk = pairs[:, 0] // MATCH_IMAGES
    order = torch.argsort(chunk * (int(lengths.max()) + 1) + lengths[local])  # by chunk, then by length
    found = torch.empty(len(pairs), 2)
    starts = [0, *(chunk[order].diff().nonzero().flatten() + 1).tolist(), len(pairs)]
    with inference(model, options) as device:
        size = min(options.pair_batch, CPU_PAIRS) if device.type == "cpu" else options.pair_batch
        for start, stop in pairwise(starts):
            rows, places = torch.unique(pairs[order[start:stop], 0], return_inverse=True)
            memory = model.project(images.distinct.select(rows).to(device))
            for chosen, sources in zip(order[start:stop].split(size), places.split(size), strict=True):
                states = [ahead[row] for row in local[chosen].tolist()]
                target = _padded(states, texts.distinct[pairs[chosen, 1]]).to(device)
                fused = model.fuse_first(target, memory.select(sources.to(device)))
                found[chosen] = model.match_logits(fused).float().cpu()
    return found[inverse]


def _ahead(model: Matcher, texts: EncodedTexts, rows: Tensor, options: EncodingOptions) -> list[Tensor]:
    """States (L, D) of the distinct texts in `rows`, as far as fusing comes without an image."""
    lengths = torch.tensor([len(texts.states[row]) for row in rows.tolist()])
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for chosen in lengths.argsort().split(options.text_batch):
        with inference(model, options) as device:
            own = rows[chosen]
            target = _padded([texts.states[row] for row in own.tolist()], texts.distinct[own]).to(device)
            states = model.fuse_ahead(target).states.cpu()
        for place, row, length in zip(chosen.tolist(), states, lengths[chosen].tolist(), strict=True):
            found[place] = row[:length].clone()
    return found


def _padded(states: list[Tensor], embeddings: Tensor) -> View:
    """Texts of states (L, D) as one view."""
    lengths = torch.tensor([len(state) for state in states])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, L)
    return View(pad_sequence(states, batch_first=True), mask, embeddings)
