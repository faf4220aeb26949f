"""Released checkpoints become the same function, of any geometry, and come back bit-equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from cclm.models.convert import Converted, ConvertOptions, convert, to_original
from cclm.models.families import SWIN, X2VLM, Naming, geometry, recognise
from cclm.models.model import CCLMModel
from cclm.models.resize import resize_table
from tests.models.checkpoints import ALL, Shape, drawn, oracle, outputs, released

NONE = ConvertOptions()


def stored(file: Path) -> Any:
    return torch.load(file, weights_only=True)


def there_and_back(source: Path, folder: Path, options: ConvertOptions = NONE, name: str = "back.th") -> Path:
    converted = convert(str(source), options)
    (folder / "out").mkdir()
    converted.save(folder / "out")
    to_original(folder / "out", folder / name)
    return folder / name


def loaded(converted: Converted, folder: Path) -> CCLMModel:
    folder.mkdir()
    converted.save(folder)
    return CCLMModel.from_pretrained(folder).eval()


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_what_comes_back_is_what_was_read(name: str, tmp_path: Path) -> None:
    """Tensors, their kinds, their order, what is tied, and the configuration beside them."""
    source = oracle(name)
    got, want = stored(there_and_back(source, tmp_path)), stored(source)
    same(got["model"], want["model"])
    assert {k: v for k, v in got.items() if k != "model"} == {k: v for k, v in want.items() if k != "model"}
    decoder = "text_encoder.cls.predictions.decoder.weight"
    if decoder in want["model"]:
        words = got["model"]["text_encoder.bert.embeddings.word_embeddings.weight"]
        assert got["model"][decoder].data_ptr() == words.data_ptr()


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fine-tuned form for retrieval: the pretrained one under the names that were recorded of it."""
    source = oracle("cclm_swin/pretrain")
    weights = stored(source)["model"]
    weights |= {name.replace("text_encoder.bert.", "text_encoder."): value for name, value in weights.items()}
    expected = torch.load(source.with_name("expected.pt"), weights_only=True)
    names = expected["finetune"]["retrieval"]["state_dict_keys"]
    file = tmp_path_factory.mktemp("retrieval") / "finetuned_retrieval.th"
    torch.save({"model": {name: weights[name] for name in names}}, file)
    return file


def test_the_form_fine_tuned_for_retrieval(retrieval: Path, tmp_path: Path) -> None:
    converted = convert(str(retrieval), NONE)
    assert converted.config.heads == ["match"] and converted.config.embedding_size == 32 and not converted.report.new
    same(stored(there_and_back(retrieval, tmp_path))["model"], stored(retrieval)["model"])


def half(weights: dict[str, Tensor], kind: torch.dtype, but: str = "") -> dict[str, Tensor]:
    return {
        name: value.to(kind) if value.is_floating_point() and not (but and name.startswith(but)) else value
        for name, value in weights.items()
    }


@pytest.mark.parametrize("name", ["cclm_swin/pretrain", "cclm_x2vlm/pretrain"])
@pytest.mark.parametrize(
    ("kind", "but"), [(torch.float16, ""), (torch.bfloat16, ""), (torch.float64, ""), (torch.float16, "vision_")]
)
def test_the_precision_is_kept(name: str, kind: torch.dtype, but: str, tmp_path: Path) -> None:
    weights = half(stored(oracle(name))["model"], kind, but)
    torch.save({"model": weights}, tmp_path / "half.th")
    same(stored(there_and_back(tmp_path / "half.th", tmp_path))["model"], weights)
    if not but:  # a model computes in one precision
        assert {value.dtype for value in CCLMModel.from_pretrained(tmp_path / "out").parameters()} == {kind}


def other_forms(file: Path, folder: Path) -> dict[str, Path]:
    """One checkpoint in every form that a file of weights may have."""
    content = stored(file)
    torch.save(content["model"], folder / "bare.th")
    torch.save({"state_dict": content["model"], "epoch": 29}, folder / "wrapped.ckpt")
    torch.save(content, folder / "legacy.th", _use_new_zipfile_serialization=False)
    apart = {name: value.clone() for name, value in content["model"].items()}
    safetensors.torch.save_file(apart, folder / "apart.safetensors")
    (folder / "parts").mkdir()
    names = list(apart)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, own in halves.items():
        safetensors.torch.save_file({name: apart[name] for name in own}, folder / "parts" / part)
    index = {"weight_map": {name: part for part, own in halves.items() for name in own}}
    (folder / "parts" / "model.safetensors.index.json").write_text(json.dumps(index))
    return {name: folder / name for name in ("bare.th", "wrapped.ckpt", "legacy.th", "apart.safetensors", "parts")}


@pytest.mark.parametrize("form", ["bare.th", "wrapped.ckpt", "legacy.th", "apart.safetensors", "parts"])
def test_every_form_of_file(form: str, tmp_path: Path) -> None:
    want = convert(str(oracle("cclm_swin/pretrain")), NONE)
    source = other_forms(oracle("cclm_swin/pretrain"), tmp_path)[form]
    got = convert(str(source), NONE)
    assert got.config.to_dict() == want.config.to_dict() and set(got.report.filled) == set(want.report.filled)
    for name, value in want.state.items():
        assert torch.equal(got.state[name], value), name
    back = there_and_back(source, tmp_path, name="back.safetensors" if form.startswith("apart") else "back.th")
    if form == "bare.th":
        same(stored(back), stored(source))
    elif form == "wrapped.ckpt":
        same(stored(back)["state_dict"], stored(source)["state_dict"])
    elif form == "apart.safetensors":
        same(safetensors.torch.load_file(back), safetensors.torch.load_file(source))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("gone", ["attn_mask", "relative_position_index", "position_ids", ""])
def test_tables_that_are_computed_may_be_missing(name: str, gone: str, tmp_path: Path) -> None:
    """The image size is found without the mask too; what was not read is not written back."""
    content, want = stored(oracle(name)), convert(str(oracle(name)), NONE)
    ends = (gone,) if gone else ("attn_mask", "relative_position_index", "position_ids")
    weights = {name: value for name, value in content["model"].items() if not name.endswith(ends)}
    torch.save({"model": weights}, tmp_path / "less.th")
    got = convert(str(tmp_path / "less.th"), NONE)
    assert got.config.to_dict() == want.config.to_dict() and not got.report.new
    same(stored(there_and_back(tmp_path / "less.th", tmp_path))["model"], weights)


# -- any geometry ------------------------------------------------------------------------------------------------------


def text(vocabulary: int, positions: int, layers: int, fusion: int, heads: int, embedding: int = 64) -> dict[str, int]:
    names = ("vocab_size", "max_positions", "text_layers", "fusion_layers", "num_heads", "embedding_size")
    return dict(zip(names, (vocabulary, positions, layers, fusion, heads, embedding), strict=True))


SHAPES = [
    Shape("wide", True, 128, (2, 4, 8, 16), (2, 2, 4, 2), 128, text(1201, 130, 3, 3, 8), {"window_size": 4}),
    Shape("narrow", True, 32, (1, 2, 4, 8), (2, 2, 2, 2), 128, text(57, 40, 1, 1, 4, 8), {"window_size": 4}),
    Shape("uneven", True, 96, (1, 2, 4, 8), (2, 2, 4, 2), 96, text(300, 70, 2, 3, 4), {"window_size": 3}),
    Shape("three stages", True, 64, (2, 4, 8), (2, 2, 2), 48, text(97, 66, 3, 3, 4), {"window_size": 3}),
    Shape("coarse", True, 192, (3, 6, 12, 24), (2, 2, 2, 2), 192, text(97, 66, 1, 2, 12), {"patch_size": 6}),
    # The last stage's map is smaller than the window, or larger.
    Shape("shrunk", True, 64, (1, 2, 4, 8), (2, 2, 2, 2), 64, text(97, 66, 1, 1, 4), {"window_size": 4}),
    Shape("shifted", True, 64, (1, 2, 4, 8), (2, 2, 2, 2), 256, text(97, 66, 1, 1, 4), {"window_size": 4}),
    Shape("thin", True, 64, (1, 2, 4, 8), (2, 2, 2, 2), 128, text(97, 66, 1, 1, 4), {"mlp_ratio": 2.0}),
    Shape("beit", False, 96, (6,), (6,), 64, text(1201, 130, 24, 4, 6), {}),
    Shape("small", False, 48, (4,), (2,), 32, text(57, 40, 3, 2, 4, 8), {"patch_size": 8}),
    Shape("large", False, 256, (4,), (3,), 96, text(300, 70, 2, 3, 4), {"mlp_ratio": 3.0}),
]
for shape in SHAPES:  # windows that fill the last stage, where no other are given
    if shape.swin:
        shape.options.setdefault("window_size", shape.image_size // (shape.options.get("patch_size", 4) * 8))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_other_geometries(shape: Shape, tmp_path: Path) -> None:
    """Nothing of the two published geometries is built in: everything is read off the tensors."""
    source = drawn(shape.config())
    weights = released(source, tmp_path / "other.th")
    converted = convert(str(tmp_path / "other.th"), NONE)
    assert converted.family == (SWIN if shape.swin else X2VLM) and not converted.report.new
    got, want = converted.config.to_dict(), source.config.to_dict()
    loose = {"backbone_options", "temperature", "architectures", "dtype"}  # these two tell of the writing
    assert {name for name in want if got[name] != want[name]} <= loose
    assert got["temperature"] == pytest.approx(want["temperature"], abs=1e-7)
    for name, value in (source.config.backbone_options or {}).items():
        assert converted.config.backbone_options[name] == value
    ours = outputs(loaded(converted, tmp_path / "ours"))
    for name, value in outputs(source).items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    to_original(tmp_path / "ours", tmp_path / "back.th")
    same(stored(tmp_path / "back.th")["model"], weights)


def test_a_form_with_two_images_of_another_geometry(tmp_path: Path) -> None:
    shape = SHAPES[0]
    changes = {"heads": ["classify"], "labels": ["False", "True"], "images_per_text": 2, "embedding_size": 0}
    for name, config in {
        "interleaved": shape.config(**changes),
        "apart": SHAPES[-2].config(**changes, several_images="apart"),
    }.items():
        source = drawn(config)
        released(source, tmp_path / f"{name}.th")
        converted = convert(str(tmp_path / f"{name}.th"), NONE)
        assert converted.config.several_images == name and converted.config.fusion_layers == config.fusion_layers
        ours = outputs(loaded(converted, tmp_path / f"{name}.ours"))
        for part, value in outputs(source).items():
            torch.testing.assert_close(ours[part], value, rtol=0, atol=1e-6)


def test_equal_fusion_layers_do_not_make_a_form_with_two_images(tmp_path: Path) -> None:
    source = drawn(SHAPES[0].config(text_layers=2, fusion_layers=2))
    with torch.no_grad():
        source.fusion.blocks[1].load_state_dict(source.fusion.blocks[0].state_dict())
    released(source, tmp_path / "equal.th")
    converted = convert(str(tmp_path / "equal.th"), NONE)
    assert (converted.config.images_per_text, converted.config.fusion_layers) == (1, 2)


# -- heads: no tensor has a dimension of their number -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "told", "given", "heads"),
    [
        (0, {}, None, 8),  # two of Swin's last stage to one of the text's, as in every published model
        (1, {}, None, 4),
        (8, {}, None, 6),  # as many as BEiT's
        (9, {}, None, 4),
        (0, {"num_attention_heads": 2}, None, 2),
        (0, {"text_config": {"num_attention_heads": 16}, "vision_config": {"num_attention_heads": 4}}, None, 16),
        (0, {"text_encoder": "xlm-roberta-large"}, None, 8),  # not of that width: the name says nothing
        (0, {"text_config": {"num_attention_heads": 16}}, 4, 4),
        (8, {}, 3, 3),
    ],
)
def test_heads(index: int, told: dict[str, Any], given: int | None, heads: int, tmp_path: Path) -> None:
    weights = released(drawn(SHAPES[index].config(num_heads=heads)), tmp_path / "some.th")
    torch.save({"model": weights, "config": told}, tmp_path / "some.th")
    converted = convert(str(tmp_path / "some.th"), ConvertOptions(num_heads=given))
    assert converted.config.num_heads == heads
    known = given is not None or "num_attention_heads" in json.dumps(told.get("text_config", told))
    assert set(converted.guessed) == (set() if known else {"num_heads"})


@pytest.mark.parametrize(("name", "width", "heads"), [("base", 768, 12), ("data/xlm-roberta-large", 1024, 16)])
def test_the_published_text_encoders_are_known_by_name(name: str, width: int, heads: int) -> None:
    name = name if "/" in name else f"xlm-roberta-{name}"
    shape = Shape("published", True, width, (1, 2, 4, 8), (1, 1, 1, 1), 64, text(57, 40, 1, 1, heads), {})
    options = {"embed_dim": width // 8, "depths": [2] * 4, "num_heads": [1, 2, 4, 8], "window_size": 2}
    with torch.device("meta"):
        model = CCLMModel(shape.config(backbone_options=options))
    naming = Naming(SWIN, model.config, bare=False)
    weights = {theirs: value for ours, value in model.state_dict().items() for theirs in naming.theirs(ours)}
    weights["temp"] = torch.tensor(0.07)
    assert recognise(weights) == SWIN
    found = geometry(SWIN, weights, {"text_encoder": name}, None)
    assert found.naming.config.num_heads == heads and "num_heads" not in found.guessed


# -- image sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "rows"),
    [
        ("cclm_swin/pretrain", 256, 225),
        ("cclm_swin/pretrain", 64, 9),
        ("cclm_swin/finetuned_nlvr", 192, 121),
        ("cclm_x2vlm/pretrain", 96, 124),
        ("cclm_x2vlm/pretrain", 32, 12),
    ],
)
def test_another_image_size(name: str, size: int, rows: int, tmp_path: Path) -> None:
    """Relative-position tables are resized, and nothing else; the model runs, and goes back and forth as it is."""
    before = convert(str(oracle(name)), NONE)
    after = convert(str(oracle(name)), ConvertOptions(image_size=size))
    assert after.config.image_size == size and list(after.state) == list(before.state)
    tables = [key for key in before.state if key.endswith("relative_position_bias_table")]
    assert after.resized == len(tables) > 0
    for key, value in before.state.items():
        if key in tables:
            assert len(after.state[key]) == rows and torch.equal(after.state[key], resize_table(value, rows))
        else:
            assert torch.equal(after.state[key], value)
    assert all(value.isfinite().all() for value in outputs(loaded(after, tmp_path / "out")).values())
    to_original(tmp_path / "out", tmp_path / "resized.th")
    again = convert(str(tmp_path / "resized.th"), NONE)
    written = {"architectures", "dtype"}  # of a config that has been on disk
    assert {k: v for k, v in again.config.to_dict().items() if k not in written} == {
        k: v for k, v in after.config.to_dict().items() if k not in written
    }
    assert all(torch.equal(again.state[key], value) for key, value in after.state.items())
    config = stored(tmp_path / "resized.th").get("config")
    assert config is None or config["image_res"] == size


def test_the_size_it_has_changes_nothing() -> None:
    before, same_size = (
        convert(str(oracle("cclm_swin/pretrain")), options) for options in (NONE, ConvertOptions(image_size=128))
    )
    assert not same_size.resized and same_size.config.to_dict() == before.config.to_dict()


def test_windows_keep_their_share_of_the_last_map(tmp_path: Path) -> None:
    """At 256 pixels this Swin has windows of 4 on a last map of 8 a side, at 128 of 2 on 4; its masks stay."""
    released(drawn(SHAPES[6].config()), tmp_path / "shifted.th")
    there_and_back(tmp_path / "shifted.th", tmp_path, ConvertOptions(image_size=128))
    assert set(stored(tmp_path / "shifted.th")["model"]) == set(stored(tmp_path / "back.th")["model"])
    again = convert(str(tmp_path / "back.th"), NONE).config
    assert (again.image_size, again.backbone_options["window_size"]) == (128, 2)
    with pytest.raises(
        ValueError, match=r"image size 96 leaves windows of 4 on a last map of 8 no whole side; try 128"
    ):
        convert(str(tmp_path / "shifted.th"), ConvertOptions(image_size=96))


# -- the account -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_every_tensor_is_accounted_for(name: str) -> None:
    content, converted = stored(oracle(name))["model"], convert(str(oracle(name)), NONE)
    assert sorted(converted.report.filled) == sorted(converted.state) and not converted.report.new
    assert set(converted.report.left_over) <= set(content)
    buffers = [key for key in content if key.endswith(("position_ids", "attn_mask", "relative_position_index"))]
    assert set(buffers) <= set(converted.report.left_over)
    assert set(converted.report.left_over.values()) <= {
        "computed, not learned",
        "it only drew wrong images while the model was trained to assign texts",
    }
