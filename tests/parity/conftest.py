"""The recorded reference models: converted once, and what they were fed and gave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.models.convert import ConvertOptions, convert
from cclm.models.families import SWIN, X2VLM, Naming
from cclm.models.model import CCLMModel
from cclm.objectives.base import Draft
from cclm.objectives.masked_lm import MaskedLM
from cclm.types import PairBatch, TextInput

ORACLE = Path(__file__).resolve().parents[3] / "shared" / "oracle"
FAMILIES = ("cclm_swin", "cclm_x2vlm")


@dataclass(frozen=True)
class Recorded:
    """One family: its folder and what was recorded of it."""

    folder: Path
    expected: dict[str, Any]

    def model(self, name: str = "pretrain") -> CCLMModel:
        """A converted checkpoint, with storage of its own and in evaluation mode, as everything was recorded."""
        converted = convert(str(self.folder / f"{name}.th"), ConvertOptions())
        model = CCLMModel(converted.config)
        model.load_state_dict(converted.state)
        return model.eval()


def recorded(family: str) -> Recorded:
    if not (ORACLE / family / "expected.pt").is_file():
        pytest.skip(f"needs the recorded reference outputs, which are not at {ORACLE.name}/{family}")
    return Recorded(ORACLE / family, torch.load(ORACLE / family / "expected.pt", weights_only=True))


@pytest.fixture(scope="module", params=FAMILIES)
def reference(request: pytest.FixtureRequest) -> Recorded:
    return recorded(request.param)


@pytest.fixture(scope="module")
def swin() -> Recorded:
    return recorded("cclm_swin")


def text(recorded_text: dict[str, Tensor], ids: str = "text_ids") -> TextInput:
    return TextInput(recorded_text[ids], recorded_text["text_atts"].bool())


class RecordedMasks(MaskedLM):
    """Masked LM with the masks that the reference drew."""

    def __init__(self, recorded_text: dict[str, Tensor]) -> None:
        super().__init__()
        self.recorded = recorded_text

    def draft(self, model: CCLMModel, batch: PairBatch, generator: torch.Generator | None) -> Draft:
        return Draft(text(self.recorded, "text_ids_masked"), self.recorded["masked_pos"], self.recorded["masked_ids"])


class Draws:
    """Hands out the reference's draws of wrong partners in their order, checking the weights that they came from."""

    def __init__(self, negatives: list[tuple[Tensor, int]]) -> None:
        self.waiting = list(negatives)

    def __call__(self, weights: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        assert count == 1
        rows, self.waiting = self.waiting[: len(weights)], self.waiting[len(weights) :]
        torch.testing.assert_close(weights, torch.stack([row for row, _ in rows]), rtol=0, atol=1e-5)
        return torch.tensor([[drawn] for _, drawn in rows])


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`draws(negatives)` makes the next objectives use them; all must be used up by the test's end."""
    made: list[Draws] = []

    def install(negatives: list[tuple[Tensor, int]]) -> None:
        made.append(Draws(negatives))
        monkeypatch.setattr(torch, "multinomial", made[-1])

    yield install
    assert not any(draw.waiting for draw in made)


def original_gradients(model: CCLMModel) -> dict[str, Tensor]:
    """The gradient of every parameter under the original's name; of `temp`, not of its logarithm."""
    naming = Naming(SWIN if "swin" in model.config.backbone else X2VLM, model.config, bare=False)
    found = {}
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if name == "logit_scale":
            gradient = -gradient / model.config.temperature
        found[naming.theirs(name)[0]] = gradient
    return found
