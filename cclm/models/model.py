"""The model: two encoders, one fusion transformer, its heads. Read this first.

An image or a text becomes a `View` (`encode_image`, `encode_text`); a target text is read in the light of another
view (`fuse`), and nothing in there depends on what kind of view that is.
Shapes: B pairs, L tokens or patches, D width, E embedding, V vocabulary, M masked positions, W backbone width,
I images, N images per text, R answers of T tokens.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel

from cclm.errors import first_line
from cclm.models.config import CCLMConfig
from cclm.models.heads import AnswerDecoder, MaskedLMHead, MatchHead, Projection
from cclm.models.inference import Inference
from cclm.models.layers import Dropout, Embeddings, Stack
from cclm.models.names import is_here, model_type, quiet
from cclm.models.vision import ImageEncoder
from cclm.types import Memory, RegionView, TextInput, View


class CCLMModel(Inference, PreTrainedModel):
    """Cross-view language model (Zeng et al., ACL 2023; reference/cclm.md 1 and 2)."""

    config_class = CCLMConfig
    base_model_prefix = "cclm"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False  # ours is `checkpoint_activations`, over our own stacks
    _supports_sdpa = True
    _tied_weights_keys = {"mlm_head.decoder.weight": "embeddings.word.weight"}

    def __init__(self, config: CCLMConfig) -> None:
        super().__init__(config)
        width, heads, layout = config.hidden_size, config.heads, config.layout(config.norm_eps)
        self.image_encoder = ImageEncoder(config.backbone, config.image_size, config.backbone_options)
        self.image_adapter = ImageAdapter(self.image_encoder.width, config)
        self.embeddings = Embeddings(layout, config.vocabulary)
        self.text_encoder = Stack(layout, config.text_layers, cross=False)
        fusion_layout = config.layout(config.fusion_norm_eps)
        self.fusion = Stack(fusion_layout, config.fusion_layers, cross=True, interleaved=config.interleaved)
        self.image_projection = self.text_projection = self.logit_scale = None
        if config.embedding_size:
            self.image_projection = Projection(width, config.embedding_size)
            self.text_projection = Projection(width, config.embedding_size)
            self.logit_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))
        self.match_head = MatchHead(width, 2) if "match" in heads else None
        self.embedding_fusion = nn.Linear(config.embedding_size, width) if config.fuse_embeddings else None
        self.mlm_head = MaskedLMHead(width, config.vocab_size, config.norm_eps) if "mlm" in heads else None
        self.box_head = MatchHead(width, 4) if "box" in heads else None
        read = width * config.images_per_text // config.interleaved  # several first states where images stay apart
        self.class_head = MatchHead(read, len(config.labels)) if "classify" in heads else None
        self.assign_head = nn.Linear(width, 3) if "assign" in heads else None
        self.answer_decoder = (
            AnswerDecoder(layout, config.vocabulary, config.answer_layers) if "answer" in heads else None
        )
        if self.mlm_head is None:
            self._tied_weights_keys = {}
        self.post_init()

    # -- views -------------------------------------------------------------------------------------------------------

    def image_states(self, pixel_values: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) -> backbone states (B, 1 + L, W): the part to cache when the backbone is frozen."""
        return self.image_encoder(pixel_values.to(self.dtype))  # processors give float32, checkpoints may be in half

    def encode_image_states(self, states: Tensor) -> View:
        """Backbone states (B, 1 + L, W) -> view."""
        states = self._drop_patches(states)
        states = self.image_adapter(states)  # (B, 1 + L, D)
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return View(states, mask, self._embed(self.image_projection, states[:, 0]))

    def _embed(self, projection: Projection | None, state: Tensor) -> Tensor:
        """State (B, D) -> embedding (B, E), of width 0 in a model without projections."""
        return state.new_zeros(len(state), 0) if projection is None else projection(state)

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

    def encode_images(self, pixel_values: Tensor) -> View:
        """Pixels (B, N, 3, H, W) -> view: N images end to end (B, N * (1 + L), D), their mean embedding."""
        view = self.encode_image(pixel_values.flatten(0, 1))  # (B * N, 1 + L, D)
        count = pixel_values.shape[1]
        embedding = F.normalize(view.embedding.unflatten(0, (-1, count)).mean(1), dim=-1)  # (B, E)
        states, mask = (x.unflatten(0, (-1, count)).flatten(1, 2) for x in (view.states, view.mask))
        return View(states, mask, embedding)

    def encode_regions(self, pixel_values: Tensor, image: Tensor, boxes: Tensor) -> RegionView:
        """Pixels (I, 3, H, W), the image of each text (B,) and its part of it (B, 4) -> view of the parts.

        The first state is the mean of the part's patches; the other patches stay, masked (reference/cclm.md 1.1, 2.4).
        """
        states = self.image_states(pixel_values)  # (I, 1 + L, W)
        inside = self.region_patches(boxes, states.shape[1] - 1)  # (B, L)
        patches = states[image, 1:]  # (B, L, W)
        share = inside.unsqueeze(-1).to(states.dtype) / inside.sum(1)[:, None, None]  # (B, L, 1)
        parts = torch.cat([(patches * share).sum(1, keepdim=True), patches], dim=1)  # (B, 1 + L, W)
        parts = self.image_adapter(parts)  # (B, 1 + L, D)
        mask = F.pad(inside, (1, 0), value=True)
        embedding = self._embed(self.image_projection, parts[:, 0])
        return RegionView(parts, mask, embedding, self.encode_image_states(states).select(image))

    def region_patches(self, boxes: Tensor, count: int) -> Tensor:
        """The patches, of a square of `count`, that boxes (B, 4) of centre and size as shares touch: (B, L) bool."""
        side = math.isqrt(count)
        centre, size = boxes[:, :2], boxes[:, 2:]
        slack = 1e-4  # of a patch: a box that ends on its border, to float32's precision, does not touch the next
        start = ((centre - size / 2) * side + slack).floor().clamp(0, side - 1)  # (B, 2) column, row
        stop = ((centre + size / 2) * side - slack).ceil().maximum(start + 1)
        cells = torch.arange(side, device=boxes.device)
        columns, rows = ((cells >= start[:, i, None]) & (cells < stop[:, i, None]) for i in (0, 1))  # (B, side) each
        return (rows.unsqueeze(2) & columns.unsqueeze(1)).flatten(1)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> View:
        """Token ids (B, L) and their mask (B, L) -> view. Errors: ValueError where L exceeds the position table."""
        mask = attention_mask.bool()
        states = self.text_encoder(self.embeddings(input_ids), mask)  # (B, L, D)
        return View(states, mask, self.text_embedding(states, mask))

    def text_embedding(self, states: Tensor, mask: Tensor) -> Tensor:
        """States (B, L, D) and their mask (B, L), or a weight for each -> (B, E)."""
        return self._embed(self.text_projection, self._pool(states, mask))

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.config.pooling == "first":
            return states[:, 0]
        weights = mask.unsqueeze(-1).to(states.dtype)  # (B, L, 1)
        return (states * weights).sum(1) / weights.sum(1)

    # -- fusion ------------------------------------------------------------------------------------------------------

    def project(self, context: View) -> Memory:
        """Keys and values of `context` for every fusion block, to be read by any number of targets.

        Interleaved blocks read the context's images in turn; images being of one size, so are their masks.
        """
        count, blocks = self.config.interleaved, self.fusion.blocks
        parts = context.states.chunk(count, dim=1)
        projected = [
            blocks[index - index % count].cross_attention.project(parts[index % count]) for index in range(len(blocks))
        ]
        keys, values = zip(*projected, strict=True)
        return Memory(keys, values, context.mask.chunk(count, dim=1)[0], context.embedding)

    def fuse(self, target: View, context: View | Memory | None) -> Tensor:
        """The target text (B, L, D) read in the light of the context (B views, any kind) -> fused states (B, L, D).

        The first fused state, which `match_logits` reads, is pooled as embeddings are (`pooling`); the token there is
        `<s>`, which is never masked, so that `mlm_logits` does not miss its own state.
        Without a context the same layers only attend to the target itself (translation language modelling).
        """
        if context is None:
            return self.fusion(target.states, target.mask)
        memory = self.project(context) if isinstance(context, View) else context
        fused = self.fusion(target.states, target.mask, memory.contexts())
        if self.config.pooling == "first":
            return fused
        return torch.cat([self._fused_pool(fused, target, memory), fused[:, 1:]], dim=1)

    def _fused_pool(self, fused: Tensor, target: View, memory: Memory) -> Tensor:
        """Mean of fused states (B, L, D), with what the two embeddings say -> (B, 1, D)."""
        first = self._pool(fused, target.mask)
        if self.embedding_fusion is not None:
            product = self.config.embedding_size * target.embedding * memory.embedding  # (B, E), its mean the cosine
            first = first + self.embedding_fusion(product.to(first.dtype))
        return first.unsqueeze(1)

    def fuse_ahead(self, target: View) -> View:
        """A target as far as `fuse` can read it without a context, for `fuse_first` in the light of many."""
        return View(self.fusion.ahead(target.states, target.mask), target.mask, target.embedding)

    def fuse_first(self, ahead: View, memory: Memory) -> Tensor:
        """The first state (B, 1, D) of what `fuse` gives, which is all that `match_logits` reads.

        `ahead`: of `fuse_ahead`.
        """
        if self.config.pooling == "first":
            return self.fusion.resumed(ahead.states, ahead.mask, memory.contexts(), first=1)
        return self._fused_pool(self.fusion.resumed(ahead.states, ahead.mask, memory.contexts()), ahead, memory)

    # -- heads -------------------------------------------------------------------------------------------------------

    def match_logits(self, fused: Tensor) -> Tensor:
        """Fused states (B, L, D) -> (B, 2); class 1 = the target and the context are two views of one thing."""
        return self._head("match")(fused[:, 0])

    def check_images(self, count: int) -> None:
        """Errors: ValueError where texts are about another number of images than the model was made for."""
        if count != self.config.images_per_text:
            raise ValueError(
                f"the texts are about {count} image(s) each, the model reads {self.config.images_per_text}; set "
                "network.config.images_per_text, or give other data"
            )

    def readings(self, context: View) -> list[Memory]:
        """What the class head's fusions read: one memory, or one for each image where images stay apart."""
        apart = self.config.images_per_text // self.config.interleaved
        parts = zip(context.states.chunk(apart, dim=1), context.mask.chunk(apart, dim=1), strict=True)
        return [self.project(View(states, mask, context.embedding)) for states, mask in parts]

    def class_logits(self, target: View, readings: list[Memory]) -> Tensor:
        """The target read in the light of each of `readings` -> (B, classes)."""
        head = self._head("classify")
        return head(torch.cat([self.fuse(target, memory)[:, 0] for memory in readings], dim=-1))

    def assign_logits(self, fused: Tensor) -> Tensor:
        """Fused states (B, L, D) -> (B, 3): the text is about the first of two images, the second, or neither."""
        return self._head("assign")(fused[:, 0])

    def boxes(self, fused: Tensor) -> Tensor:
        """Fused states (B, L, D) -> (B, 4): x and y of the centre, width and height, as shares of the image."""
        return self._head("box")(fused[:, 0]).sigmoid()

    def project_question(self, fused: Tensor, target: View) -> Memory:
        """Fused states (B, L, D) of `target` as the answer decoder reads them."""
        return self._head("answer").project(View(fused, target.mask, target.embedding))

    def answer_logits(self, answers: TextInput, question: Memory) -> Tensor:
        """Logits (R, T, V) of what follows each token of R answers; `question` holds one row for each."""
        return self._head("answer")(answers, question)

    def answer_losses(self, answers: TextInput, question: Memory) -> Tensor:
        """Negative log-likelihood (R,) of all tokens of R answers but the first."""
        logits = self.answer_logits(answers, question)[:, :-1]  # (R, T - 1, V)
        wanted = answers.input_ids[:, 1:].where(answers.attention_mask[:, 1:].bool(), -100)
        return F.cross_entropy(logits.float().transpose(1, 2), wanted, reduction="none", ignore_index=-100).sum(1)

    def _head(self, name: str) -> nn.Module:
        """Errors: ValueError where the model was made without it."""
        head = getattr(self, _HEAD_MODULES[name])
        if head is None:
            there = ", ".join(self.config.heads) or "none"
            raise ValueError(f'the model has no head "{name}" (its heads: {there}); use another model')
        return head

    def mlm_hidden(self, fused: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Fused states (B, L, D) at `positions` of `rows`, both (...), right before the decoder -> (..., D)."""
        return self._head("mlm").hidden(fused[rows, positions])

    def mlm_logits(self, fused: Tensor, positions: Tensor) -> Tensor:
        """Fused states (B, L, D) at `positions` (B, M) -> vocabulary logits (B, M, V)."""
        rows = torch.arange(len(positions), device=positions.device)[:, None]  # (B, 1)
        return self.mlm_head.decoder(self.mlm_hidden(fused, rows, positions))

    def scale(self) -> Tensor:
        """The inverse temperature, held in the reference's range 1/0.5 .. 1/0.001 (Pretrain clamps `temp` likewise).

        Errors: ValueError in a model without projections.
        """
        if self.logit_scale is None:
            raise ValueError("the model has no projections (embedding_size 0): it classifies, but cannot retrieve")
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

    def get_output_embeddings(self) -> nn.Linear | None:
        return None if self.mlm_head is None else self.mlm_head.decoder

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
        """Load a pretrained folder (or hub name), in the precision it is stored in unless `dtype` says another.

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
        except OSError as error:
            raise ValueError(f"{folder} cannot be loaded ({first_line(error)}); check the path or name") from error
        except (SafetensorError, RuntimeError, TypeError, LookupError, AttributeError, ValueError) as error:
            reason = first_line(error)
            raise ValueError(f"{folder}: config or weights are damaged ({reason}); export the model again") from error
        for problem in _PROBLEMS:
            if names := sorted(map(str, report.get(problem) or ())):
                raise ValueError(
                    f"{folder}: {len(names)} {_PROBLEMS[problem]}, first {names[0]}; "
                    "the weights do not belong to this config.json, export the model again"
                )
        model._hub = {name: kwargs[name] for name in ("revision", "cache_dir") if name in kwargs}
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


_HEAD_MODULES = {
    "match": "match_head",
    "mlm": "mlm_head",
    "box": "box_head",
    "classify": "class_head",
    "assign": "assign_head",
    "answer": "answer_decoder",
}

_PROBLEMS = {
    "missing_keys": "missing tensor(s)",
    "unexpected_keys": "unexpected tensor(s)",
    "mismatched_keys": "tensor(s) of another shape",
    "error_msgs": "error(s)",
}

AutoConfig.register("cclm", CCLMConfig)
AutoModel.register(CCLMConfig, CCLMModel)
