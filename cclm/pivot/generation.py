"""How an answer is written: greedily, by beams or by sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig


_MOST_BEAMS = 1000  # of which each has states of its own


@dataclass(frozen=True)
class GenerationOptions:
    """`max_tokens`: of an answer. `beams`: 1 is greedy. `sample`: draw tokens, as `temperature`, `top_k` (0: all) and
    `top_p` say, from `seed`. `length_penalty` above 0 favours longer ones of several beams; no `no_repeat` tokens in a
    row come twice in an answer.
    """

    max_tokens: int = 64
    beams: int = 1
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    no_repeat: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"max_tokens": 1, "beams": 1, "top_k": 0, "no_repeat": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"generation: {name}={getattr(self, name)}; give {bound} or more")
        if not self.temperature >= 0.01:
            raise ValueError(
                f"generation: temperature={self.temperature}; give 0.01 or more (for the likeliest token set sample to "
                "false)"
            )
        if self.beams > _MOST_BEAMS:
            raise ValueError(f"generation: beams={self.beams}; give {_MOST_BEAMS} or fewer, as 4")
        if not 0.01 <= self.repetition_penalty <= 100 or not abs(self.length_penalty) <= 100:
            raise ValueError(
                f"generation: repetition_penalty={self.repetition_penalty}, length_penalty={self.length_penalty}; give "
                "0.01 to 100, and -100 to 100"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"generation: seed={self.seed}; give a number from 0 to 2^64 - 1")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"generation: top_p={self.top_p} is a share of probability, above 0 up to 1")
        for name, default in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0)):
            if not self.sample and getattr(self, name) != default:
                raise ValueError(f"generation: {name}={getattr(self, name)} is for sampling; set sample to true, too")


def generation_config(options: GenerationOptions, pad: int, stop: Sequence[int]) -> GenerationConfig:
    """`options` in transformers' terms."""
    from transformers import GenerationConfig

    settings = {
        "max_new_tokens": options.max_tokens,
        "num_beams": options.beams,
        "do_sample": options.sample,
        "repetition_penalty": options.repetition_penalty,
        "no_repeat_ngram_size": options.no_repeat,
    }
    if options.sample:  # transformers warns of what has no effect
        settings |= {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    if options.beams > 1:
        settings |= {"length_penalty": options.length_penalty}
    return GenerationConfig(pad_token_id=pad, eos_token_id=list(stop), **settings)
