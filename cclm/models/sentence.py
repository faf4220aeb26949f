"""A pretrained folder as a module of sentence-transformers (which cclm does not need), for texts and PIL images.

`SentenceTransformer(folder, trust_remote_code=True)`: the flag allows a class of another package than its own, ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from PIL import Image
from torch import Tensor, nn

from cclm.models.model import CCLMModel

MODULES = "modules.json"


def write_modules(folder: Path | str) -> None:
    """Make a pretrained folder, of a model with projections, one that SentenceTransformer loads."""
    module = {"idx": 0, "name": "0", "path": "", "type": f"{__name__}.{CrossViewModule.__name__}"}
    (Path(folder) / MODULES).write_text(json.dumps([module], indent=2) + "\n", encoding="utf-8")


class CrossViewModule(nn.Module):
    """Texts or images -> embeddings: those of `embed_texts` and `embed_images`."""

    modalities, save_in_root = ("text", "image"), True

    def __init__(self, model: CCLMModel) -> None:
        super().__init__()
        self.model, self.tokenizer, self.max_seq_length = model, model.processor.tokenizer, model.processor.max_tokens

    def preprocess(self, inputs: list[str] | list[Image.Image]) -> dict[str, Tensor]:
        if isinstance(inputs[0], Image.Image):
            return {"pixel_values": self.model.processor.images(inputs)}
        return dict(vars(self.model.processor.texts(inputs, self.max_seq_length)))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        encode = self.model.encode_image if "pixel_values" in features else self.model.encode_text
        return features | {"sentence_embedding": encode(**features).embedding}  # (B, E)

    def get_embedding_dimension(self) -> int:
        return self.model.config.embedding_size

    tokenize, get_sentence_embedding_dimension = preprocess, get_embedding_dimension  # as release 5 calls them

    def save(self, path: str, *_: object, **__: object) -> None:
        self.model.save_pretrained(path)
        self.model.processor.save_pretrained(path)

    @classmethod
    def load(cls, path: str) -> Self:
        """Errors: as CCLMModel.from_pretrained and its `processor`."""
        return cls(CCLMModel.from_pretrained(path))
