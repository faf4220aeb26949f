"""How inputs are encoded: what a command line can say of it before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EncodingOptions:
    """How inputs are encoded. `precision` other than float32 is autocast, float32 is the weights' own precision;
    embeddings are stored as float32. `max_tokens` of a text, the processor's where it is None.
    """

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    image_batch: int = 64
    text_batch: int = 256
    pair_batch: int = 256
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("image_batch", "text_batch", "pair_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_tokens is not None and self.max_tokens < 3:
            raise ValueError(f"max_tokens is {self.max_tokens}; give 3 or more, a text's first and last token included")
        if self.precision not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"precision is {self.precision!r}; choose float32, bfloat16 or float16")
