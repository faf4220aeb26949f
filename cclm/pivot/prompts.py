"""Pairs as prompts and answers of a language model: the chat template around a template of ours, marks of pictures.

A template is the user's turn: "<image>\\nDescribe the picture in {language}.", or "{text}<2{code}>" for a language
model from scratch, whose tokenizer has a tag for every language. Its fields: {text} the sentence to translate or the
question, {language} the answer's language in English, {code} its code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from cclm.data.forms import Tokens
from cclm.data.readers import Seen
from cclm.types import VISUAL, ImageInput, ImagesInput, Pair, PromptBatch, PromptInput, StatesInput, VisualPromptBatch

MARK = "<image>"  # where a picture stands in a template
FIELDS = ("text", "language", "code")
CHAT_TEMPLATES = ("own", "plain")
_CONTENT, _ANSWER = "\ue000", "\ue001"  # of Unicode's private use: in no template and no tokenizer's rules
_TAG = re.compile(r"<2([a-z0-9-]+)>")


@dataclass(frozen=True)
class Frame:
    """What stands before a user's turn, between it and the answer, and after the answer."""

    before: str
    between: str
    after: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, chat_template: str) -> Frame:
        """By the tokenizer's own chat template; "plain" is the text, a new line, the answer and the end of text.

        Errors: ValueError where it has no template of its own, or one that leaves out what was said.
        """
        if chat_template not in CHAT_TEMPLATES:
            raise ValueError(f"chat_template is {chat_template!r}; allowed: {', '.join(CHAT_TEMPLATES)}")
        end = tokenizer.eos_token
        if end is None:
            raise ValueError(f"the tokenizer at {tokenizer.name_or_path} has no end-of-text token; use one that has")
        if chat_template == "plain":
            return cls(tokenizer.bos_token or "", "\n", end)
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer at {tokenizer.name_or_path} has no chat template, as base models have none; set "
                "processor.chat_template to plain (text, new line, answer), or take the instruct version"
            )
        said = [{"role": "user", "content": _CONTENT}]
        asked = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*said, {"role": "assistant", "content": _ANSWER}], tokenize=False)
        before, found, between = asked.partition(_CONTENT)
        _, answered, after = whole.partition(_ANSWER)
        if not (found and answered):
            raise ValueError(
                f"the chat template at {tokenizer.name_or_path} leaves out what is said; set "
                "processor.chat_template to plain"
            )
        return cls(before, between, after.rstrip() or end)


@dataclass(frozen=True)
class Template:
    """A user's turn with its fields."""

    text: str

    def __post_init__(self) -> None:
        for name in re.findall(r"{([^{}]*)}", self.text):
            if name not in FIELDS:
                raise ValueError(
                    f"prompt {self.text!r} has a field {{{name}}}; there are {', '.join(f'{{{f}}}' for f in FIELDS)}"
                )
        if not self.text.strip():
            raise ValueError("prompt is empty; give a text such as '<image>\\nDescribe the picture in {language}.'")

    @property
    def pictures(self) -> int:
        """How many it speaks of."""
        return self.text.count(MARK)

    @property
    def names_language(self) -> bool:
        return "{language}" in self.text

    def check_pictures(self, given: int) -> None:
        """Errors: ValueError for a mark without a picture, and the reverse."""
        if given != self.pictures:
            marks, pictures = f"{self.pictures} mark(s) {MARK}", f"{given} picture(s)"
            raise ValueError(f"prompt {self.text!r} has {marks} for {pictures}; give it one for each")

    def filled(self, text: str, language: str, code: str) -> list[str]:
        """The texts before, between and after the marks."""
        values = {"text": text, "language": language, "code": code}
        return [
            re.sub(r"{(\w+)}", lambda field: values[field[1]], piece)  # once: a text may have braces of its own
            for piece in self.text.split(MARK)
        ]


def tags(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Languages that the tokenizer has a tag for, as those of `cclm data tokenizer --language_model true` have."""
    found = (_TAG.fullmatch(token) for token in tokenizer.get_added_vocab())
    return tuple(sorted(match[1] for match in found if match))


def tagged(text: str) -> list[str]:
    """Codes of the languages that a text has tags for, literally."""
    return _TAG.findall(text)


class PromptForm:
    """Makes prompts of one stream's pairs: the target is the answer; a statement's is its label of most weight."""

    def __init__(self, prompter: PromptMaker, template: str) -> None:
        self._prompter = prompter
        self._template = Template(template)

    def tokens(self, pairs: Sequence[Pair]) -> list[Tokens]:
        asked = [self._asked(pair) for pair in pairs]
        languages = [pair.languages[1] for pair in pairs]
        prompts = self._prompter.prompts_of(self._template, [text for text, _ in asked], languages)
        answers = self._prompter.answers([answer for _, answer in asked])
        return [Tokens(*both, len(both[0]) + len(both[1])) for both in zip(prompts, answers, strict=True)]

    def _asked(self, pair: Pair) -> tuple[str, str]:
        """The text within the prompt, and the answer."""
        context = pair.context
        self._template.check_pictures(0 if isinstance(context, str) else len(context) if _several(context) else 1)
        if pair.labels:
            return pair.target, max(pair.labels, key=lambda label: pair.labels[label])
        return (context if isinstance(context, str) else ""), pair.target

    def batch(self, stream: str, pairs: Sequence[Pair], tokens: Sequence[Tokens], seen: Seen | None) -> PromptBatch:
        prompts = self._prompter.padded_prompts([each.first for each in tokens], [each.second for each in tokens])
        keys = tuple(pair.key for pair in pairs)
        if seen is None:
            return PromptBatch(stream, prompts, keys)
        if isinstance(seen, ImagesInput):
            seen = ImageInput(seen.pixel_values.flatten(0, 1))  # (B, N, 3, H, W) -> (I, 3, H, W)
        if not isinstance(seen, ImageInput | StatesInput):
            raise ValueError(f"stream {stream} draws parts of pictures; prompts are about whole ones: ImageCaption")
        return VisualPromptBatch(stream, prompts, keys, seen)


def _several(context: object) -> bool:
    return isinstance(context, tuple)


class PromptMaker:
    """Prompts and answers as token ids, for one tokenizer and one number of states of a picture."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template: str, visual_states: int, max_tokens: int
    ) -> None:
        self.tokenizer = tokenizer
        self.visual_states = visual_states
        self.max_tokens = max_tokens
        self.frame = Frame.of(tokenizer, chat_template)
        self.tags = tags(tokenizer)

    def prompts_of(self, template: Template, texts: Sequence[str], languages: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, VISUAL where the states of pictures go. Errors: ValueError, unknown language."""
        names = {code: self._name(template, code) for code in dict.fromkeys(languages)}
        pieces: list[str] = []
        for text, code in zip(texts, languages, strict=True):
            first, *others = template.filled(self._cut(text), names[code], code)
            parts = [self.frame.before + first, *others]
            parts[-1] += self.frame.between
            pieces += parts
        ids, each = self._encode(pieces), template.pictures + 1
        places = [VISUAL] * self.visual_states
        prompts = []
        for row in range(0, len(ids), each):
            prompt = ids[row]
            for piece in ids[row + 1 : row + each]:
                prompt = [*prompt, *places, *piece]
            prompts.append(prompt)
        return prompts

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each answer, cut after max_tokens, with what ends it."""
        end = self._encode([self.frame.after])[0]
        return [ids[: self.max_tokens] + end for ids in self._encode(texts)]

    def padded_prompts(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]] | None = None, left: bool = False
    ) -> PromptInput:
        """A batch of them (B, L), padded on the right, or on the `left` for writing on from."""
        endings = [[] for _ in prompts] if answers is None else answers
        longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, endings, strict=True))
        ids = torch.full((len(prompts), longest), self.pad, dtype=torch.int64)
        labels = torch.full_like(ids, -100)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(zip(prompts, endings, strict=True)):
            length = len(prompt) + len(answer)
            start = longest - length if left else 0
            ids[row, start : start + length] = torch.tensor([*prompt, *answer])
            labels[row, start + len(prompt) : start + length] = torch.tensor(answer, dtype=torch.int64)
            mask[row, start : start + length] = True
        return PromptInput(ids, mask, labels)

    @property
    def pad(self) -> int:
        """Any id does, as padding is masked; many language models have none of their own."""
        known = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if known is None else known

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Without the tokens that a tokenizer puts around a text: the frame has them."""
        if not texts:
            return []
        if not self.tokenizer.is_fast:
            return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        return [row.ids for row in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _cut(self, text: str) -> str:
        """What of a long text goes into a prompt: its first max_tokens tokens."""
        if len(text.encode()) <= self.max_tokens:  # a token has a byte at least
            return text
        if not self.tokenizer.is_fast:
            return text[: 4 * self.max_tokens]
        found = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return text[: found.offsets[self.max_tokens - 1][1]] if len(found.ids) > self.max_tokens else text

    def _name(self, template: Template, code: str) -> str:
        """The language in English. Errors: ValueError for one that is unknown to the tokenizer or to anyone."""
        if "<2{code}>" in template.text and code not in self.tags:
            there = ", ".join(self.tags) or "none: train it with `cclm data tokenizer --language_model true`"
            raise ValueError(f"language {code!r} is unknown to this model; it has tags for {there}")
        return language_name(code) if template.names_language else code


def language_name(code: str) -> str:
    """de -> German. Errors: ValueError for a code that CLDR does not know."""
    try:
        from babel import Locale, UnknownLocaleError
    except ImportError:
        raise ValueError("prompts that name a {language} need the package babel; pip install 'cclm[pivot]'") from None
    try:
        name = Locale.parse(code, sep="-").get_display_name("en")
    except (UnknownLocaleError, ValueError):
        name = None
    if not name:
        raise ValueError(f"language {code!r} is unknown; give a code such as de, pt or zh") from None
    return str(name)
