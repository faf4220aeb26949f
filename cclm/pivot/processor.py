"""Pictures and prompts -> tensors, exactly as the pivot model beside it was trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from transformers import PreTrainedTokenizerBase

from cclm.models.processor import CCLMProcessor, ImageSettings, read_tokenizer
from cclm.pivot.prompts import PromptForm, PromptMaker, Template
from cclm.storage import whole_file
from cclm.types import PromptInput

FILE = "pivot_processor.json"


class PivotProcessor(CCLMProcessor):
    """A language model's tokenizer, its prompts, and the image settings of what it sees.

    `visual_states`: places that a picture takes in a prompt. `max_tokens`: of a text within a prompt and of an answer.
    `chat_template`: "own" of the tokenizer, or "plain" where it has none. `template`: the prompt it was trained with,
    which is asked where nothing else is.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image: ImageSettings | None = None,
        max_tokens: int = 64,
        visual_states: int = 0,
        chat_template: str = "own",
        template: str | None = None,
    ) -> None:
        self.maker = PromptMaker(tokenizer, chat_template, visual_states, max_tokens)
        if tokenizer.pad_token_id is None:  # masked wherever it stands, so any token does
            tokenizer.pad_token = tokenizer.eos_token
        super().__init__(tokenizer, image, max_tokens)
        self.chat_template = chat_template
        self.template = template

    @property
    def visual_states(self) -> int:
        return self.maker.visual_states

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that the tokenizer has a tag for; none for one that names languages in words."""
        return self.maker.tags

    def form(self, template: str, max_tokens: int | None = None) -> PromptForm:
        """How a stream's pairs become prompts. Errors: ValueError for a template with unknown fields."""
        tighter = PromptMaker(self.tokenizer, self.chat_template, self.visual_states, max_tokens or self.max_tokens)
        return PromptForm(tighter, template)

    def prompt(self, template: str, language: str, text: str = "", pictures: int = 0) -> list[int]:
        """Token ids of one prompt about so many `pictures`. Errors: ValueError as of `Template`; unknown language."""
        asked = Template(template)
        asked.check_pictures(pictures)
        return self.maker.prompts_of(asked, [text], [language])[0]

    def longest(self, template: str, language: str, max_tokens: int | None = None) -> tuple[int, int]:
        """Tokens of the longest prompt that the template makes, and of the longest answer. Errors: as of `prompt`."""
        most, asked = max_tokens or self.max_tokens, Template(template)
        prompt = len(self.prompt(template, language, pictures=asked.pictures))
        return prompt + most * template.count("{text}"), len(self.answers([""])[0]) + most

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of answers, with what ends them."""
        return self.maker.answers(texts)

    def prompts(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]] | None = None, left: bool = False
    ) -> PromptInput:
        """A batch (B, L), padded on the right, or on the `left` for writing on from."""
        return self.maker.padded_prompts(prompts, answers, left)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of answers, without what ends them."""
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def save_pretrained(self, folder: str | Path) -> None:
        self.tokenizer.save_pretrained(str(folder))
        told = {
            "image": asdict(self.settings),
            "max_tokens": self.max_tokens,
            "visual_states": self.visual_states,
            "chat_template": self.chat_template,
            "template": self.template,
        }
        with whole_file(Path(folder) / FILE) as path:
            path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Errors: ValueError where the folder has none, or it is damaged."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"no {FILE} in {folder}; a folder of a pivot model written by `cclm fit` has one")
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            image = {name: tuple(v) if isinstance(v, list) else v for name, v in told.pop("image").items()}
            return cls(read_tokenizer(str(folder)), ImageSettings(**image), **told)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged ({error}); export the model again") from None


@dataclass(frozen=True)
class PivotProcessorSettings:
    """What a config says of prompts. `tokenizer`: a language model's folder or hub name; see `PivotProcessor`."""

    tokenizer: str
    image: ImageSettings = ImageSettings()
    max_tokens: int = 64
    chat_template: str = "own"
    template: str | None = None

    def build(self, visual_states: int = 0) -> PivotProcessor:
        """`visual_states`: places that a picture takes, as the bridge has them. Errors: ValueError, no tokenizer."""
        tokenizer = read_tokenizer(self.tokenizer)
        return PivotProcessor(tokenizer, self.image, self.max_tokens, visual_states, self.chat_template, self.template)
