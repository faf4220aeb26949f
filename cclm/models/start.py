"""A new model from weights of its halves: Swin or BEiT-v2 and XLM-R, or an English X2-VLM and XLM-R."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from cclm.models.backbones import Backbone, beit_settings, check_table, image_tables, is_buffer, layer_count
from cclm.models.config import CCLMConfig
from cclm.models.families import SWIN, X2VLM, Naming, bare_text, xlm_roberta_names
from cclm.models.fill import KeyReport, check_xlm_roberta, every_layer, load_backbone, load_xlm_roberta
from cclm.models.model import CCLMModel
from cclm.models.plain import ImageWeights, image_weights, is_image, is_text
from cclm.models.weights import WeightFile, Weights

_LARGE = 24  # layers of XLM-R large, of which CCLM-3M/4M takes every second
_VISION = "vision_encoder."
_SPELT = re.compile(r"text_encoder\.cls\.predictions\.(bias|decoder\.(weight|bias))")


class Started(NamedTuple):
    """`guessed`: settings that no tensor and no configuration tells, and why each has its value."""

    family: str
    model: CCLMModel
    report: KeyReport
    guessed: dict[str, str]


def start_model(file: WeightFile, text: WeightFile | None, num_heads: int | None) -> Started:
    """A new model, and the account. `text`: XLM-R's weights, where `file` is not they; without, text layers are new.

    A Swin starts a CCLM-3M/4M, anything else a CCLM-X2VLM. Errors: ValueError for weights that do not go together, or
    of which one is missing.
    """
    image, english, report = None, None, KeyReport()
    if is_text(file.tensors):
        if text is not None:
            raise ValueError("this is XLM-R itself; give the image encoder as the source, and it as --text")
        text = file
    elif is_image(file.tensors):
        image = image_weights(file.tensors, file.told("swin", "beit"))
    else:
        if text is None:
            raise ValueError("this is an English X2-VLM; give XLM-R's weights for its text layers as --text")
        english = _English(file.tensors)
        image = english.image()
    family = SWIN if image and image.backbone.swin else X2VLM
    words = _text_weights(text, family, english is not None, report) if text else {}
    used = {name: text.tensors[theirs] for name, theirs in words.items()} if text else {}
    told = _told(text, num_heads) if text else {}
    config, guessed = _config(family, image.backbone if image else None, used, english, told)
    model = CCLMModel(config)
    if image:
        _fill_image(model, image, _VISION if english else "", report)
    if text:
        _fill_text(model, used, words, report)
    if english:
        _fill_english(model, english, report)
    report.filled = sorted(set(report.filled))
    report.new = [name for name, _ in model.named_parameters() if name not in set(report.filled)]
    return Started(family, model, report, guessed)


# -- images ------------------------------------------------------------------------------------------------------------


def _fill_image(model: CCLMModel, image: ImageWeights, prefix: str, report: KeyReport) -> None:
    """`prefix`: of the names in the file."""
    part = load_backbone(model.image_encoder.backbone, image.tensors)
    ours = "image_encoder.backbone."
    report.filled += [f"{ours}{name}" for name in part.filled]
    report.taken += [(f"{prefix}{name}", f"{ours}{to}") for other, to in part.taken for name in image.names[other]]
    known = image_tables(model.config)
    whys = part.left_over | {name: check_table(name, value, known) for name, value in image.tables.items()}
    report.left_over |= {f"{prefix}{theirs}": why for name, why in whys.items() for theirs in image.names[name]}


# -- texts -------------------------------------------------------------------------------------------------------------


def _told(text: WeightFile, num_heads: int | None) -> dict[str, Any]:
    """Settings of the text layers that no tensor tells, as given or from XLM-R's config.json."""
    found = text.told("xlm-roberta", "roberta", "bert", "camembert")
    width = next(
        v.shape[1] for name, v in text.tensors.items() if bare_text(name) == "embeddings.word_embeddings.weight"
    )
    if found.get("hidden_size", width) != width:
        found = {}
    layers = found.get("num_hidden_layers")
    if layers is not None and layers != (held := check_xlm_roberta(text.tensors)):
        raise ValueError(f"config.json says num_hidden_layers {layers}, the text weights hold {held}; fetch them again")
    told = {
        "num_heads": found.get("num_attention_heads"),
        "norm_eps": found.get("layer_norm_eps"),
    }
    told = {name: value for name, value in told.items() if isinstance(value, int | float)}
    return told | ({} if num_heads is None else {"num_heads": num_heads})


def _text_weights(text: WeightFile, family: str, headed: bool, report: KeyReport) -> dict[str, str]:
    """What of XLM-R is used: its names there, by those that it then has.

    Every second of 24 layers beside a Swin; not its head where there is one (`headed`).
    """
    weights = text.tensors
    if not is_text(weights):
        raise ValueError(f"{text.path}, given as --text, is not XLM-R's: it has no embeddings.word_embeddings.weight")
    types = next((v for name, v in weights.items() if name.endswith("embeddings.token_type_embeddings.weight")), None)
    if types is not None and len(types) != 1:
        raise ValueError(
            f"the text weights have {len(types)} types of tokens, as BERT's, not XLM-R's one; give XLM-R's"
        )
    layers, names = check_xlm_roberta(weights), {name: name for name in weights}
    if headed:
        head = [name for name in weights if name.startswith("lm_head.")]
        report.left_over |= dict.fromkeys(head, "X2-VLM's head is taken")
        names = {name: name for name in weights if name not in head}
    if family == SWIN and layers == _LARGE:
        taken = every_layer(names, 2)
        report.left_over |= dict.fromkeys(set(names) - set(taken.values()), "every second layer is taken")
        names = taken
    return names


def _fill_text(model: CCLMModel, weights: Weights, words: Mapping[str, str], report: KeyReport) -> None:
    """`words`: the names in the file of those in `weights`."""
    part = load_xlm_roberta(model, weights)
    report.filled += part.filled
    report.taken += [(words[name], ours) for name, ours in part.taken]
    report.left_over |= {words[name]: why for name, why in part.left_over.items()}


# -- an English X2-VLM -------------------------------------------------------------------------------------------------


class _English:
    """An English X2-VLM: one stack, whose upper layers are the fusion (reference/cclm.md 1.6)."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        bare = "text_encoder.embeddings.word_embeddings.weight" in weights
        self.text = "text_encoder" if bare else "text_encoder.bert"
        prefix = f"{self.text}.encoder.layer"
        layers = layer_count(weights, prefix)
        self.first = min(n for n in range(layers) if f"{prefix}.{n}.crossattention.self.query.weight" in weights)
        self.fusion_layers = layer_count(weights, prefix, "crossattention.", self.first)

    def image(self) -> ImageWeights:
        vision = {name.removeprefix(_VISION): v for name, v in self.weights.items() if name.startswith(_VISION)}
        tables = {name: value for name, value in vision.items() if is_buffer(name)}
        learned = {name: value for name, value in vision.items() if name not in tables}
        return ImageWeights(learned, tables, {name: [name] for name in vision}, beit_settings(learned))

    def name(self, theirs: str) -> str:
        """How it calls what CCLM-X2VLM calls `theirs`."""
        if layer := re.match(r"cross_encoder\.encoder\.layer\.(\d+)\.", theirs):
            return f"{self.text}.encoder.layer.{self.first + int(layer[1])}.{theirs[layer.end() :]}"
        return re.sub(r"^mlm_head\.", "text_encoder.cls.", theirs)

    def left_over(self) -> dict[str, str]:
        """Its texts, whose place XLM-R's take."""
        why = "English; XLM-R's are taken"
        own = {f"{self.text}.{name}": why for name in xlm_roberta_names(self.first, head=False)}
        return own | {name: why for name in self.weights if _SPELT.fullmatch(name)}


def _fill_english(model: CCLMModel, english: _English, report: KeyReport) -> None:
    """Fusion and heads. Errors: ValueError for a part that is not whole, and for a tensor that nothing explains."""
    naming, weights, left_over = Naming(X2VLM, model.config, bare=True), english.weights, english.left_over()
    missing: dict[str, str] = {}  # ours -> theirs
    for name, ours in model.state_dict().items():
        theirs = english.name(naming.theirs(name)[0])
        if name.partition(".")[0] in ("image_encoder", "embeddings", "text_encoder") or theirs in left_over:
            continue
        if theirs not in weights:
            missing[name] = theirs
            continue
        value = weights[theirs]
        if value.shape != ours.shape:
            raise ValueError(
                f"{theirs} is {tuple(value.shape)} in X2-VLM, {tuple(ours.shape)} beside this XLM-R; give one as wide "
                "(base with base, large with large)"
            )
        ours.copy_(-value.log() if name == "logit_scale" else value)
        report.filled.append(name)
        report.taken.append((theirs, name))
    begun = {"fusion", *(name.partition(".")[0] for name in report.filled)}
    for name, theirs in missing.items():
        if name.partition(".")[0] in begun and not _SPELT.fullmatch(theirs):
            raise ValueError(f"an X2-VLM without {theirs}; fetch the file again")
    accounted = {theirs for theirs, _ in report.taken} | set(report.left_over)
    positions = f"{english.text}.embeddings.position_ids"
    for name in set(weights) - accounted:
        if name == positions:
            known = {name: torch.arange(weights[name].shape[-1])[None]}
            report.left_over[name] = check_table(name, weights[name], known)
        elif name not in left_over:
            raise ValueError(f"nothing explains {name} in an X2-VLM checkpoint; is it of a changed model?")
        else:
            report.left_over[name] = left_over[name]


# -- geometry ----------------------------------------------------------------------------------------------------------


def _config(
    family: str, image: Backbone | None, text: Weights, english: _English | None, told: Mapping[str, Any]
) -> tuple[CCLMConfig, dict[str, str]]:
    """Geometry of the family, as wide as the text or else the image encoder is; XLM-R base and large where neither.

    `text`: what of XLM-R is used. `told`: its number of heads and epsilon, where something tells them.
    """
    width = image.width if image else 768
    vocab, positions, layers, inner = 250002, 514, 12 if family == SWIN or width < 1024 else 24, 4 * width
    if text:
        bare = {bare_text(name): value for name, value in text.items()}
        vocab, width = bare["embeddings.word_embeddings.weight"].shape
        positions, layers = len(bare["embeddings.position_embeddings.weight"]), layer_count(bare, "encoder.layer")
        inner = len(bare["encoder.layer.0.intermediate.dense.weight"])
    expected = {"num_heads": max(4, width // 64), "norm_eps": 1e-5}  # of every published XLM-R
    guessed = dict(image.guessed) if image else {}
    if text and "num_heads" not in told:
        guessed["num_heads"] = f"{expected['num_heads']}, each 64 wide, as XLM-R's; --num-heads says otherwise"
    if text and "norm_eps" not in told:
        guessed["norm_eps"] = f"{expected['norm_eps']:g}, as XLM-R's; put its config.json beside it to tell"
    known = expected | told
    depth, count = (24, 16) if width >= 1024 else (12, max(4, width // 64))
    options = {"embed_dim": width, "depth": depth, "num_heads": count, "drop_path_rate": 0.1}
    fresh = {"backbone": "beitv2_base_patch16_224", "backbone_options": options, "image_size": 224}
    projection = english.weights.get("text_proj.weight") if english else None
    config = CCLMConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_heads=known["num_heads"],
        intermediate_size=inner,
        max_positions=positions,
        embedding_size=256 if projection is None else len(projection),
        position_offset=0 if family == SWIN else 2,
        norm_eps=float(known["norm_eps"]),
        fusion_norm_eps=float(known["norm_eps"]) if family == SWIN else 1e-12,
        tie_word_embeddings=family == SWIN,
        heads=["match", "mlm", "box"],
        text_layers=layers // 2 if family == SWIN else layers,
        fusion_layers=layers - layers // 2 if family == SWIN else english.fusion_layers if english else 6,
        **(image.settings if image else fresh),
    )
    return config, guessed
