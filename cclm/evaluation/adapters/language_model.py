"""A language model that sees: captions by writing, labels by how likely it finds each answer to a prompt.

Shapes: N images, L patches, W width of the image encoder, B prompts, K answers, F first tokens of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cclm.evaluation.embedder import Asked, Images, System
from cclm.evaluation.protocol import Met
from cclm.models.encoding import EncodingOptions, batches, inference
from cclm.types import PromptInput, StatesInput

ANSWERED = "en"  # the language of the answers that tasks declare
MARK = "<image>"  # where a picture stands in a prompt
FEW = 64  # answers that are all spelt to the end at once


class Prompter(Protocol):
    """Pictures and prompts -> tensors. `template`: what the model was trained to answer. `languages`: those that have a
    tag, none where they are named in words.
    """

    template: str | None

    @property
    def languages(self) -> Collection[str]: ...

    @property
    def image_size(self) -> int: ...

    def images(self, images: list[Image.Image]) -> Tensor: ...

    def prompt(self, template: str, language: str, text: str = "", pictures: int = 0) -> list[int]: ...

    def answers(self, texts: Sequence[str]) -> list[list[int]]: ...

    def prompts(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]] | None = None, left: bool = False
    ) -> PromptInput: ...

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]: ...


class Trained(Protocol):
    """What a model's folder tells of its training: languages of texts beside pictures, and those only translated."""

    @property
    def languages(self) -> Collection[str]: ...

    @property
    def translated(self) -> Collection[str]: ...


class VisualLanguageModel(Protocol):
    """A torch module that reads prompts with pictures in them. Its image encoder's first state is the others' mean."""

    processor: Prompter
    notes: Trained

    def image_encoder(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1 + L, W)."""
        ...

    def generate(self, images: StatesInput, prompts: PromptInput, options: Any) -> list[list[int]]: ...

    def label_log_likelihoods(self, images: StatesInput, prompts: PromptInput, labels: Sequence[list[int]]) -> Tensor:
        """(B, K) log probability of the tokens of each label after each prompt, padded on the left."""
        ...


@dataclass(frozen=True)
class PromptOptions:
    """`generation`: how captions are written, as the model takes it; `told`: the same in the form of JSON. `prompt`: of
    captions, None for the one it was trained with. `per_token`: answers are compared by their likelihood per token, not
    as a whole, which ends with what ends an answer. `candidates`: of many answers, those with the likeliest first
    tokens that are compared; 0 for all that may win. `batch`: prompts that are read at once.
    """

    generation: Any
    told: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    per_token: bool = False
    candidates: int = 0
    batch: int = 32
    encoding: EncodingOptions = field(default_factory=EncodingOptions)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; give 1 prompt or more")
        if self.candidates < 0:
            raise ValueError(f"candidates is {self.candidates}; give a number of answers, or 0 for all that may win")


class Prompted:
    """`Captioner` and `Answerer` of a language model that sees."""

    def __init__(self, model: VisualLanguageModel, options: PromptOptions) -> None:
        self.model, self.processor, self.options = model, model.processor, options
        self._last: list[tuple[Image.Image, Tensor]] = []  # pictures that were described, and their states

    @property
    def template(self) -> str:
        """Errors: ValueError where the folder tells none."""
        found = self.options.prompt or self.processor.template
        if found is None:
            raise ValueError("the model's folder tells no prompt that it was trained with; give --caption_prompt")
        return found

    # -- captions ----------------------------------------------------------------------------------------------------

    def check_language(self, language: str) -> None:
        self.processor.prompt(self.template, language, pictures=1)

    def describe(self, images: Images, language: str) -> list[str]:
        asked = self.processor.prompt(self.template, language, pictures=1)
        written: list[str] = []
        for some in batches(self._described(images), self.options.batch):
            with inference(self.model, self.options.encoding) as device:
                prompts = self.processor.prompts([asked] * len(some), left=True).to(device)
                rows = self.model.generate(StatesInput(torch.stack(some)), prompts, self.options.generation)
            written += self.processor.decode(rows)
        return written

    def _described(self, images: Images) -> list[Tensor]:
        """States (1 + L, W) of each. Pictures are described in one language after another, and seen but once."""
        known = {id(image): states for image, states in self._last}
        for some in batches([image for image in images if id(image) not in known], self.options.batch):
            known |= zip(map(id, some), self._states(some), strict=True)
        self._last = [(image, known[id(image)]) for image in images]  # as long as a picture lives, its id is its own
        return [states for _, states in self._last]

    def pooled(self, images: Images) -> Tensor:
        """(N, W) of unit norm, on the CPU: the mean of what the image encoder sees of each picture."""
        means = [self._states(some)[:, 0].float().cpu() for some in batches(images, self.options.batch)]
        return F.normalize(torch.cat(means), dim=-1)

    def _states(self, images: Sequence[Image.Image]) -> Tensor:
        with inference(self.model, self.options.encoding) as device:
            return self.model.image_encoder(self.processor.images(list(images)).to(device))  # (N, 1 + L, W)

    # -- answers -----------------------------------------------------------------------------------------------------

    def check_prompt(self, prompt: str, images: int) -> None:
        self.processor.prompt(prompt, ANSWERED, pictures=images)

    def likeliest(
        self, images: Sequence[Images], asked: Sequence[Asked], prompt: str, answers: Sequence[str]
    ) -> list[int]:
        seen = [self._states(row) for row in images]
        spelt = self.processor.answers(answers)
        best: list[int] = []
        for some in batches(asked, self.options.batch):
            prompts = [self.processor.prompt(prompt, ANSWERED, one.text, len(images[one.row])) for one in some]
            with inference(self.model, self.options.encoding):
                best += self._best([seen[one.row] for one in some], prompts, spelt)
        return best

    def _best(self, seen: Sequence[Tensor], prompts: Sequence[list[int]], spelt: Sequence[list[int]]) -> list[int]:
        """Of each prompt, the row of the likeliest answer. Of many answers none is spelt that cannot win."""
        if len(spelt) <= FEW:
            return self._scores(seen, prompts, spelt).argmax(1).tolist()
        firsts = sorted({answer[0] for answer in spelt})
        place = {token: column for column, token in enumerate(firsts)}
        columns = torch.tensor([place[answer[0]] for answer in spelt])
        # No answer is likelier than its first token alone, as each further one costs.
        most = self._likelihood(seen, prompts, [[token] for token in firsts])[:, columns]  # (B, F) -> (B, K)
        most = most / self._lengths(spelt)
        return [self._winner(seen[row], prompts[row], spelt, most[row]) for row in range(len(prompts))]

    def _winner(self, seen: Tensor, prompt: list[int], spelt: Sequence[list[int]], most: Tensor) -> int:
        order = most.argsort(descending=True, stable=True).tolist()[: self.options.candidates or None]
        best, score = order[0], -torch.inf
        for some in batches(order, FEW):
            if float(most[some[0]]) <= score:
                break
            found, row = self._scores([seen], [prompt], [spelt[answer] for answer in some])[0].max(0)
            if float(found) > score:
                best, score = some[int(row)], float(found)
        return best

    def _scores(self, seen: Sequence[Tensor], prompts: Sequence[list[int]], spelt: Sequence[list[int]]) -> Tensor:
        return self._likelihood(seen, prompts, spelt) / self._lengths(spelt)

    def _lengths(self, spelt: Sequence[list[int]]) -> Tensor:
        return torch.tensor([len(answer) if self.options.per_token else 1 for answer in spelt])

    def _likelihood(self, seen: Sequence[Tensor], prompts: Sequence[list[int]], spelt: Sequence[list[int]]) -> Tensor:
        states = torch.cat(list(seen))  # those of all prompts in reading order
        batch = self.processor.prompts(prompts, left=True).to(states.device)
        return self.model.label_log_likelihoods(StatesInput(states), batch, spelt).float().cpu()


def own_asking(processor: Prompter) -> Callable[[int], str] | None:
    """How a model is asked about so many pictures that knows languages by tags: a small one, from scratch, to which a
    task's wording says nothing. As it was trained, the question behind the pictures where it had none; None for others.
    """
    trained = processor.template
    if not processor.languages or trained is None or MARK not in trained:
        return None
    if "{text}" not in trained:
        before, _, after = trained.rpartition(MARK)
        trained = f"{before}{MARK}{{text}}{after}"
    return lambda images: trained.replace(MARK, MARK * images) if trained.count(MARK) == 1 else trained


def open_language_model(model: VisualLanguageModel, name: str, sha256: str, options: PromptOptions) -> System:
    """A model as the runner asks it. `sha256`: of its folder."""
    adapter, notes = Prompted(model, options), model.notes
    prompt = options.prompt or model.processor.template
    return System(
        name,
        "language model that sees",
        sha256,
        answers=adapter,
        captioner=adapter,
        image_size=model.processor.image_size,
        asking=own_asking(model.processor),
        label_settings={"per_token": options.per_token, "candidates": options.candidates},
        caption_settings={"prompt": prompt, "generation": options.told},
        met=Met(frozenset(notes.languages), frozenset(notes.translated)),
    )
