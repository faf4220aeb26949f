"""How much should a minus term weigh? `a -b` over photos whose captions tell what is on them.

python benchmarks/minus_terms.py        # a minute; writes benchmarks/results/minus_terms.json

Pairs of things that are on enough photos together, and enough apart. For each weight of the minus term: of the first 20
hits, the share with a, with b, and with a but not b, mean over the pairs. A photo counts as having a thing where one of
its English captions has a word for it.
"""

from __future__ import annotations

import argparse
import io
import re
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from machine import facts, write
from PIL import Image

from cclm.data.shards import read_records
from cclm.models.model import CCLMModel
from cclm.retrieval.query import MINUS_WEIGHT, Query, TextTerm

ROOT = Path(__file__).resolve().parent.parent
THINGS = {
    "dog": "dogs?",
    "snow": r"snow\w*",
    "water": "water|ocean|lake|pool|river|sea|beach",
    "grass": r"grass\w*|field|lawn",
    "people": "people|person|man|woman|men|women|boys?|girls?|child|children|kids?",
    "beach": "beach|sand",
    "ball": "ball|tennis|soccer|football",
    "child": "child|children|boys?|girls?|kids?|baby|toddler",
    "bicycle": "bikes?|bicycle|biker|cyclist",
    "street": "street|road|sidewalk|city",
}
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.5)
FIRST, TOGETHER, APART = 20, 15, 20
WITHIN = {
    ("child", "people"),
    ("people", "child"),
    ("beach", "water"),
    ("water", "beach"),
}  # one is a kind of the other


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=ROOT / "runs/photos/pretrained")
    parser.add_argument("--data", type=Path, default=ROOT / "data/photos/dev")
    given = parser.parse_args()
    model = CCLMModel.from_pretrained(given.model, dtype=torch.float32).eval()
    records = [record for record in read_records(str(given.data)) if record.image and record.captions.get("en")]
    images = model.embed_images([Image.open(io.BytesIO(record.image)) for record in records])  # (N, E)
    captions = [" ".join(record.captions["en"]).lower() for record in records]
    has = {
        thing: np.array([bool(re.search(rf"\b({words})\b", caption)) for caption in captions])
        for thing, words in THINGS.items()
    }
    pairs = [
        (a, b)
        for a, b in permutations(THINGS, 2)
        if (a, b) not in WITHIN and (has[a] & has[b]).sum() >= TOGETHER and (has[a] & ~has[b]).sum() >= APART
    ]
    texts = dict(zip(THINGS, model.embed_texts(list(THINGS)), strict=True))
    found = {}
    for weight in WEIGHTS:
        shares = []
        for a, b in pairs:
            terms = (TextTerm(a), TextTerm(b, -weight)) if weight else (TextTerm(a),)
            query = Query(terms).combined(np.stack([texts[term.text] for term in terms]))
            hits = np.argsort(-(images @ query), kind="stable")[:FIRST]
            shares.append([has[a][hits].mean(), has[b][hits].mean(), (has[a] & ~has[b])[hits].mean()])
        found[f"{weight:g}"] = dict(zip(("a", "b", "a not b"), np.mean(shares, axis=0).round(3).tolist(), strict=True))
    result = {
        "question": "share of the first 20 hits of `a -b` that show a, b, and a but not b, by the weight of -b",
        "photos": len(records),
        "pairs": len(pairs),
        "default": MINUS_WEIGHT,
        "weights": found,
        **facts(torch=torch.__version__),
    }
    write("minus_terms", result)


if __name__ == "__main__":
    main()
