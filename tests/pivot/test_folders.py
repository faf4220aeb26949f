"""Folders that hold what trained and refer to the rest: references, weights, notes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cclm.pivot.folders import fill, held, read_config, reference, resolved, write_config, write_weights
from cclm.pivot.notes import TrainingNotes


def test_what_lies_here_is_found_again_when_both_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("old/model", "old/export/pretrained"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    told = reference("old/model", tmp_path / "old/export/pretrained")
    assert told == "../../model"
    (tmp_path / "old").rename("new")
    assert Path(resolved(told, "new/export/pretrained")).resolve() == tmp_path / "new/model"
    inside = reference("new/model", tmp_path / "new")
    assert inside == "./model" and Path(resolved(inside, "new")).resolve() == tmp_path / "new/model"


def test_what_lies_elsewhere_keeps_its_name(tmp_path: Path) -> None:
    for name in ("Qwen/Qwen3-0.6B", "package:weights", "gpt2"):
        assert resolved(reference(name, tmp_path), tmp_path) == name


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
    write_weights(tmp_path, ours, names)
    other = model()
    assert fill(tmp_path, other) == names
    assert torch.equal(other["trained"].running_mean, ours["trained"].running_mean)
    assert not torch.equal(other["tied"].weight, ours["tied"].weight)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    write_weights(tmp_path, nn.ModuleDict({"bridge": nn.Linear(2, 2)}), {"bridge.weight"})
    with pytest.raises(ValueError, match=r"holds bridge.weight, for which this model has no place; give"):
        fill(tmp_path, nn.ModuleDict({"other": nn.Linear(2, 2)}))
    with pytest.raises(ValueError, match=r"^bridge.weight is \(2, 2\) in .* and \(3, 2\) in this model; give"):
        fill(tmp_path, nn.ModuleDict({"bridge": nn.Linear(2, 3)}))


def test_folders_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no config.json in"):
        read_config(tmp_path, "ours")
    with pytest.raises(ValueError, match="no pretrained folder at .*nowhere; train one"):
        read_config(tmp_path / "nowhere", "ours")
    write_config(tmp_path, "theirs", {"a": 1})
    with pytest.raises(ValueError, match="holds a model of type theirs, not ours; give another"):
        read_config(tmp_path, "ours")
    assert read_config(tmp_path, "theirs") == {"model_type": "theirs", "a": 1}
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(ValueError, match="config.json is damaged"):
        read_config(tmp_path, "ours")


def test_a_language_once_met_stays_met() -> None:
    first = TrainingNotes(("chat_s1",), ("en",))
    second = TrainingNotes(("chat_s2",), ("cs", "de"), {"de": 0.05, "cs": 0.05})
    third = first.then(second).then(TrainingNotes(("chat_s2",), ("en", "de"), {"de": 0.01}))
    assert third == TrainingNotes(("chat_s1", "chat_s2", "chat_s2"), ("cs", "de", "en"), {"cs": 0.05, "de": 0.05})
    assert third.then(TrainingNotes((), ("de",))).translated == {"cs": 0.05}  # not only by translations any longer
    assert TrainingNotes.of({"presets": ["chat_s1"], "languages": ["en"], "translated": {}}) == first
