"""A new model from weights of its halves: Swin or BEiT-v2 and XLM-R, or an English X2-VLM and XLM-R."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cclm.models.config import CCLMConfig
from cclm.models.families import SWIN, X2VLM, Naming, beit_settings, is_buffer
from cclm.models.fill import KeyReport, every_layer, load_backbone, load_xlm_roberta
from cclm.models.model import CCLMModel
from cclm.models.plain import image_weights, is_image, is_text
from cclm.models.weights import WeightFile

Weights = Mapping[str, Tensor]
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
_LARGE = 24  # layers of XLM-R large, of which CCLM-3M/4M takes every second


def start_model(file: WeightFile, text: Weights | None, num_heads: int | None) -> tuple[str, CCLMModel, KeyReport]:
    """Family, model and account. `text`: XLM-R's weights, where `file` is not they; without, text layers are new.

    A Swin starts a CCLM-3M/4M, anything else a CCLM-X2VLM. Errors: ValueError for weights that do not go together.
    """
    image: dict[str, Tensor] = {}
    english: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    if is_text(file.tensors):
        if text is not None:
            raise ValueError(f"{file.path} is XLM-R itself; give the image encoder as the source, and it as --text")
        text = file.tensors
    elif is_image(file.tensors):
        image, settings = image_weights(file.tensors)
    else:
        if text is None:
            raise ValueError(f"{file.path} is an English X2-VLM; give XLM-R's weights for its text layers as --text")
        english = _fusion_and_heads(file.tensors)
        vision = {name.removeprefix("vision_encoder."): v for name, v in english.items() if name.startswith("vision_")}
        image = {name: value for name, value in vision.items() if not is_buffer(name)}
        settings = beit_settings(vision)[0]
    family = SWIN if settings and "swin" in settings["backbone"] else X2VLM
    dropped: list[str] = []
    if text is not None and family == SWIN and _layers(text) == _LARGE:
        dropped = [name for name in text if (found := _LAYER.search(name)) and int(found[1]) % 2 == 0]
        text = every_layer(text, 2)
    model = CCLMModel(_config(family, settings, text, english, num_heads))
    report = KeyReport(left_over=dict.fromkeys(dropped, "every second layer is taken"))
    if image:
        part = load_backbone(model.image_encoder.backbone, image)
        report.filled += [f"image_encoder.backbone.{name}" for name in part.filled]
        report.left_over |= part.left_over
    if text is not None:
        part = load_xlm_roberta(model, text)
        report.filled += part.filled
        report.left_over |= part.left_over
    _fill_english(model, english, family, report)
    report.filled = sorted(set(report.filled))
    report.new = [name for name, _ in model.named_parameters() if name not in set(report.filled)]
    return family, model, report


def _layers(weights: Weights) -> int:
    return len({found[1] for name in weights if (found := _LAYER.search(name))})


def _fusion_and_heads(weights: Weights) -> dict[str, Tensor]:
    """An English X2-VLM under CCLM-X2VLM's names, without its text layers and vocabulary (reference/cclm.md 1.6)."""
    named = {re.sub(r"^text_encoder\.bert\.", "text_encoder.", name): value for name, value in weights.items()}
    crossed = [int(found[1]) for name in named if (found := re.search(r"layer\.(\d+)\.crossattention\.", name))]
    vocabulary = len(named["text_encoder.embeddings.word_embeddings.weight"])
    kept = {}
    for name, value in named.items():
        layer = re.match(r"text_encoder\.encoder\.layer\.(\d+)\.", name)
        if layer and int(layer[1]) >= min(crossed):
            kept[f"cross_encoder.encoder.layer.{int(layer[1]) - min(crossed)}.{name[layer.end() :]}"] = value
        elif name.startswith("text_encoder.cls.") and len(value) != vocabulary:
            kept[name.replace("text_encoder.cls.", "mlm_head.")] = value
        elif not name.startswith("text_encoder."):
            kept[name] = value
    return kept


def _fill_english(model: CCLMModel, english: Weights, family: str, report: KeyReport) -> None:
    naming, used = Naming(family, model.config, bare=True), set()
    for name, ours in model.state_dict().items() if english else ():
        theirs = naming.theirs(name)[0]
        if theirs not in english:
            continue
        value = -english[theirs].log() if name == "logit_scale" else english[theirs]
        if value.shape != ours.shape:
            raise ValueError(
                f"{theirs} is {tuple(value.shape)} in X2-VLM, {tuple(ours.shape)} beside this XLM-R; give one as wide "
                "(base with base, large with large)"
            )
        ours.copy_(value)
        used.add(theirs)
        report.filled.append(name)
    for name in set(english) - used:
        if not is_buffer(name):
            raise ValueError(f"nothing explains {name} in an X2-VLM checkpoint; is it of a changed model?")
        report.left_over[name] = "computed, not learned"


def _config(
    family: str, image: dict[str, Any], text: Weights | None, english: Weights, heads: int | None
) -> CCLMConfig:
    """Geometry of the family, as wide as the text or else the image encoder is; XLM-R base and large where neither."""
    options = image.get("backbone_options", {})
    width = options.get("embed_dim", 768) * (2 ** (len(options["depths"]) - 1) if "depths" in options else 1)
    vocab, positions, layers, inner = 250002, 514, 12 if family == SWIN or width < 1024 else 24, 4 * width
    if text is not None:
        bare = {re.sub(r"^(roberta|bert)\.", "", name): value for name, value in text.items()}
        vocab, width = bare["embeddings.word_embeddings.weight"].shape
        positions, layers = len(bare["embeddings.position_embeddings.weight"]), _layers(text)
        inner = len(bare["encoder.layer.0.intermediate.dense.weight"])
    if not image:
        depth, count = (24, 16) if width >= 1024 else (12, max(4, width // 64))
        options = {"embed_dim": width, "depth": depth, "num_heads": count, "drop_path_rate": 0.1}
        image = {"backbone": "beitv2_base_patch16_224", "backbone_options": options, "image_size": 224}
    crossed = {found[1] for name in english if (found := re.match(r"cross_encoder\.encoder\.layer\.(\d+)\.", name))}
    split = {"text_layers": layers // 2, "fusion_layers": layers - layers // 2}
    return CCLMConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_heads=heads or max(4, width // 64),
        intermediate_size=inner,
        max_positions=positions,
        embedding_size=len(english["text_proj.weight"]) if "text_proj.weight" in english else 256,
        position_offset=0 if family == SWIN else 2,
        fusion_norm_eps=1e-5 if family == SWIN else 1e-12,
        tie_word_embeddings=family == SWIN,
        heads=["match", "mlm", "box"],
        **(split if family == SWIN else {"text_layers": layers, "fusion_layers": len(crossed) or 6}),
        **image,
    )
