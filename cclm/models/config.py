"""Geometry of a model, and which heads it has."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from cclm.models.layers import Layout, Vocabulary

HEADS = ("match", "mlm", "box", "classify", "assign", "answer")


@strict
class CCLMConfig(PreTrainedConfig):
    """Geometry of a model. The defaults are XLM-R base beside a ViT-B/16.

    Both released families are settings of it: CCLM-3M/4M has 6 text + 6 fusion layers cut from one stack,
    `position_offset=0` and a tied decoder; CCLM-X2VLM a whole XLM-R and a separate fusion stack with
    `fusion_norm_eps=1e-12`, `position_offset=2`, `tie_word_embeddings=False` (reference/cclm.md 1).

    `embedding_size` 0 leaves the projections out, and with them retrieval. `heads`: "match" and "mlm" (pretraining),
    "box" (regions), "classify" (one of `labels`), "assign" (which of two images a text is about) and "answer" (a
    decoder that spells answers). How a text meets `images_per_text` n > 1 images: "interleaved" has n blocks per
    fusion layer, each reading its own image through shared keys and values (CCLM-3M/4M); "apart" fuses the text with
    each image, and the classify head reads all first states side by side (CCLM-X2VLM).
    """

    model_type = "cclm"

    vocab_size: int = 250002
    hidden_size: int = 768
    text_layers: int = 12
    fusion_layers: int = 6
    num_heads: int = 12
    intermediate_size: int = 3072
    embedding_size: int = 256
    max_positions: int = 514
    position_offset: int = 2
    pad_token_id: int | None = 1
    mask_token_id: int | None = None  # None: the last id, where XLM-R and our tokenizers put it
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    patch_dropout: float | int = 0.0  # share of an image's patches that a training step leaves out (FLIP)
    norm_eps: float = 1e-5
    fusion_norm_eps: float = 1e-5
    pre_norm: bool = False
    pooling: str = "first"  # which text state becomes the embedding: "first", or the "mean" of all
    fuse_embeddings: bool = False  # matching also reads the product of both embeddings; with pooling "mean"
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    temperature: float = 0.07
    backbone: str = "vit_base_patch16_224"
    backbone_options: dict[str, Any] | None = None
    image_size: int = 224
    heads: list[str] | None = None  # None: match and mlm, those of pretraining
    labels: list[str] | None = None  # of the classify head, in the order of its logits; what "answer" chooses among
    images_per_text: int = 1  # NLVR2 and MaRVL: 2
    several_images: str = "interleaved"  # or "apart"; see above
    answer_layers: int = 6

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("vocab_size", "hidden_size", "num_heads", "intermediate_size", "max_positions", "images_per_text"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")
        for name in ("text_layers", "fusion_layers", "embedding_size", "answer_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, from 0 to below 1")
        if self.pooling not in ("first", "mean"):
            raise ValueError(f'pooling is {self.pooling!r}; choose "first" or "mean"')
        if self.fuse_embeddings and self.pooling == "first":
            raise ValueError('fuse_embeddings needs pooling "mean": the first fused state is a token\'s own otherwise')
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout is {self.patch_dropout}; it is a share of the patches, from 0 to below 1")
        self._check_heads()
        if self.mask_token_id is None:
            self.mask_token_id = self.vocab_size - 1

    def _check_heads(self) -> None:
        self.heads = ["match", "mlm"] if self.heads is None else list(self.heads)
        if unknown := [name for name in self.heads if name not in HEADS]:
            raise ValueError(f"heads names {unknown[0]!r}; choose among {', '.join(HEADS)}")
        if "classify" in self.heads and not self.labels:
            raise ValueError('the head "classify" needs labels; list them')
        if len(set(self.labels or ())) != len(self.labels or ()):
            raise ValueError("labels names a label twice; list every label of the classify head once")
        if self.several_images not in ("interleaved", "apart"):
            raise ValueError(f'several_images is {self.several_images!r}; choose "interleaved" or "apart"')
        if "assign" in self.heads and (self.images_per_text, self.several_images) != (2, "interleaved"):
            raise ValueError('the head "assign" needs images_per_text 2 and several_images "interleaved"')

    def layout(self, norm_eps: float) -> Layout:
        return Layout(
            width=self.hidden_size,
            heads=self.num_heads,
            intermediate=self.intermediate_size,
            dropout=float(self.dropout),
            attention_dropout=float(self.attention_dropout),
            norm_eps=norm_eps,
            pre_norm=self.pre_norm,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.vocab_size, self.max_positions, self.pad_token_id, self.position_offset)

    @property
    def interleaved(self) -> int:
        """Blocks per fusion layer, each with an image of its own."""
        return self.images_per_text if self.several_images == "interleaved" else 1
