"""Is the heat of an explanation where the text's picture is? Two photos side by side, the caption of one of them.

python benchmarks/explanation.py        # some minutes; writes benchmarks/results/explanation.json

Every pair of photos (halves of 144 x 288 pixels cut from their middles) is seen both ways round, with one caption of
each: whatever the model prefers, left or right, cancels out. `share`: of all heat, how much is on the half that the
caption is of, 0.5 by chance; columns of patches on the seam are left out. `hits`: how often the hottest patch is on
it. Compared: attention alone; attention times positive gradient of the log-odds of a match, as ALBEF draws it, both by
layer and summed; and `explain`'s heat, all of it and the words' own. `words_apart`: both captions as one text, one
after the other, and of each word the share on the half that its caption is of.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import facts, write
from PIL import Image, ImageOps
from torch import Tensor

from cclm.data.shards import read_records
from cclm.models.model import CCLMModel
from cclm.types import Memory, Record, View

ROOT = Path(__file__).resolve().parent.parent
RESAMPLES = 2000


def canvases(records: list[Record], language: str, size: int) -> Iterator[tuple[Image.Image, str, bool]]:
    """Two photos as one picture, a caption, and whether it is of the right half: four for every two records."""
    for first, second in zip(records[::2], records[1::2], strict=False):
        for left, right in ((first, second), (second, first)):
            canvas = Image.new("RGB", (size, size))
            for place, record in enumerate((left, right)):
                whole = ImageOps.fit(Image.open(io.BytesIO(record.image)).convert("RGB"), (size, size))
                canvas.paste(whole.crop((size // 4, 0, size // 4 + size // 2, size)), (place * size // 2, 0))
            yield canvas, left.captions[language][0], False
            yield canvas, right.captions[language][0], True


def attention_heats(model: CCLMModel, context: View, target: View) -> dict[str, np.ndarray]:
    """Heat (S,) by attention alone, and by attention times gradient, one fusion layer at a time."""
    attentions = [block.cross_attention for block in model.fusion.blocks]
    read: list[Tensor] = []
    mixed: list[Tensor] = []
    hooks = [a.query.register_forward_hook(lambda _, given, made: read.append(made)) for a in attentions]
    hooks += [a.out.register_forward_pre_hook(lambda _, given: mixed.append(given[0])) for a in attentions]
    try:
        memory: Memory = model.project(context)
        logits = model.match_logits(model.fuse(target, memory))[0]
    finally:
        for hook in hooks:
            hook.remove()
    slopes = torch.autograd.grad(logits[1] - logits[0], mixed)
    found = {}
    for layer, attention in enumerate(attentions):
        queries, outer = (
            states.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for states in (read[layer], slopes[layer])
        )
        keys, values = memory.keys[layer], memory.values[layer]
        weights = (queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])).softmax(-1)  # (1, H, L, 1 + S)
        gradient = outer @ values.transpose(-1, -2)
        for way, heat in (("attention", weights), ("attention x gradient", weights * gradient.clamp(min=0))):
            found[f"{way}/{layer}"] = heat[0, :, :, 1:].sum((0, 1)).detach().numpy()
    for way in ("attention", "attention x gradient"):
        found[f"{way}/all"] = sum(found[f"{way}/{layer}"] for layer in range(len(attentions)))
    return found


def placed(patches: np.ndarray, right: bool) -> tuple[float, float]:
    """(share, hit) of heat (S,) on the half that the caption is of."""
    side = math.isqrt(len(patches))
    grid = patches.reshape(side, side)
    halves = [grid[:, : side // 2], grid[:, side - side // 2 :]]
    own, other = halves[right], halves[not right]
    total = float(own.sum() + other.sum())
    return (float(own.sum()) / total if total else 0.5), float(own.max() > other.max())


def ways(model: CCLMModel, canvas: Image.Image, caption: str) -> dict[str, np.ndarray]:
    """Way of making heat -> (S,)."""
    explained = model.explain(canvas, caption)
    with torch.no_grad():
        context = model.encode_image(model.processor.images([canvas]))
        tokens = model.processor.texts([caption])
        target = model.encode_text(tokens.input_ids, tokens.attention_mask)
    words = (explained.heat * explained.shares[:, None, None]).sum(0)  # up to a word's own scale
    return attention_heats(model, context, target) | {
        "explain": explained.overall.ravel(),
        "explain, words": words.ravel(),
    }


def words_apart(model: CCLMModel, cases: list[tuple[Image.Image, str, bool]]) -> list[tuple[float, float]]:
    """(share, hit) of the words of both captions of each picture, as one text in either order; mean of each text."""
    found = []
    for (canvas, left, _), (_, right, _) in zip(cases[::2], cases[1::2], strict=True):
        for texts in ((left, right), (right, left)):
            explained = model.explain(canvas, " ".join(texts))
            first = len(texts[0].split())
            own = [
                placed(heat.ravel(), (place >= first) == (texts[1] == right))
                for place, heat in enumerate(explained.heat)
            ]
            found.append(tuple(np.mean(own, axis=0).tolist()))
    return found


def measured(model: CCLMModel, cases: list[tuple[Image.Image, str, bool]]) -> dict[str, np.ndarray]:
    """Way -> (share, hit) of each case (C, 2)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for canvas, caption, right in cases:
        for name, heat in ways(model, canvas, caption).items():
            found.setdefault(name, []).append(placed(heat, right))
    return {name: np.array(rows) for name, rows in (found | {"words_apart": words_apart(model, cases)}).items()}


def summary(rows: np.ndarray) -> dict[str, Any]:
    """Means, with an interval of 95 % of the share over resampled pairs (four cases each)."""
    pairs = rows[:, 0].reshape(-1, 4).mean(1)
    generator = np.random.default_rng(0)
    means = pairs[generator.integers(len(pairs), size=(RESAMPLES, len(pairs)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {
        "share": round(float(rows[:, 0].mean()), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
        "hits": round(float(rows[:, 1].mean()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=ROOT / "runs/photos/pretrained")
    parser.add_argument("--data", type=Path, default=ROOT / "data/photos/dev")
    parser.add_argument("--languages", default="en,de", help="of the captions")
    parser.add_argument("--pairs", type=int, default=150, help="of photos, in each language")
    given = parser.parse_args()
    model = CCLMModel.from_pretrained(given.model, dtype=torch.float32).eval()
    languages = {}
    for language in given.languages.split(","):
        records = (record for record in read_records(str(given.data)) if record.image and record.captions.get(language))
        chosen = list(islice(records, 2 * given.pairs))
        found = measured(model, list(canvases(chosen, language, model.processor.image_size)))
        languages[language] = {"pairs": len(chosen) // 2} | {name: summary(rows) for name, rows in found.items()}
    result = {
        "question": "how much of an explanation's heat is on the half of a picture that the text is of (chance 0.5)",
        "model": f"{given.model.parent.name}/{given.model.name}",
        "languages": languages,
        "aims": {"share of explain": "its interval above 0.5, and above that of attention/all"},
        **facts(torch=torch.__version__),
    }
    write("explanation", result)


if __name__ == "__main__":
    main()
