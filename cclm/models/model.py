"""The model: two encoders, one fusion transformer, three heads. Read this first.

An image or a text becomes a `View` (`encode_image`, `encode_text`); a target text is read in the light of another
view (`fuse`), and nothing in there depends on what kind of view that is.
Shapes: B pairs, L tokens or patches, D width, E embedding, V vocabulary, M masked positions, W backbone width.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.dataclasses import strict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from cclm.errors import first_line
from cclm.models.heads import MaskedLMHead, MatchHead, Projection
from cclm.models.layers import Dropout, Embeddings, Layout, Stack, Vocabulary
from cclm.models.names import is_here, model_type, quiet
from cclm.models.vision import ImageEncoder
from cclm.types import Memory, View


@strict
class CCLMConfig(PreTrainedConfig):
    """Geometry of a model. The defaults are XLM-R base beside a ViT-B/16.

    Both released families are settings of it: CCLM-3M/4M has 6 text + 6 fusion layers cut from one stack,
    `position_offset=0` and a tied decoder; CCLM-X2VLM a whole XLM-R and a separate fusion stack with
    `fusion_norm_eps=1e-12`, `position_offset=2`, `tie_word_embeddings=False` (reference/cclm.md 1).
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

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("vocab_size", "hidden_size", "num_heads", "intermediate_size", "embedding_size", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")
        for name in ("text_layers", "fusion_layers"):
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
        if self.mask_token_id is None:
            self.mask_token_id = self.vocab_size - 1

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


class CCLMModel(PreTrainedModel):
    """Cross-view language model (Zeng et al., ACL 2023; reference/cclm.md 1 and 2)."""

    config_class = CCLMConfig
    base_model_prefix = "cclm"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False  # ours is `checkpoint_activations`, over our own stacks
    _supports_sdpa = True
    _tied_weights_keys = {"mlm_head.decoder.weight": "embeddings.word.weight"}

    def __init__(self, config: CCLMConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.image_encoder = ImageEncoder(config.backbone, config.image_size, config.backbone_options)
        self.image_adapter = ImageAdapter(self.image_encoder.width, config)
        self.embeddings = Embeddings(config.layout(config.norm_eps), config.vocabulary)
        self.text_encoder = Stack(config.layout(config.norm_eps), config.text_layers, cross=False)
        self.fusion = Stack(config.layout(config.fusion_norm_eps), config.fusion_layers, cross=True)
        self.image_projection = Projection(width, config.embedding_size)
        self.text_projection = Projection(width, config.embedding_size)
        self.match_head = MatchHead(width, 2)
        self.embedding_fusion = nn.Linear(config.embedding_size, width) if config.fuse_embeddings else None
        self.mlm_head = MaskedLMHead(width, config.vocab_size, config.norm_eps)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))
        self.post_init()

    # -- views -------------------------------------------------------------------------------------------------------

    def image_states(self, pixel_values: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) -> backbone states (B, 1 + L, W): the part to cache when the backbone is frozen."""
        return self.image_encoder(pixel_values)

    def encode_image_states(self, states: Tensor) -> View:
        """Backbone states (B, 1 + L, W) -> view."""
        states = self._drop_patches(states)
        states = self.image_adapter(states)  # (B, 1 + L, D)
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return View(states, mask, self.image_projection(states[:, 0]))

    def _drop_patches(self, states: Tensor) -> Tensor:
        """In training, a random part of the patches, and their mean in the first place: (B, 1 + L', W)."""
        if not self.training or not self.config.patch_dropout:
            return states
        patches = states[:, 1:]  # (B, L, W)
        count = max(1, round(patches.shape[1] * (1 - self.config.patch_dropout)))
        kept = torch.rand(patches.shape[:2], device=states.device).argsort(1)[:, :count]  # (B, L')
        patches = patches.gather(1, kept.unsqueeze(-1).expand(-1, -1, patches.shape[2]))
        return torch.cat([patches.mean(1, keepdim=True), patches], dim=1)

    def encode_image(self, pixel_values: Tensor) -> View:
        """Pixels (B, 3, H, W) -> view."""
        return self.encode_image_states(self.image_states(pixel_values))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> View:
        """Token ids (B, L) and their mask (B, L) -> view. Errors: ValueError where L exceeds the position table."""
        mask = attention_mask.bool()
        states = self.text_encoder(self.embeddings(input_ids), mask)  # (B, L, D)
        return View(states, mask, self.text_projection(self._pool(states, mask)))

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.config.pooling == "first":
            return states[:, 0]
        weights = mask.unsqueeze(-1).to(states.dtype)  # (B, L, 1)
        return (states * weights).sum(1) / weights.sum(1)

    # -- fusion ------------------------------------------------------------------------------------------------------

    def project(self, context: View) -> Memory:
        """Keys and values of `context` for every fusion layer, to be read by any number of targets."""
        projected = [block.cross_attention.project(context.states) for block in self.fusion.blocks]
        keys, values = zip(*projected, strict=True)
        return Memory(keys, values, context.mask, context.embedding)

    def fuse(self, target: View, context: View | Memory | None) -> Tensor:
        """The target text (B, L, D) read in the light of the context (B views, any kind) -> fused states (B, L, D).

        The first fused state, which `match_logits` reads, is pooled as embeddings are (`pooling`); the token there is
        `<s>`, which is never masked, so that `mlm_logits` does not miss its own state.
        Without a context the same layers only attend to the target itself (translation language modelling).
        """
        if context is None:
            return self.fusion(target.states, target.mask)
        memory = self.project(context) if isinstance(context, View) else context
        mask = memory.mask[:, None, None, :]  # (B, 1, 1, S)
        contexts = [(keys, values, mask) for keys, values in zip(memory.keys, memory.values, strict=True)]
        fused = self.fusion(target.states, target.mask, contexts)
        if self.config.pooling == "first":
            return fused
        first = self._pool(fused, target.mask)  # (B, D)
        if self.embedding_fusion is not None:
            product = self.config.embedding_size * target.embedding * memory.embedding  # (B, E), its mean the cosine
            first = first + self.embedding_fusion(product)
        return torch.cat([first.unsqueeze(1), fused[:, 1:]], dim=1)

    # -- heads -------------------------------------------------------------------------------------------------------

    def match_logits(self, fused: Tensor) -> Tensor:
        """Fused states (B, L, D) -> (B, 2); class 1 = the target and the context are two views of one thing."""
        return self.match_head(fused[:, 0])

    def mlm_hidden(self, fused: Tensor, positions: Tensor) -> Tensor:
        """Fused states (B, L, D) at `positions` (B, M), right before the decoder -> (B, M, D)."""
        index = positions.unsqueeze(-1).expand(-1, -1, fused.shape[-1])  # (B, M, D)
        return self.mlm_head.hidden(fused.gather(1, index))

    def mlm_logits(self, fused: Tensor, positions: Tensor) -> Tensor:
        """Fused states (B, L, D) at `positions` (B, M) -> vocabulary logits (B, M, V)."""
        return self.mlm_head.decoder(self.mlm_hidden(fused, positions))

    def scale(self) -> Tensor:
        """The inverse temperature, held in the reference's range 1/0.5 .. 1/0.001 (Pretrain clamps `temp` likewise)."""
        return self.logit_scale.clamp(math.log(1 / 0.5), math.log(1 / 0.001)).exp()

    # -- transformers ------------------------------------------------------------------------------------------------

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        """Match logits (B, 2) of B texts beside B images; the training objectives call the parts instead."""
        return self.match_logits(
            self.fuse(self.encode_text(input_ids, attention_mask), self.encode_image(pixel_values))
        )

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.mlm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.mlm_head.decoder = value

    def checkpoint_activations(self, parts: tuple[str, ...] = ("image_encoder", "text_encoder", "fusion")) -> None:
        """Recompute these parts' activations in the backward pass instead of keeping them."""
        for part in parts:
            getattr(self, part).checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if getattr(module, "initialised_by_timm", False):
            # Loading builds the model without storage; tables that no checkpoint holds must be computed again.
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
            return
        super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> Self:
        """Load a pretrained folder (or hub name).

        Errors: ValueError where the folder is missing, or holds a tensor too many, too few or of another shape:
        a model that is partly random would still run, and its numbers would mean nothing.
        """
        folder = str(folder)
        if is_here(folder) and not (Path(folder) / "config.json").is_file():
            what = "no config.json in" if Path(folder).is_dir() else "no pretrained folder at"
            raise ValueError(f"{what} {folder}; train one with `cclm fit` or check the path")
        config = Path(folder) / "config.json"
        if config.is_file() and (kind := model_type(config)) != cls.config_class.model_type:
            raise ValueError(f"{folder} holds a model of type {kind}, not {cls.config_class.model_type}; give another")
        try:
            with quiet():  # other shapes are reported below, like what is missing
                model, report = super().from_pretrained(
                    folder, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
                )
        except (SafetensorError, RuntimeError, TypeError, LookupError, AttributeError, ValueError) as error:
            reason = first_line(error)
            raise ValueError(f"{folder}: config or weights are damaged ({reason}); export the model again") from error
        for problem in _PROBLEMS:
            if names := sorted(map(str, report.get(problem) or ())):
                raise ValueError(
                    f"{folder}: {len(names)} {_PROBLEMS[problem]}, first {names[0]}; "
                    "the weights do not belong to this config.json, export the model again"
                )
        return model


class ImageAdapter(nn.Module):
    """Backbone states (B, L, W) -> states (B, L, D); nothing at all where the widths agree, as in the reference."""

    def __init__(self, width: int, config: CCLMConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        if width != config.hidden_size:
            self.layers = nn.Sequential(
                nn.Linear(width, config.hidden_size),
                nn.LayerNorm(config.hidden_size, eps=config.norm_eps),
                Dropout(float(config.dropout)),
            )

    def forward(self, states: Tensor) -> Tensor:
        return self.layers(states)


_PROBLEMS = {
    "missing_keys": "missing tensor(s)",
    "unexpected_keys": "unexpected tensor(s)",
    "mismatched_keys": "tensor(s) of another shape",
    "error_msgs": "error(s)",
}

AutoConfig.register("cclm", CCLMConfig)
AutoModel.register(CCLMConfig, CCLMModel)
