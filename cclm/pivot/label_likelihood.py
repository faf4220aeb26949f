"""How likely each label of a closed set is after a prompt, which is read once for all of them.

Shapes: B prompts, L their tokens, D width, K labels of up to T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional as F

from cclm.pivot.language_model import LanguageModel

_ROWS = 256  # prompts times labels that are read at once


@torch.no_grad()
def label_log_likelihoods(model: LanguageModel, embeds: Tensor, mask: Tensor, labels: Sequence[list[int]]) -> Tensor:
    """Log probability (B, K) float32 of the tokens of each label after each prompt (B, L, D), padded on the left.

    Errors: ValueError for no labels, an empty one, and where a prompt and a label do not fit into the context.
    """
    if not labels or not all(labels):
        raise ValueError("no labels, or one without tokens; give at least one of at least one token")
    longest = max(map(len, labels))
    model.check_length(embeds.shape[1] + longest)
    read = model.plain(inputs_embeds=embeds, use_cache=True, logits_to_keep=1, **model.places(mask))
    first = read.logits[:, -1].float().log_softmax(-1)  # (B, V): of the token after the prompt
    each = max(1, _ROWS // len(embeds))
    parts = []
    for start in range(0, len(labels), each):
        some = labels[start : start + each]
        ids = torch.full((len(some), longest), model.pad, device=embeds.device)  # (K, T)
        real = torch.zeros_like(ids, dtype=torch.bool)
        for row, label in enumerate(some):
            ids[row, : len(label)], real[row, : len(label)] = torch.tensor(label, device=ids.device), True
        likelihood = first[:, ids[:, 0]]  # (B, K)
        if longest > 1:
            likelihood = likelihood + _rest(model, deepcopy(read[_memory_name(model)]), mask, ids, real)
        parts.append(likelihood)
    return torch.cat(parts, dim=1)


def _rest(model: LanguageModel, memory: object, mask: Tensor, ids: Tensor, real: Tensor) -> Tensor:
    """Log probability (B, K) of all tokens of labels (K, T) but their first, after the prompts in `memory`."""
    prompts, labels = len(mask), len(ids)
    try:
        memory.batch_repeat_interleave(labels)
    except AttributeError:
        raise ValueError(
            f"the memory of a {type(model.plain).__name__} cannot be repeated for several labels; use a language model "
            "with attention in all its layers"
        ) from None
    whole = torch.cat([mask.repeat_interleave(labels, 0), real.repeat(prompts, 1)], dim=1)  # (B K, L + T)
    places = model.places(whole[:, :-1])
    if "position_ids" in places:
        places["position_ids"] = places["position_ids"][:, mask.shape[1] :]
    spoken = ids.repeat(prompts, 1)  # (B K, T)
    embeds = model.embed(spoken[:, :-1])
    remembered = {_memory_name(model): memory, "use_cache": True}
    logits = model.plain(inputs_embeds=embeds, **remembered, **places).logits.float()  # (B K, T - 1, V)
    wanted = spoken[:, 1:].where(real.repeat(prompts, 1)[:, 1:], -100)
    lost = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none", ignore_index=-100).sum(1)
    return -lost.unflatten(0, (prompts, labels))  # (B, K)


def _memory_name(model: LanguageModel) -> str:
    """What transformers calls keys and values of former tokens; it has renamed them."""
    return "cache" if "cache" in inspect.signature(model.plain.forward).parameters else "past_key_values"
