"""A new model from weights of its halves: Swin or BEiT-v2 and XLM-R, or an English X2-VLM and XLM-R."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cclm.models.config import CCLMConfig
from cclm.models.families import SWIN, X2VLM, Naming, beit_settings, image_width, is_buffer
from cclm.models.fill import KeyReport, every_layer, load_backbone, load_xlm_roberta
from cclm.models.model import CCLMModel
from cclm.models.plain import image_weights, is_image, is_text
from cclm.models.weights import WeightFile

Weights = Mapping[str, Tensor]
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
_LARGE = 24  # layers of XLM-R large, of which CCLM-3M/4M takes every second


def start_model(file: WeightFile, text: WeightFile | None, num_heads: int | None) -> tuple[str, CCLMModel, KeyReport]:
    """Family, model and account. `text`: XLM-R's weights, where `file` is not they; without, text layers are new.

    A Swin starts a CCLM-3M/4M, anything else a CCLM-X2VLM. Errors: ValueError for weights that do not go together.
    """
    image: dict[str, Tensor] = {}
    english: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    report = KeyReport()
    if is_text(file.tensors):
        if text is not None:
            raise ValueError("this is XLM-R itself; give the image encoder as the source, and it as --text")
        text = file
    elif is_image(file.tensors):
        image, settings = image_weights(file.tensors, file.config)
    else:
        if text is None:
            raise ValueError("this is an English X2-VLM; give XLM-R's weights for its text layers as --text")
        english = _fusion_and_heads(file.tensors, report)
        start = "vision_encoder."
        vision = {name.removeprefix(start): value for name, value in english.items() if name.startswith(start)}
        image = {name: value for name, value in vision.items() if not is_buffer(name)}
        settings = beit_settings(vision)[0]
    family = SWIN if settings and "swin" in settings["backbone"] else X2VLM
    words = _text_weights(text, family, bool(english), report) if text else {}
    told = (text.config if text else {}) | ({"num_attention_heads": num_heads} if num_heads else {})
    model = CCLMModel(_config(family, settings, words, english, told))
    if image:
        _add(report, load_backbone(model.image_encoder.backbone, image), "image_encoder.backbone.")
    _add(report, load_xlm_roberta(model, words))
    _fill_english(model, english, family, report)
    report.filled = sorted(set(report.filled))
    report.new = [name for name, _ in model.named_parameters() if name not in set(report.filled)]
    return family, model, report


def _add(report: KeyReport, part: KeyReport, prefix: str = "") -> None:
    report.filled += [f"{prefix}{name}" for name in part.filled]
    report.left_over |= part.left_over


def _text_weights(text: WeightFile, family: str, headed: bool, report: KeyReport) -> dict[str, Tensor]:
    """What of XLM-R is used: every second of 24 layers beside a Swin; not its head where there is one (`headed`)."""
    weights = text.tensors
    if not is_text(weights):
        raise ValueError(f"{text.path}, given as --text, is not XLM-R's: it has no embeddings.word_embeddings.weight")
    types = next((v for name, v in weights.items() if name.endswith("embeddings.token_type_embeddings.weight")), None)
    if types is not None and len(types) != 1:
        raise ValueError(
            f"the text weights have {len(types)} types of tokens, as BERT's, not XLM-R's one; give XLM-R's"
        )
    if headed:
        report.left_over |= dict.fromkeys((n for n in weights if n.startswith("lm_head.")), "X2-VLM's head is taken")
        weights = {name: value for name, value in weights.items() if not name.startswith("lm_head.")}
    if family == SWIN and _layers(weights) == _LARGE:
        odd = [name for name in weights if (found := _LAYER.search(name)) and int(found[1]) % 2 == 0]
        report.left_over |= dict.fromkeys(odd, "every second layer is taken")
        weights = every_layer(weights, 2)
    return dict(weights)


def _layers(weights: Weights) -> int:
    return len({found[1] for name in weights if (found := _LAYER.search(name))})


def _fusion_and_heads(weights: Weights, report: KeyReport) -> dict[str, Tensor]:
    """An English X2-VLM under CCLM-X2VLM's names, without its text layers and vocabulary (reference/cclm.md 1.6)."""
    bare = {name: re.sub(r"^text_encoder\.bert\.", "text_encoder.", name) for name in weights}
    crossed = [int(f[1]) for name in bare.values() if (f := re.search(r"layer\.(\d+)\.crossattention\.", name))]
    vocabulary = len(weights[next(name for name in weights if name.endswith("embeddings.word_embeddings.weight"))])
    kept = {}
    for theirs, name in bare.items():
        value, layer = weights[theirs], re.match(r"text_encoder\.encoder\.layer\.(\d+)\.", name)
        if layer and int(layer[1]) >= min(crossed):
            kept[f"cross_encoder.encoder.layer.{int(layer[1]) - min(crossed)}.{name[layer.end() :]}"] = value
        elif name.startswith("text_encoder.cls.") and len(value) != vocabulary:
            kept[name.replace("text_encoder.cls.", "mlm_head.")] = value
        elif not name.startswith("text_encoder."):
            kept[name] = value
        else:
            report.left_over[theirs] = "computed, not learned" if is_buffer(name) else "English; XLM-R's are taken"
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


def _config(family: str, image: dict[str, Any], text: Weights, english: Weights, told: Mapping[str, Any]) -> CCLMConfig:
    """Geometry of the family, as wide as the text or else the image encoder is; XLM-R base and large where neither.

    `told`: XLM-R's own configuration, where its folder holds one.
    """
    width = image_width(image) if image else 768
    vocab, positions, layers, inner = 250002, 514, 12 if family == SWIN or width < 1024 else 24, 4 * width
    if text:
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
        num_heads=told.get("num_attention_heads") or max(4, width // 64),
        intermediate_size=inner,
        max_positions=positions,
        embedding_size=len(english["text_proj.weight"]) if "text_proj.weight" in english else 256,
        position_offset=0 if family == SWIN else 2,
        norm_eps=float(told.get("layer_norm_eps", 1e-5)),
        fusion_norm_eps=float(told.get("layer_norm_eps", 1e-5)) if family == SWIN else 1e-12,
        tie_word_embeddings=family == SWIN,
        heads=["match", "mlm", "box"],
        **(split if family == SWIN else {"text_layers": layers, "fusion_layers": len(crossed) or 6}),
        **image,
    )
