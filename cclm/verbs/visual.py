"""Language models that see, handed to evaluations, which know them by what they do alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from jsonargparse import ArgumentParser, Namespace

    from cclm.evaluation.embedder import System


def add_writing(parser: ArgumentParser) -> None:
    """How captions are written."""
    from cclm.pivot.generation import GenerationOptions

    parser.add_argument("--generation", type=GenerationOptions, default=GenerationOptions(), help="of captions")
    parser.add_argument("--caption_prompt", default=None, help="as the model was trained by default")
    parser.add_argument("--prompts", type=int, default=32, help="that a language model reads at once")
    parser.add_argument("--language_model", default=None, help="where the language model lies, if it has been moved")


def visual(given: Namespace, device: torch.device) -> Callable[[str, str], System]:
    """What opens such a folder, for `open_system`. Errors: ValueError for options that cannot be."""
    from cclm.evaluation.adapters.language_model import PromptOptions, open_language_model

    options = PromptOptions(
        given.generation,
        asdict(given.generation),
        given.caption_prompt,
        given.get("per_token", False),
        given.get("candidates", 0),
        given.prompts,
        given.encoding,
    )

    def opened(name: str, sha256: str) -> System:
        from cclm.pivot.image_to_text import ImageToText

        model = ImageToText.from_pretrained(name, device, given.language_model)
        return open_language_model(model, name, sha256, options)

    return opened
