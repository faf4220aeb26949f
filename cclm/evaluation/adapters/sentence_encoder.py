"""Models of sentence-transformers: of texts, or of texts and images.

Shapes: N images, T texts, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cclm.errors import first_line
from cclm.evaluation.embedder import Images, System
from cclm.models.encoding import EncodingOptions
from cclm.models.names import quiet


class SentenceEncoder:
    """`Embedder`, or `TextEmbedder` where the model takes texts alone. Prompts are those that the model defaults to."""

    def __init__(self, model: object, encoding: EncodingOptions) -> None:
        self.model, self.encoding = model, encoding

    def embed_texts(self, texts: Sequence[str], language: str) -> Tensor:
        return self._embedded(list(texts), self.encoding.text_batch)

    def embed_images(self, images: Images) -> Tensor:
        return self._embedded(list(images), self.encoding.image_batch)

    def _embedded(self, inputs: list, batch: int) -> Tensor:
        found = self.model.encode(
            inputs, batch_size=batch, show_progress_bar=False, convert_to_tensor=True, normalize_embeddings=True
        )
        return found.float().cpu()


def open_sentence_encoder(name: str, sha256: str, device: torch.device, encoding: EncodingOptions) -> System:
    """Errors: ValueError, one line, where the package is missing or the folder damaged."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ValueError(
            f"{name} is a model of sentence-transformers; `pip install sentence-transformers`, then try again"
        ) from None
    try:
        with quiet():
            model = SentenceTransformer(name, device=str(device))
    except Exception as error:  # damaged files raise whatever the reading of them does
        raise ValueError(f"{name} cannot be loaded ({first_line(error)}); check the path or name") from None
    if encoding.max_tokens is not None:
        model.max_seq_length = min(encoding.max_tokens, model.max_seq_length or encoding.max_tokens)
    shows = "image" in model.modalities
    kind = f"sentence-transformers model of {'texts and images' if shows else 'texts'}"
    system = System.of(SentenceEncoder(model.eval(), encoding), name, kind, sha256)
    return system if shows else replace(system, dual=None)
