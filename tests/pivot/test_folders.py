"""Folders that hold what trained and refer to the rest: references, weights, notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cclm.pivot.fingerprints import agree, fingerprint
from cclm.pivot.folders import held, read_config, reference, resolved, take, write
from cclm.pivot.notes import TrainingNotes

NOTES = {"presets": ["chat_s1"], "languages": ["en"], "translated": {}}


def test_what_lies_here_is_found_again_when_both_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("old/model", "old/export/pretrained"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    told = reference("old/model", tmp_path / "old/export/pretrained")
    assert told == "../../model"
    (tmp_path / "old").rename("new")
    assert Path(resolved(told, "new/export/pretrained", "part")).resolve() == tmp_path / "new/model"
    inside = reference("new/model", tmp_path / "new")
    assert inside == "./model" and Path(resolved(inside, "new", "part")).resolve() == tmp_path / "new/model"
    (tmp_path / "new/model").rename("model")
    for part, given in (("denoiser", ""), ("language model", ", give --language_model")):
        with pytest.raises(ValueError) as error:
            resolved(inside, "new", part)
        lies = f"no {part} at new/model; move it along{given}, or correct config.json"
        assert str(error.value) == f"new needs a part that is not there: {lies}"


def test_what_lies_elsewhere_keeps_its_name(tmp_path: Path) -> None:
    for name in ("Qwen/Qwen3-0.6B", "package:weights", "gpt2"):
        assert resolved(reference(name, tmp_path), tmp_path, "part") == name


def test_a_folder_holds_what_trained(tmp_path: Path) -> None:
    def model() -> nn.Module:
        return nn.ModuleDict({"frozen": nn.BatchNorm1d(2), "trained": nn.BatchNorm1d(2), "tied": nn.Linear(2, 2)})

    ours = model()
    ours["frozen"].requires_grad_(False)
    ours["tied"].requires_grad_(False)
    ours["trained"](torch.randn(3, 2))
    names = held(ours)
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert names == {f"trained.{name}" for name in {"weight", "bias", *statistics}}
    write(tmp_path, "ours", {"fingerprints": {}} | NOTES, ours, names)
    other = model()
    assert take(tmp_path, "ours", other, {}) == (names, TrainingNotes.of(NOTES))
    assert torch.equal(other["trained"].running_mean, ours["trained"].running_mean)
    assert not torch.equal(other["tied"].weight, ours["tied"].weight)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    bridge = nn.ModuleDict({"bridge": nn.Linear(2, 2)})
    write(tmp_path, "ours", {"fingerprints": {"image_encoder": "a"}} | NOTES, bridge, {"bridge.weight"})
    with pytest.raises(ValueError, match=r"holds bridge.weight, for which this model has no place; give"):
        take(tmp_path, "ours", nn.ModuleDict({"other": nn.Linear(2, 2)}), {"image_encoder": "a"})
    with pytest.raises(ValueError, match=r"^bridge.weight is \(2, 2\) in .* and \(3, 2\) in this model; give"):
        take(tmp_path, "ours", nn.ModuleDict({"bridge": nn.Linear(2, 3)}), {"image_encoder": "a"})
    for other in ("b", ""):
        with pytest.raises(ValueError, match="was trained with another image encoder than the one that is given; give"):
            take(tmp_path, "ours", bridge, {"image_encoder": other})


@pytest.mark.parametrize(
    "changes",
    [{name: None} for name in ("fingerprints", "tensors", *NOTES)]
    + [{"fingerprints": {}}, {"fingerprints": {"part": "", "vision": ""}}, {"fingerprints": "a"}, {"translated": "de"}],
)
def test_a_config_that_lacks_something_is_damaged(tmp_path: Path, changes: dict[str, object]) -> None:
    model = nn.Linear(2, 2)
    write(tmp_path, "ours", {"fingerprints": {"part": ""}} | NOTES, model, {"weight"})
    told = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps({name: v for name, v in told.items() if v is not None}))
    with pytest.raises(ValueError, match=r"config.json is damaged \(.*\); export the model again$"):
        take(tmp_path, "ours", model, {"part": ""})


def test_weights_that_are_gone_are_missed(tmp_path: Path) -> None:
    model, file = nn.Linear(2, 2), tmp_path / "model.safetensors"
    write(tmp_path, "ours", {"fingerprints": {}} | NOTES, model, {"weight", "bias"})
    stored = load_file(file)
    for left, told in ((["bias"], "weight"), (["more"], "bias and 1 more")):
        save_file({name: stored.get(name, stored["bias"]) for name in left}, file)
        with pytest.raises(ValueError, match=f"^{tmp_path} is damaged: {file.name} lacks {told}; export it again$"):
            take(tmp_path, "ours", model, {})
    file.write_bytes(b"junk")
    with pytest.raises(ValueError, match=f"^{tmp_path} is damaged: {file} is cut, .*; export it again$"):
        take(tmp_path, "ours", model, {})
    file.unlink()
    with pytest.raises(ValueError, match=f"^{tmp_path} is damaged: no weight file at {file}; export it again$"):
        take(tmp_path, "ours", model, {})


def test_fingerprints_tell_layers_where_both_can() -> None:
    vector, layer = torch.randn(4), torch.randn(3, 4)
    made = fingerprint("a", [vector, layer])
    assert agree(made, fingerprint("a", [vector.bfloat16(), layer.bfloat16()])) and agree("", "")
    packed = fingerprint("a", [vector, torch.ones(6, 1, dtype=torch.uint8)], quantised=True)
    assert agree(made, packed) and agree(packed, made) and agree(packed, packed)
    others = fingerprint("a", [vector, layer + 1]), fingerprint("a", [vector + 1, layer]), fingerprint("b", [vector])
    assert not any(agree(made, other) or agree(other, made) for other in (*others, ""))


def test_folders_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no config.json in"):
        read_config(tmp_path, "ours", dict)
    with pytest.raises(ValueError, match="no pretrained folder at .*nowhere; train one"):
        read_config(tmp_path / "nowhere", "ours", dict)
    write(tmp_path, "theirs", {"a": 1}, nn.Linear(2, 2), {"weight"})
    with pytest.raises(ValueError, match="holds a model of type theirs, not ours; give another"):
        read_config(tmp_path, "ours", dict)
    assert read_config(tmp_path, "theirs", dict) == {"model_type": "theirs", "a": 1, "tensors": ["weight"]}
    for damaged in ("[1", "[1]", "{}"):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"config.json is damaged \(.*\); export the model again"):
            read_config(tmp_path, "ours", dict)


def test_a_language_once_met_stays_met() -> None:
    first = TrainingNotes(("chat_s1",), ("en",))
    second = TrainingNotes(("chat_s2",), ("cs", "de"), {"de": 0.05, "cs": 0.05})
    third = first.then(second).then(TrainingNotes(("chat_s2",), ("en", "de"), {"de": 0.01}))
    assert third == TrainingNotes(("chat_s1", "chat_s2", "chat_s2"), ("cs", "de", "en"), {"cs": 0.05, "de": 0.05})
    assert third.then(TrainingNotes((), ("de",))).translated == {"cs": 0.05}  # not only by translations any longer
    assert TrainingNotes.of(NOTES) == first
