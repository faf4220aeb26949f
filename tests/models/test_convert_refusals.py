"""A file that is not whole, or not what its names say, is refused in one line; what is guessed is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from cclm.models.convert import Converted, ConvertOptions, convert, to_original
from cclm.models.fill import load_backbone
from tests.models.checkpoints import Shape, drawn, oracle, released
from tests.models.test_convert_plain import (
    english,
    hf_beit,
    hf_swin,
    in_file,
    in_folder,
    microsoft_swin,
    timm_beit,
    timm_swin,
    xlm_roberta,
)

NONE = ConvertOptions()
State = dict[str, Tensor]
Change = Callable[[State], object]


def without(*parts: str) -> Change:
    def remove(weights: State) -> None:
        gone = [name for name in weights if any(part in name for part in parts)]
        assert gone
        for name in gone:
            del weights[name]

    return remove


def having(**tensors: Tensor) -> Change:
    return lambda weights: weights.update({name.replace("__", "."): value for name, value in tensors.items()})


def changed(ending: str, change: Callable[[Tensor], Tensor]) -> Change:
    def rewrite(weights: State) -> None:
        name = next(name for name in weights if name.endswith(ending))
        weights[name] = change(weights[name])

    return rewrite


def edited(source: Path, target: Path, change: Change) -> Path:
    content = torch.load(source, weights_only=True)
    change(content["model"])
    torch.save(content, target)
    return target


# -- released checkpoints ------------------------------------------------------------------------------------------


TABLE = "vision_encoder__layers__0__blocks__0__attn__relative_position_bias_table"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("position_ids", lambda value: value + 2), "position_ids is not the table that this model computes"),
        (changed("relative_position_index", lambda value: value.flip(0)), "_index is not the table that this model"),
        (having(strange__attn_mask=torch.zeros(4, 16, 16)), "nothing explains strange.attn_mask"),
        (without("encoder.layer.11."), "6 text and 5 fusion layers, but those of CCLM-3M/4M are the halves"),
        (without("encoder.layer.4."), "layers up to text_encoder.bert.encoder.layer.11, but no text_encoder.bert.enc"),
        (without("layers.2.blocks.0."), "without layers.2.blocks.0.attn.relative"),
        (changed("word_embeddings.weight", lambda value: value[:, 0]), "word_embeddings.weight is (97,), not of 2 dim"),
        (changed("patch_embed.proj.weight", lambda _: torch.tensor(1.0)), "proj.weight is (), not of 4 dim"),
        (having(**{TABLE: torch.tensor(1.0)}), "table is (), not of 2 dim"),
        (having(temp=torch.ones(2)), "temp is (2,), not of 0 dim"),
        (having(temp=torch.tensor(torch.inf)), "temp is inf, which no temperature is"),
        (without("text_proj"), "nothing explains"),
    ],
)
def test_a_released_checkpoint(change: Change, message: str, tmp_path: Path) -> None:
    file = edited(oracle("cclm_swin/pretrain"), tmp_path / "some.th", change)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        convert(str(file), NONE)
    assert str(raised.value).startswith(f"{file}: ") and "\n" not in str(raised.value)


def test_an_odd_number_of_blocks_is_pointed_out(tmp_path: Path) -> None:
    """A Swin of such a depth can be built, and is what a file that lost the last block of a stage looks like."""
    file = edited(oracle("cclm_swin/pretrain"), tmp_path / "some.th", without("layers.2.blocks.1."))
    found = convert(str(file), NONE)
    assert found.config.backbone_options["depths"] == [2, 2, 1, 2]
    assert "the last of a stage may be missing" in found.guessed["depths"]


@pytest.mark.parametrize(
    ("name", "told", "message"),
    [
        ("cclm_swin/pretrain", {"text_num_hidden_layers": 14}, "text_num_hidden_layers 14, its tensors 12"),
        ("cclm_x2vlm/pretrain", {"text_num_hidden_layers": 13}, "text_num_hidden_layers 13, its tensors 12"),
        ("cclm_x2vlm/pretrain", {"cross_num_hidden_layers": 7}, "cross_num_hidden_layers 7, its tensors 6"),
        ("cclm_swin/pretrain", {"embed_dim": 64}, "embed_dim 64, its tensors 32"),
        ("cclm_x2vlm/pretrain", {"image_res": 128}, "image_res 128, its tensors 64"),
    ],
)
def test_its_own_config_is_held_against_its_tensors(name: str, told: dict, message: str, tmp_path: Path) -> None:
    content = torch.load(oracle(name), weights_only=True)
    torch.save(content | {"config": content["config"] | told}, tmp_path / "some.th")
    with pytest.raises(ValueError, match=message):
        convert(str(tmp_path / "some.th"), NONE)


def test_names_of_distributed_training(tmp_path: Path) -> None:
    weights = torch.load(oracle("cclm_swin/pretrain"), weights_only=True)["model"]
    prefixed = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"model": prefixed}, tmp_path / "ddp.th")
    convert(str(tmp_path / "ddp.th"), NONE).save(tmp_path / "out")
    to_original(tmp_path / "out", tmp_path / "back.th")
    back = torch.load(tmp_path / "back.th", weights_only=True)["model"]
    assert list(back) == list(prefixed) and all(torch.equal(back[name], value) for name, value in prefixed.items())


def test_what_drew_wrong_images_is_kept_for_the_way_back(tmp_path: Path) -> None:
    text = {"vocab_size": 57, "max_positions": 40, "text_layers": 2, "fusion_layers": 2, "num_heads": 4}
    shape = Shape("", True, 64, (1, 2, 4, 8), (2, 2, 2, 2), 64, text, {"window_size": 2})
    config = shape.config(heads=["assign"], images_per_text=2, embedding_size=0)
    released(drawn(config), tmp_path / "assign.th")
    extra = {"vision_proj.weight": torch.randn(16, 64), "vision_proj.bias": torch.randn(16)}
    file = edited(tmp_path / "assign.th", tmp_path / "some.th", lambda weights: weights.update(extra))
    converted = convert(str(file), NONE)
    assert set(extra) <= set(converted.report.left_over)
    converted.save(tmp_path / "out")
    to_original(tmp_path / "out", tmp_path / "back.th")
    want = torch.load(file, weights_only=True)["model"]
    got = torch.load(tmp_path / "back.th", weights_only=True)["model"]
    assert list(got) == list(want) and all(torch.equal(got[name], value) for name, value in want.items())


# -- halves --------------------------------------------------------------------------------------------------------


def accounted(converted: Converted, *files: Path) -> None:
    """Every tensor of the files is named once: taken, or left over for a reason."""
    names = []
    for file in files:
        stored = safetensors.torch.load_file(file) if file.suffix == ".safetensors" else torch.load(file)["model"]
        names += list(stored)
    report = converted.report
    assert sorted([theirs for theirs, _ in report.taken] + list(report.left_over)) == sorted(names)


HALVES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Path], Path]]] = {
    "transformers swin": (hf_swin, in_file()),
    "transformers beit": (hf_beit, in_file()),
    "timm swin": (timm_swin, in_file()),
    "timm beit": (timm_beit, in_file()),
    "microsoft swin": (timm_swin, in_file(microsoft_swin)),
}


@pytest.mark.parametrize("case", HALVES)
def test_every_tensor_of_halves_is_accounted_for(case: str, tmp_path: Path) -> None:
    make, write = HALVES[case]
    file = write(make(), tmp_path)
    text = in_folder(xlm_roberta(24), tmp_path) / "model.safetensors"
    accounted(convert(str(file), ConvertOptions(text=str(text.parent))), file, text)


def test_every_tensor_of_an_x2vlm_is_accounted_for(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    file, text = english(tmp_path)[1], in_file()(xlm_roberta(12), tmp_path / "text")
    accounted(convert(str(file), ConvertOptions(text=str(text))), file, text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("encoder.layer.2.output.dense.bias"), "lack encoder.layer.2.output.dense.bias; fetch"),
        (without("encoder.layer.2."), "but no encoder.layer.2; fetch"),
        (without("embeddings.LayerNorm.bias"), "lack embeddings.LayerNorm.bias"),
        (without("lm_head.dense.bias"), "lack lm_head.dense.bias"),
        (
            having(roberta__encoder__layer__1__adapter__weight=torch.ones(1)),
            "layer.1.adapter.weight, which XLM-R has not",
        ),
        (having(roberta__embeddings__position_ids=torch.arange(66)[None] + 2), "position_ids is not the table"),
    ],
)
def test_an_xlm_roberta_that_is_not_whole(change: Change, message: str, tmp_path: Path) -> None:
    file = in_file()(xlm_roberta(), tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(str(edited(file, tmp_path / "some.pth", change)), NONE)


def test_a_decoder_that_is_not_tied(tmp_path: Path) -> None:
    change = having(lm_head__decoder__weight=torch.ones(97, 64))
    text = edited(in_file()(xlm_roberta(), tmp_path), tmp_path / "some.pth", change)
    why = convert(str(text), NONE).report.left_over["lm_head.decoder.weight"]
    assert why.startswith("the model spells words with a table of its own")
    swin = in_folder(hf_swin(), tmp_path)
    with pytest.raises(ValueError, match=r"lm_head\.decoder\.weight should equal .*word_embeddings\.weight"):
        convert(str(swin), ConvertOptions(text=str(text)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layer.15.output.dense."), "without text_encoder.bert.encoder.layer.15.output.dense.weight"),
        (without("blocks.1.norm1.bias"), "lack blocks.1.norm1.bias"),
        (without("itm_head.0.bias"), "without itm_head.0.bias"),
        (
            having(text_encoder__bert__adapter__weight=torch.ones(1)),
            "nothing explains text_encoder.bert.adapter.weight",
        ),
        (changed("bert.embeddings.position_ids", lambda value: value + 2), "position_ids is not the table"),
    ],
)
def test_an_x2vlm_that_is_not_whole(change: Change, message: str, tmp_path: Path) -> None:
    file = edited(english(tmp_path)[1], tmp_path / "some.th", change)
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(str(file), ConvertOptions(text=str(in_folder(xlm_roberta(12), tmp_path / "text"))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (having(strange__attn_mask=torch.zeros(4, 16, 16)), "nothing explains strange.attn_mask"),
        (having(fc__adapter=torch.ones(1)), "no place for fc.adapter"),
        (having(fc__adapter__weight=torch.ones(1)), "no place for fc.adapter.weight"),
        (without("layers.1.blocks.0.norm1.bias"), "lack layers.1.blocks.0.norm1.bias"),
        (changed("relative_position_index", lambda value: value.flip(0)), "is not the table that this model computes"),
        (having(embeddings__mask_token=torch.ones(1)), "is of a model that fills in masked images"),
    ],
)
def test_a_swin_that_is_not_whole(change: Change, message: str, tmp_path: Path) -> None:
    file = in_file(microsoft_swin)(timm_swin(), tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(str(edited(file, tmp_path / "some.pth", change)), NONE)


def test_one_strange_name_does_not_misplace_the_others() -> None:
    backbone = timm_beit()
    weights = dict(reversed(backbone.state_dict().items()))
    weights["blocks.0.norm9.bias"] = weights.pop("blocks.0.norm1.bias")
    with pytest.raises(ValueError, match=r"no place for blocks\.0\.norm9\.bias"):
        load_backbone(backbone, weights)


def test_what_no_tensor_tells_is_read_beside_it_or_told(tmp_path: Path) -> None:
    file = in_file()(xlm_roberta(), tmp_path)
    assert set(convert(str(file), NONE).guessed) == {"num_heads", "norm_eps"}
    told = {"num_attention_heads": 8, "layer_norm_eps": 1e-6, "hidden_size": 64, "model_type": "xlm-roberta"}
    beside = file.with_name("config.json")
    beside.write_text(json.dumps(told))
    converted = convert(str(file), NONE)
    assert not converted.guessed and (converted.config.num_heads, converted.config.norm_eps) == (8, 1e-6)
    beside.write_text(json.dumps(told | {"model_type": "beit"}))  # another's
    assert set(convert(str(file), NONE).guessed) == {"num_heads", "norm_eps"}
    beside.write_text(json.dumps(told | {"num_hidden_layers": 6}))
    with pytest.raises(ValueError, match="config.json says num_hidden_layers 6, the text weights hold 4"):
        convert(str(file), NONE)


def test_the_image_size_of_a_swin_is_guessed_where_nothing_tells_it(tmp_path: Path) -> None:
    assert set(convert(str(in_file()(timm_swin(), tmp_path)), NONE).guessed) == {"image_size"}
    assert not convert(str(in_file(microsoft_swin)(timm_swin(), tmp_path)), NONE).guessed
    assert not convert(str(in_folder(hf_swin(), tmp_path)), NONE).guessed
