"""Weights of one half, or of an English X2-VLM, start a model: its states are those of the library they came from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import (
    BeitConfig,
    BeitModel,
    PreTrainedModel,
    SwinConfig,
    SwinModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from cclm.models.convert import Converted, ConvertOptions, convert
from cclm.models.families import SWIN, X2VLM, Naming
from cclm.models.model import CCLMModel
from tests.models.checkpoints import Shape, drawn


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """With every tensor drawn: biases and tables of a new model are zero, and would not be missed."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.dim() == 1 and name.endswith("weight") and "norm" in name.lower()
            parameter.normal_(1.0 if is_scale else 0.0, 0.1)
    return model.eval()


def xlm_roberta(layers: int = 4, width: int = 64, vocabulary: int = 97) -> PreTrainedModel:
    config = XLMRobertaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=66,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )
    return shaken(XLMRobertaForMaskedLM(config), 1)


def hf_swin() -> PreTrainedModel:
    sizes = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}
    return shaken(SwinModel(SwinConfig(image_size=64, patch_size=4, window_size=2, **sizes), add_pooling_layer=False))


def hf_beit() -> PreTrainedModel:
    config = BeitConfig(
        image_size=64,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        layer_norm_eps=1e-6,
        use_relative_position_bias=True,
        use_mean_pooling=True,
        layer_scale_init_value=0.1,
    )
    return shaken(BeitModel(config))


def timm_swin() -> nn.Module:
    sizes = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 2, "img_size": 64}
    return shaken(timm.create_model("swin_base_patch4_window7_224", num_classes=5, **sizes))


def timm_beit() -> nn.Module:
    sizes = {"embed_dim": 64, "depth": 3, "num_heads": 4, "img_size": 64}
    return shaken(timm.create_model("beitv2_base_patch16_224", num_classes=5, **sizes))


def pictures() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def loaded(converted: Converted, folder: Path) -> CCLMModel:
    folder.mkdir()
    converted.save(folder)
    return CCLMModel.from_pretrained(folder).eval()


def states_of(model: CCLMModel) -> Tensor:
    with torch.inference_mode():
        return model.image_states(pictures())[:, 1:]  # (B, L, W)


def states_there(model: nn.Module) -> Tensor:
    """The library's own, after the last norm."""
    with torch.inference_mode():
        if isinstance(model, SwinModel):
            return model(pictures()).last_hidden_state
        if isinstance(model, BeitModel):  # which normalises the mean of the patches only
            return model.pooler.layernorm(model(pictures()).last_hidden_state[:, 1:])
        features = model.forward_features(pictures())
        return features.flatten(1, 2) if features.dim() == 4 else model.fc_norm(features[:, 1:])


def older_swin(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """SwinModel's names before transformers 5."""
    return {f"swin.{name}": value for name, value in weights.items()}


def microsoft_swin(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original's names: downsampling belongs to the stage before, and buffers are kept."""
    named = {
        re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name): value
        for name, value in weights.items()
    }
    backbone = timm_swin()
    named |= {name: value for name, value in backbone.named_buffers()}
    return {name.replace("head.fc.", "head."): value for name, value in named.items()}


def in_file(rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict) -> Callable[[nn.Module, Path], Path]:
    def write(model: nn.Module, folder: Path) -> Path:
        torch.save({"model": rename(model.state_dict())}, folder / "weights.pth")
        return folder / "weights.pth"

    return write


def in_folder(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder / "library")
    return folder / "library"


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Path], Path]]] = {
    "transformers swin": (hf_swin, in_folder),
    "transformers swin, names in memory": (hf_swin, in_file()),
    "transformers swin, inside another model": (hf_swin, in_file(older_swin)),
    "transformers beit": (hf_beit, in_folder),
    "transformers beit, names in memory": (hf_beit, in_file()),
    "timm swin": (timm_swin, in_file()),
    "timm beit": (timm_beit, in_file()),
    "microsoft swin": (timm_swin, in_file(microsoft_swin)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_text", [False, True])
def test_image_encoders(case: str, with_text: bool, tmp_path: Path) -> None:
    make, write = CASES[case]
    source = make()
    text = str(in_folder(xlm_roberta(), tmp_path / "text")) if with_text else None
    converted = convert(str(write(source, tmp_path)), ConvertOptions(text=text))
    swin = "swin" in case
    assert converted.family == (SWIN if swin else X2VLM) and converted.config.image_size == 64
    assert converted.config.position_offset == (0 if swin else 2)
    images = [name for name in converted.state if name.startswith("image_encoder.")]
    assert set(images) <= set(converted.report.filled)
    assert not [name for name in converted.report.new if name.startswith("image_encoder.")]
    if not with_text:  # text layers of XLM-R's vocabulary, all new
        assert (converted.config.vocab_size, converted.config.hidden_size) == (250002, 64)
        assert sorted(images) == converted.report.filled
        return
    model = loaded(converted, tmp_path / "out")
    torch.testing.assert_close(states_of(model), states_there(source), rtol=0, atol=1e-5)


def test_the_image_size_of_a_swin_is_told_where_its_windows_do_not_fill_the_last_stage(tmp_path: Path) -> None:
    """A folder's config.json tells it, the original's masks do; timm's file holds neither."""
    sizes = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}
    folder = SwinModel(SwinConfig(image_size=128, window_size=2, **sizes), add_pooling_layer=False)
    assert convert(str(in_folder(folder, tmp_path)), ConvertOptions()).config.image_size == 128
    backbone = timm.create_model("swin_base_patch4_window7_224", num_classes=0, window_size=2, img_size=128, **sizes)
    file = in_file()(backbone, tmp_path)
    assert convert(str(file), ConvertOptions()).config.image_size == 64
    torch.save(dict(backbone.state_dict()) | dict(backbone.named_buffers()), file)
    assert convert(str(file), ConvertOptions()).config.image_size == 128


# -- texts -------------------------------------------------------------------------------------------------------------


def text_states(model: CCLMModel, source: PreTrainedModel, layers: int) -> tuple[Tensor, Tensor]:
    """Ours and theirs after `layers`, of texts with padding."""
    ids = torch.randint(5, 96, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 9, dtype=torch.bool)
    ids[1, 6:], mask[1, 6:] = 1, False
    with torch.inference_mode():
        ours = model.encode_text(ids, mask).states
        theirs = source.roberta(ids, mask.long(), output_hidden_states=True).hidden_states[layers]
    return ours[mask], theirs[mask]


def renamed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("roberta.", prefix): value for name, value in weights.items()}

    return rename


@pytest.mark.parametrize(
    "write", [in_folder, in_file(), in_file(renamed("bert.")), in_file(renamed(""))], ids=["folder", "file", "bert", ""]
)
def test_texts_alone(write: Callable[[nn.Module, Path], Path], tmp_path: Path) -> None:
    """XLM-R alone starts a CCLM-X2VLM, with an image encoder as wide as it that is new."""
    source = xlm_roberta(12)
    converted = convert(str(write(source, tmp_path)), ConvertOptions())
    assert (converted.family, converted.config.text_layers, converted.config.fusion_layers) == (X2VLM, 12, 6)
    assert converted.config.num_heads == 4
    ours, theirs = text_states(loaded(converted, tmp_path / "out"), source, 12)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    starts = {name.split(".")[0] for name in converted.report.new}
    assert starts == {
        *("image_encoder", "fusion", "image_projection", "text_projection", "logit_scale"),
        *("match_head", "box_head", "mlm_head"),
    }
    assert [name for name in converted.report.new if name.startswith("mlm_head")] == ["mlm_head.decoder.weight"]


def test_every_second_of_24_layers_goes_beside_a_swin(tmp_path: Path) -> None:
    source = xlm_roberta(24)
    text = str(in_folder(source, tmp_path / "text"))
    converted = convert(str(in_folder(hf_swin(), tmp_path)), ConvertOptions(text=text))
    assert (converted.config.text_layers, converted.config.fusion_layers) == (6, 6)
    state = source.state_dict()
    for ours, theirs in {"text_encoder.blocks.0": 1, "text_encoder.blocks.5": 11, "fusion.blocks.0": 13}.items():
        got = converted.state[f"{ours}.attention.query.weight"]
        assert torch.equal(got, state[f"roberta.encoder.layer.{theirs}.attention.self.query.weight"])
    assert torch.equal(
        converted.state["fusion.blocks.5.expand.bias"], state["roberta.encoder.layer.23.intermediate.dense.bias"]
    )
    left = [name for name, why in converted.report.left_over.items() if why == "every second layer is taken"]
    assert len(left) == 12 * 16
    new = {name for name in converted.report.new if name.startswith("fusion")}
    assert len(new) == 60 and all("cross_attention" in name for name in new)


def test_fewer_layers_beside_a_swin_are_all_taken(tmp_path: Path) -> None:
    source = xlm_roberta(6)
    text = str(in_folder(source, tmp_path / "text"))
    converted = convert(str(in_folder(hf_swin(), tmp_path)), ConvertOptions(text=text))
    assert (converted.config.text_layers, converted.config.fusion_layers) == (3, 3)
    ids = torch.tensor([[0, 7, 9, 2]])
    with torch.inference_mode():
        # This family counts positions from 0, XLM-R from 2 (reference/cclm.md 1.3).
        theirs = source.roberta(ids, position_ids=torch.arange(4)[None], output_hidden_states=True).hidden_states[3]
        ours = loaded(converted, tmp_path / "out").encode_text(ids, torch.ones(1, 4)).states
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# -- X2-VLM ------------------------------------------------------------------------------------------------------------


def english(folder: Path, prefix: str = "text_encoder.bert.") -> tuple[CCLMModel, Path]:
    """X2-VLM's layout: 12 text and 6 fusion layers of one stack, a head over 61 English words; and whose values."""
    text = {"vocab_size": 61, "text_layers": 12, "fusion_layers": 6, "num_heads": 4, "max_positions": 40}
    shape = Shape("", False, 64, (4,), (3,), 64, text | {"embedding_size": 32}, {})
    model = drawn(shape.config())
    naming, weights = Naming(X2VLM, model.config, bare=True), {}
    for name, value in model.state_dict().items():
        for theirs in naming.theirs(name):
            layer = re.match(r"cross_encoder\.encoder\.layer\.(\d+)\.", theirs)
            if layer:
                theirs = f"text_encoder.encoder.layer.{12 + int(layer[1])}.{theirs[layer.end() :]}"
            if theirs.startswith("mlm_head."):
                theirs = theirs.replace("mlm_head.", "text_encoder.cls.")
            elif theirs.startswith("text_encoder."):
                theirs = theirs.replace("text_encoder.", prefix, 1)
            weights[theirs] = torch.tensor(0.05) if theirs == "temp" else value
    weights[f"{prefix}embeddings.position_ids"] = torch.arange(40)[None]
    weights |= {
        f"vision_encoder.{name}": value
        for name, value in model.image_encoder.backbone.named_buffers()
        if name.endswith("relative_position_index")
    }
    torch.save({"model": weights, "config": {}}, folder / "x2vlm_base_1b.th")
    return model, folder / "x2vlm_base_1b.th"


@pytest.mark.parametrize("prefix", ["text_encoder.bert.", "text_encoder."])
def test_an_english_x2vlm_with_multilingual_texts(prefix: str, tmp_path: Path) -> None:
    """Image encoder, fusion and heads are its; embeddings and text layers XLM-R's; what spells words is new."""
    source, file = english(tmp_path, prefix)
    text = xlm_roberta(12)
    converted = convert(str(file), ConvertOptions(text=str(in_folder(text, tmp_path / "text"))))
    report, state, theirs = converted.report, converted.state, source.state_dict()
    config = converted.config
    assert (converted.family, config.vocab_size, config.text_layers, config.fusion_layers) == (X2VLM, 97, 12, 6)
    assert report.new == ["mlm_head.decoder.weight", "mlm_head.decoder.bias"]
    assert len(report.filled) == len(state) - 2
    for name in state:
        part = name.split(".")[0]
        if part not in ("embeddings", "text_encoder") and name not in (*report.new, "logit_scale"):
            assert torch.equal(state[name], theirs[name]), name
    torch.testing.assert_close(state["logit_scale"], -torch.tensor(0.05).log())
    assert torch.equal(state["embeddings.word.weight"], text.roberta.embeddings.word_embeddings.weight)
    model = loaded(converted, tmp_path / "out")
    torch.testing.assert_close(states_of(model), states_of(source), rtol=0, atol=1e-6)
    ours, xlm = text_states(model, text, 12)
    torch.testing.assert_close(ours, xlm, rtol=0, atol=1e-5)
    whys = set(report.left_over.values())
    assert whys == {"computed, not learned", "X2-VLM's head is taken", "English; XLM-R's are taken"}
    english_ones = [name for name, why in report.left_over.items() if why.startswith("English")]
    assert len(english_ones) == 5 + 12 * 16 + 3


def test_another_image_size_from_halves(tmp_path: Path) -> None:
    _, file = english(tmp_path)
    text = str(in_folder(xlm_roberta(12), tmp_path / "text"))
    converted = convert(str(file), ConvertOptions(text=text, image_size=96))
    assert converted.resized == 3 and converted.config.image_size == 96
    assert converted.state["image_encoder.backbone.blocks.0.attn.relative_position_bias_table"].shape == (11**2 + 3, 4)


@pytest.mark.parametrize(
    ("source", "text", "message"),
    [
        ("x2vlm", None, "give XLM-R's weights for its text layers as --text"),
        ("text", "text", "this is XLM-R itself"),
        ("image", "image", "given as --text, is not XLM-R's"),
        ("x2vlm", "wide", "give one as wide"),
    ],
)
def test_what_does_not_go_together(source: str, text: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    made = {
        "x2vlm": english(tmp_path)[1],
        "text": in_folder(xlm_roberta(), tmp_path / "text"),
        "image": in_folder(hf_beit(), tmp_path / "image"),
        "wide": in_folder(xlm_roberta(width=32), tmp_path / "wide"),
    }
    with pytest.raises(ValueError, match=message):
        convert(str(made[source]), ConvertOptions(text=str(made[text]) if text else None))
