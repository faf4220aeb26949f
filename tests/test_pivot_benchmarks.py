"""benchmarks/pivot_*.py and scene_reader.py: what they count, on answers and pictures that are known."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from cclm.evaluation.generation import GenerationReport
from data_recipes.scenes import LANGUAGES, SCENES, VALUES, Scene, describe, draw

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import pivot_scenes

    return pivot_scenes


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import pivot_runs

    return pivot_runs


def test_the_language_of_an_answer_is_that_of_its_words(scenes: ModuleType) -> None:
    for language in LANGUAGES:
        for scene in SCENES[::7]:
            assert all(scenes.written_in(text) == language for text in describe(scene, language))
    assert scenes.written_in("ein kleine rot Stern rechts") == "de"  # ungrammatical, and German
    assert scenes.written_in("a small roter circle on the left") == "en"
    assert scenes.written_in("") is None and scenes.written_in("xyz 12") is None
    assert scenes.written_in("star Stern") is None


def test_captions_are_right_only_in_their_language(scenes: ModuleType) -> None:
    asked = [Scene("red", "star", "small", "left"), Scene("blue", "circle", "large", "top")] * 2
    texts = [describe(asked[0], "de")[1], describe(asked[0], "de")[0], describe(asked[2], "en")[0], "ein roter Kreis"]
    assert scenes.caption_scores(texts, asked, "de") == {
        "exact": 0.25,  # the second says another scene, the third another language, the last is no sentence
        "fidelity": 0.75,
        "grammatical": 0.5,
        "colour": 0.25,
        "shape": 0.25,
        "size": 0.25,
        "position": 0.25,
    }


def test_pictures_are_judged_beside_mismatched_captions(scenes: ModuleType) -> None:
    asked = [scene for scene in SCENES if scene.held_out]
    perfect = scenes.picture_scores(asked, asked)
    assert perfect["attributes"] == perfect["exact"] == perfect["shape"] == 1.0
    pairs = [(a, b) for a in asked for b in asked if a is not b]
    shared = sum(sum(getattr(a, name) == getattr(b, name) for name in VALUES) for a, b in pairs) / 4 / len(pairs)
    assert perfect["mismatched"] == pytest.approx(shared) and 0.2 < shared < 0.3
    blind = scenes.picture_scores([asked[0]] * len(asked), asked)
    assert blind["attributes"] == pytest.approx(blind["mismatched"], abs=0.02)
    half = scenes.picture_scores([Scene("red", one.shape, one.size, "left") for one in asked], asked)
    assert half["shape"] == half["size"] == 1.0 > half["attributes"] > 0.5 and half["exact"] < 0.1
    kept = scenes.with_kept({"en": perfect, "de": half}, {"en": 0.8, "de": 0.4})
    assert kept["en"]["kept"] == 1.0 and kept["de"]["kept"] == 0.5
    assert scenes.with_kept({"en": blind}, {"en": 0.0})["en"]["kept"] == 0.0


def test_every_scene_held_out_is_painted_by_other_sentences(scenes: ModuleType) -> None:
    prompts = scenes.test_prompts(2)
    assert len(prompts) == 160 == len(set(prompts)) and {number for _, number in prompts} == {0, 1, 2, 3}
    assert {scene for scene, _ in prompts[:80]} == {scene for scene in SCENES if scene.held_out}
    pictures = {"aligned": {language: [Image.new("RGB", (8, 8))] * 80 for language in LANGUAGES}}
    assert scenes.sheet(pictures).width > 8 * 144


def test_a_result_has_means_deviations_and_a_chart(scenes: ModuleType, tmp_path: Path) -> None:
    asked = [scene for scene in SCENES if scene.held_out][:4]
    found = {language: scenes.picture_scores(asked, asked) for language in LANGUAGES}
    by_seed = [
        scenes.with_kept(found, dict(zip(LANGUAGES, heights, strict=True))) for heights in ((1, 0.9, 0.8, 1),) * 2
    ]
    by_seed[1]["tr"]["kept"] = 0.6
    result = scenes.summary(by_seed)
    assert result["least_kept"] == {"mean": 0.7, "deviation": 0.141, "seeds": [0.8, 0.6]}
    assert result["de"]["attributes"]["mean"] == 1.0
    scenes.chart({"paint": {variant: result for variant in scenes.LANGUAGE_MODELS}}, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").width > 600


def test_a_folder_is_taken_only_where_it_was_trained_as_asked(runs: ModuleType, tmp_path: Path) -> None:
    run = runs.Run("lm", "configs/pivot/scenes_lm.yaml", 3, {"trainer.max_steps": 2})
    folder = run.folder(tmp_path)
    arguments = ["--config", run.config, f"--trainer.default_root_dir={folder}", "--seed_everything=3"]
    wanted = runs.asked((*arguments, "--trainer.max_steps=2"))
    resumed = wanted.replace("ckpt_path: null", "ckpt_path: last.ckpt")
    assert resumed != wanted
    for number, told in ((9, "another"), (10, resumed)):  # the last counts
        logs = folder / "lightning_logs" / f"version_{number}"
        logs.mkdir(parents=True)
        (logs / "config_of_run.yaml").write_text(told)
    (folder / "pretrained").mkdir()
    (folder / "pretrained" / "config.json").write_text('{"model_type": "llama"}')
    assert runs.fitted(run, tmp_path) == folder / "pretrained"
    with pytest.raises(SystemExit, match="was trained otherwise than now asked for"):
        runs.fitted(runs.Run("lm", run.config, 3), tmp_path)
    assert runs.noted([folder]) == {"seconds": [None], "device": [None], "commit": [None]}
    (folder / runs.NOTE).write_text(json.dumps({"seconds": 5, "device": "H", "commit": "x"}))
    assert runs.noted([folder]) == {"seconds": [5], "device": ["H"], "commit": ["x"]}
    assert runs.further(["--data.loader.workers=2"]) == {"data.loader.workers": "2"}
    with pytest.raises(ValueError, match="'--smok' is no option; those of `cclm fit` are --key=value"):
        runs.further(["--smok"])
    assert runs.over_seeds([{"x": 1.0}]) == {"x": {"mean": 1.0, "deviation": None, "seeds": [1.0]}}


def test_emoji_are_compared_with_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import pivot_emoji

    def report(*values: float) -> GenerationReport:
        languages = {
            language: {"R-precision@10": value, "R-precision@10_mismatched": 10.0, "FID": 1.0}
            for language, value in zip(pivot_emoji.LANGUAGES, values, strict=True)
        }
        return GenerationReport(languages, {"R-precision@10": 99.0}, {"en": "supervised"}, {})

    found = pivot_emoji.summary([report(80, 60, 40, 70, 60, 50), report(80, 60, 60, 70, 60, 48)])
    assert found["ratio"]["seeds"] == [0.5, 0.6] and found["kept"]["seeds"] == [0.429, 0.543]
    assert found["languages"]["fr"]["R-precision@10"]["mean"] == 50.0
    assert found["real"]["R-precision@10"]["mean"] == 99.0 and found["regimes"] == {"en": "supervised"}


def test_the_reader_learns_a_handful_of_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import io

    import scene_reader

    few = SCENES[:: len(SCENES) // 12][:12]
    monkeypatch.setattr(scene_reader, "SCENES", few)
    monkeypatch.setattr(scene_reader, "BATCH", 12)
    reader = scene_reader.train(epochs=40, draws=2)
    fresh = [Image.open(io.BytesIO(draw(scene, random.Random("fresh"), 48))) for scene in few]
    read = reader.read(fresh)
    right = [getattr(a, name) == getattr(b, name) for a, b in zip(read, few, strict=True) for name in VALUES]
    assert sum(right) / len(right) > 0.8
    accuracies = scene_reader.accuracies(reader, scene_reader.pixels(fresh), scene_reader.targets(1))
    assert accuracies["colour"] == pytest.approx(sum(right[::4]) / 12, abs=1e-4)
    assert torch.equal(scene_reader.targets(2)[::2], scene_reader.targets(1))
