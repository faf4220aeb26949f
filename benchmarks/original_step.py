"""The pre-training step as the original computes it, of plain transformers modules: what reference_ratio.py times too.

Written from the description in reference/cclm.md 1 and 2. Texts have a fixed length, the clean and the masked one are
encoded apart, matching fuses true pairs and wrong ones in two passes after drawing partners row by row, and every
fusion projects keys and values anew. Shapes: B pairs, L tokens, S states of the context, M masks, D width, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertAttention, BertEmbeddings, BertLayer, BertLMPredictionHead

from cclm.models.layers import Attention, Block
from cclm.models.model import CCLMModel
from cclm.objectives.base import Draft
from cclm.objectives.masked_lm import IGNORED, MaskedLM
from cclm.types import ImageInput, PairBatch, TensorData, TextInput


@dataclass(frozen=True)
class PaddedBatch(TensorData):
    """What the original's data set hands over: texts of fixed length, masked before the step."""

    stream: str
    context: ImageInput | TextInput
    target: TextInput  # (B, L)
    masked_ids: Tensor  # (B, L)
    positions: Tensor  # (B, M)
    labels: Tensor  # (B, M)


def padded(batch: PairBatch, draft: Draft, length: int, masks: int, pad: int) -> PaddedBatch:
    """`batch` and its masked target with every text padded to `length` tokens and `masks` masks."""

    def fill(values: Tensor, size: int, value: int) -> Tensor:
        return F.pad(values, (0, size - values.shape[1]), value=value)

    def text(given: TextInput) -> TextInput:
        return TextInput(fill(given.input_ids, length, pad), fill(given.attention_mask, length, 0))

    context = text(batch.context) if isinstance(batch.context, TextInput) else batch.context
    return PaddedBatch(
        batch.stream,
        context,
        text(batch.target),
        text(draft.text).input_ids,
        fill(draft.positions, masks, 0),
        fill(draft.labels, masks, IGNORED),
    )


def masked(batch: PairBatch, objective: MaskedLM, model: CCLMModel, seed: int) -> Draft:
    """The target as `objective` masks it in a step whose generator starts from `seed`."""
    device = batch.target.input_ids.device
    return objective.draft(model, batch, torch.Generator(device).manual_seed(seed))


class OriginalModel(nn.Module):
    """BERT layers, the fusing ones with cross-attention, over the very weights of `ours`."""

    def __init__(self, ours: CCLMModel) -> None:
        super().__init__()
        config = ours.config
        bert = BertConfig(
            vocab_size=2,  # the tables are replaced by ours
            pad_token_id=1,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.attention_dropout,
            max_position_embeddings=config.max_positions,
            type_vocab_size=1,
            layer_norm_eps=config.norm_eps,
            attn_implementation="eager",
        )
        self.vision = ours.image_encoder.backbone
        self.embeddings = _embeddings(bert, ours)
        self.text_layers = nn.ModuleList(_layer(bert, block) for block in ours.text_encoder.blocks)
        bert.is_decoder = bert.add_cross_attention = True
        self.fusion_layers = nn.ModuleList(_layer(bert, block) for block in ours.fusion.blocks)
        self.mlm_head = _mlm_head(bert, ours)
        self.vision_projection, self.text_projection = ours.image_projection, ours.text_projection
        self.match_head = ours.match_head
        self.temperature = nn.Parameter((-ours.logit_scale.detach()).exp())

    # -- parts -------------------------------------------------------------------------------------------------------

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids and mask (B, L) -> states (B, L, D)."""
        states, bias = self.embeddings(ids), _bias(mask)
        for layer in self.text_layers:
            states = layer(states, bias)
        return states

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) -> states (B, 1 + S, D), their mean first."""
        states = self.vision.forward_features(pixels).flatten(1, 2)
        return torch.cat([states.mean(1, keepdim=True), states], dim=1)

    def fuse(self, states: Tensor, mask: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        """States (B, L, D) that read `context` (B, S, D) -> (B, L, D)."""
        bias, context_bias = _bias(mask), _bias(context_mask)
        for layer in self.fusion_layers:
            states = layer(states, bias, context, context_bias)
        return states

    # -- losses ------------------------------------------------------------------------------------------------------

    def losses(self, batch: PaddedBatch) -> dict[str, Tensor]:
        """Contrastive, matching and masked language modelling, for pictures and for sentences alike."""
        if isinstance(batch.context, TextInput):
            context_mask = batch.context.attention_mask
            context = self.encode_text(batch.context.input_ids, context_mask)
            context_feature = self.text_projection(context[:, 0])
        else:
            context = self.encode_image(batch.context.pixel_values)
            context_mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
            context_feature = self.vision_projection(context[:, 0])
        mask = batch.target.attention_mask
        states = self.encode_text(batch.target.input_ids, mask)
        with torch.no_grad():
            self.temperature.clamp_(0.001, 0.5)
        features = (context_feature, self.text_projection(states[:, 0]))
        fused = self.fuse(self.encode_text(batch.masked_ids, mask), mask, context, context_mask)
        return {
            "contrastive": self._contrastive(*features),
            "matching": self._matching((context, context_mask), (states, mask), *features),
            "masked_lm": self._recovery(fused, batch),
        }

    def _contrastive(self, context: Tensor, target: Tensor) -> Tensor:
        logits = context @ target.T / self.temperature  # (B, B)
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def _matching(
        self, context: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], feature: Tensor, target_feature: Tensor
    ) -> Tensor:
        """`context`, `target`: states and mask. True pairs in one pass, two wrong ones for each in another."""
        with torch.no_grad():
            similarity = target_feature @ feature.T / self.temperature  # (B, B)
            of_targets, of_contexts = ((s.softmax(1) + 1e-5).fill_diagonal_(0) for s in (similarity, similarity.T))
        wrong_contexts, wrong_targets = _drawn(of_targets, *context), _drawn(of_contexts, *target)
        true = self.fuse(*target, *context)[:, 0]
        texts = [torch.cat(parts) for parts in zip(target, wrong_targets, strict=True)]
        contexts = [torch.cat(parts) for parts in zip(wrong_contexts, context, strict=True)]
        wrong = self.fuse(*texts, *contexts)[:, 0]
        logits = self.match_head(torch.cat([true, wrong]))  # (3 B, 2)
        labels = torch.cat([torch.ones(len(true)), torch.zeros(len(wrong))]).long().to(logits.device)
        return F.cross_entropy(logits.float(), labels)

    def _recovery(self, fused: Tensor, batch: PaddedBatch) -> Tensor:
        index = batch.positions.unsqueeze(-1).expand(-1, -1, fused.shape[-1])
        logits = self.mlm_head(fused.gather(1, index)).float()  # (B, M, V), padding among them
        return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)


def _drawn(weights: Tensor, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A partner for every row of `weights` (B, B), one draw and one copy at a time."""
    rows = [int(torch.multinomial(row, 1).item()) for row in weights]
    return torch.stack([states[row] for row in rows]), torch.stack([mask[row] for row in rows])


def _bias(mask: Tensor) -> Tensor:
    return (1.0 - mask[:, None, None, :].float()) * -10000.0  # (B, 1, 1, S)


# -- the weights of ours in transformers' modules --------------------------------------------------------------------


def _embeddings(config: BertConfig, ours: CCLMModel) -> BertEmbeddings:
    made, own = BertEmbeddings(config), ours.embeddings
    made.word_embeddings, made.position_embeddings = own.word, own.position
    made.token_type_embeddings, made.LayerNorm = own.token_type, own.norm
    return made


def _layer(config: BertConfig, block: Block) -> BertLayer:
    made = BertLayer(config)
    _attend(made.attention, block.attention, block.attention_norm)
    if block.cross_attention is not None:
        assert block.cross_attention_norm is not None
        _attend(made.crossattention, block.cross_attention, block.cross_attention_norm)
    made.intermediate.dense = block.expand
    made.output.dense, made.output.LayerNorm = block.contract, block.feed_forward_norm
    return made


def _attend(made: BertAttention, own: Attention, norm: nn.LayerNorm) -> None:
    made.self.query, made.self.key, made.self.value = own.query, own.key, own.value
    made.output.dense, made.output.LayerNorm = own.out, norm


def _mlm_head(config: BertConfig, ours: CCLMModel) -> BertLMPredictionHead:
    made, own = BertLMPredictionHead(config), ours.mlm_head
    made.transform.dense, made.transform.LayerNorm, made.decoder = own.dense, own.norm, own.decoder
    return made
