"""How a pretrained folder came to hold these weights and not a later step's: written at the choice, told in reports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from cclm.storage import CHOICE_FILE as FILE
from cclm.storage import whole_file

# Splits that a benchmark reports on; so is all of MaRVL but its few-shot files.
_TEST = re.compile(r"(?:^|[-_])test|^marvl-[a-z]+$", re.IGNORECASE)


@dataclass(frozen=True)
class Choice:
    """The best step of a training, by one metric on one dataset."""

    metric: str
    value: float
    step: int
    data: str
    test: bool  # that dataset is a test split: the numbers on it are no longer those of unseen data

    def __str__(self) -> str:
        where = f"{self.data}, A TEST SPLIT" if self.test else self.data
        return f"step {self.step:,}, the best by {self.metric} ({self.value:.2f}) on {where}"

    def write(self, folder: Path | str) -> None:
        with whole_file(Path(folder) / FILE) as partial:
            partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path | str) -> Self | None:
        """None where the folder holds the last step. Errors: ValueError where the file is damaged."""
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, or export the model again") from None


def is_test(tars: Iterable[str]) -> bool:
    """Whether any of these files lies in a test split by its folder's name, whatever name or link led to it."""
    return any(_TEST.search(Path(tar).resolve().parent.name) for tar in tars)
