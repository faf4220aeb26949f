"""README is true: commands parse, the main chain runs as printed, snippets work, paths and figures agree."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import random
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image, ImageDraw

from cclm.cli import main, parse
from cclm.evaluation import task as tasks
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.objectives.base import pair_losses
from cclm.types import ImageInput, PairBatch

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OUTPUTS = ("data/", "runs/", "weights/")  # made by commands, or the reader's own
LANGUAGES = ("en", "de", "fr", "cs", "pt")
COLOURS = {"red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb", "black": "schwarz"}
NOTED = {"machine": {"processor": "a machine", "cores": 2}, "date": "2026-01-02", "commit": "abc"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL).replace("\n", " ")
    inline = re.findall(r"`((?:cclm|make|python) [^`]+)`", prose)
    return [shlex.split(line, comments=True) for line in [*lines, *inline] if line.strip()]


SEARCH, PIVOT = "Search your pictures", "Pivot: one language in, every language out"
SMALLER = {  # of what the commands do
    "data tokenizer": ["--vocab_size", "50"],
    "fit --config": ["--trainer.max_steps", "2", "--trainer.logger", "false"],
}


def chain(title: str = "Your own pictures") -> list[list[str]]:
    """What a reader runs on pictures of their own, or in another section, in the order printed."""
    section = README.split(f"## {title}")[1].split("\n## ")[0]
    lines = "".join(re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)).splitlines()
    return [shlex.split(line)[1:] for line in lines]


def snippet(name: str) -> str:
    return next(block for block in blocks("python") if block.startswith(f"# {name}\n"))


def load(file: Path, name: str) -> ModuleType:
    """A script, with its neighbours within reach as when it is run."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)
        spec.loader.exec_module(module)
    return module


def check_fit(arguments: list[str], capsys: pytest.CaptureFixture) -> dict[str, Any]:
    """The whole configuration as `cclm fit` understands it, without running it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--print_config"])
    assert not stop.value.code, f"{arguments}: {capsys.readouterr().err}"
    return yaml.safe_load(capsys.readouterr().out)


class TestCommands:
    """Every command that README prints."""

    @pytest.mark.parametrize("command", [c for c in commands() if c[0] == "cclm"], ids=" ".join)
    def test_cclm_understands_it(
        self, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        monkeypatch.chdir(ROOT)
        if command[1] == "fit":
            config = check_fit(command[1:], capsys)
            assert config["trainer"]["default_root_dir"].startswith("runs/")
        else:
            _, given = parse(command[1:])
            recipe = given.get("recipe")
            assert recipe in (None, "quotes") or (ROOT / "data_recipes" / f"{recipe}.py").is_file()

    def test_make_has_the_targets(self) -> None:
        targets = {command[1] for command in commands() if command[0] == "make"}
        defined = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        assert {"install", "quickstart", "test"} <= targets <= defined

    def test_nothing_else_is_asked_for(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"]
        for command in commands():
            assert command[0] in ("cclm", "make", "pip", "python", "."), command
            if command[0] == "python":
                assert (ROOT / command[1]).is_file(), command
            for extra in re.findall(r"\[(\w+)\]", " ".join(command)) if command[0] == "pip" else ():
                assert extra in extras, command

    def test_a_misprint_would_be_seen(self) -> None:
        with pytest.raises(ValueError, match="reranking"):
            parse("evaluate retrieval --model m --data d --output o.json --reranking 3".split())


def test_paths_and_configurations_exist() -> None:
    words = re.findall(r"[\w.{},*-]+(?:/[\w.{},*-]+)+", README)
    named = [w for w in words if w.split("/")[0] in {p.name for p in ROOT.iterdir()} and not w.startswith(OUTPUTS)]
    written_here = {"data_recipes/quotes.py", "cclm/objectives/agreement.py"}
    assert len(named) > 20
    assert not [word for word in named if word not in written_here and not list(ROOT.glob(word.rstrip(".")))]
    configurations = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*/*.yaml")}
    assert configurations <= set(named)


def test_every_task_and_protocol_is_listed() -> None:
    section = README.split("## Score it on IGLUE")[1].split("\n## ")[0]
    for task in map(tasks.find, tasks.names()):
        row = next(line for line in section.splitlines() if line.startswith("| `") and f"`{task.name}`" in line)
        for protocol in task.protocols:
            assert f"`{protocol.name}`" in row, (task.name, protocol.name)


def test_figures_are_those_of_the_results() -> None:
    table = load(ROOT / "benchmarks" / "table.py", "readme_table")
    assert table.renewed(README) == README, "run python benchmarks/table.py"


def test_results_table_is_filled_from_reports() -> None:
    """The cells of a run come from its result, and a run that is not there leaves them empty."""
    table = load(ROOT / "benchmarks" / "table.py", "readme_table")
    found = {"gallery": 9, "chance": 1.0, "R@10": {"en": 50.04, "others": 25.0, "ratio": 0.5, "languages": {}}}
    full, empty = table.transfer_rows("photos", {"with_parallel": found, "steps": 1200, "train_seconds": 90.0} | NOTED)
    assert "| 9 | 1.0 | 50.0 | 25.0 | 0.500 |" in full
    assert full.endswith("| 1,200 steps, 2 min, a machine, 2 cores, 2026-01-02, abc |")
    assert set(empty.replace("no", "")) == set("| ")


class TestSnippets:
    """Recipe, objective and configurations, put where README says."""

    def test_recipe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        import data_recipes

        (tmp_path / "quotes.py").write_text(snippet("data_recipes/quotes.py"), encoding="utf-8")
        monkeypatch.setattr(data_recipes, "__path__", [*data_recipes.__path__, str(tmp_path)])
        (tmp_path / "quotes.txt").write_text("To be. ||| Sein.\nHello. ||| Hallo.\n", encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        main(next(command for command in commands() if command[1:4] == ["data", "build", "quotes"])[1:])
        assert "2 text records" in capsys.readouterr().out
        monkeypatch.delitem(sys.modules, "data_recipes.quotes")

    @pytest.fixture
    def agreement(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        import cclm.objectives

        (tmp_path / "agreement.py").write_text(snippet("cclm/objectives/agreement.py"), encoding="utf-8")
        monkeypatch.setattr(cclm.objectives, "__path__", [*cclm.objectives.__path__, str(tmp_path)])
        yield importlib.import_module("cclm.objectives.agreement")
        del sys.modules["cclm.objectives.agreement"]

    def test_objective(self, agreement: ModuleType, pretrained: Path) -> None:
        model, processor = CCLMModel.from_pretrained(pretrained), CCLMProcessor.from_pretrained(pretrained)
        texts = processor.texts(["a red square", "a blue square"])
        batch = PairBatch("image", ImageInput(torch.randn(2, 3, processor.image_size, processor.image_size)), texts)
        loss = pair_losses(model, batch, {"agreement": agreement.Agreement()})["agreement"]
        loss.backward()
        assert 0 <= loss.item() <= 2 and model.text_projection.weight.grad.abs().sum() > 0

    def test_configurations(
        self, agreement: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        config = yaml.safe_load((ROOT / "configs" / "pretrain" / "photos.yaml").read_text(encoding="utf-8"))
        for block in blocks("yaml"):
            config = merged(config, yaml.safe_load(block))
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        understood = check_fit(["fit", "--config", str(tmp_path / "config.yaml")], capsys)
        assert understood["model"]["weights"]["image/agreement"] == 0.1
        assert set(understood["model"]["objectives"]["image"]) == {"contrastive", "matching", "masked_lm", "agreement"}
        assert understood["data"]["validation"]["photos"]["rerank"] == 16
        assert timm.is_model(understood["model"]["network"]["config"]["backbone"])


def merged(base: Any, other: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(other, dict)):
        return other
    return base | {key: merged(base.get(key), value) for key, value in other.items()}


def picture(colour: str, place: int, size: int = 48) -> Image.Image:
    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).rectangle((place, place, place + size // 2, place + size // 2), fill=colour)
    return image


def names(number: int, count: int = 12) -> str:
    """Words of three syllables, for a vocabulary of some size."""
    draw = random.Random(number)
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    return " ".join("".join(draw.choices(syllables, k=3)) for _ in range(count))


def draw_corpus(shared: Path) -> None:
    """30 pictures with captions, and sentences in five languages, in the form and under the names that README has."""
    photos = shared / "photos"
    photos.mkdir(parents=True)
    rows = []
    for number in range(30):
        colour, place = list(COLOURS)[number % 5], number // 5
        picture(colour, 3 * place).save(photos / f"p{number}.png")
        captions = {"en": [f"a {colour} square number {place}", f"the square is {colour}", names(number)]}
        parallel = {language: f"{language} {COLOURS[colour]} {place}" for language in LANGUAGES}
        row = {"key": f"p{number}", "image": f"p{number}.png", "split": "dev" if number >= 18 else "train"}
        rows.append(json.dumps(row | {"captions": captions, "parallel": parallel}))
    (photos / "captions.jsonl").write_text("\n".join(rows), encoding="utf-8")
    lines = ["\t".join(LANGUAGES)]
    lines += ["\t".join(f"{word} {language} {n}" for language in LANGUAGES) for n in range(12) for word in COLOURS]
    (shared / "parallel").mkdir()
    name = next(word for command in chain() for word in command if word.endswith(".tsv.gz"))
    with gzip.open(shared / "parallel" / Path(name).name, "wt", encoding="utf-8") as handle:
        handle.write("\n".join(lines))
    for file in {Path(word).name for command in chain(PIVOT) for word in command if word.endswith(".tsv.gz")}:
        pair = file.removesuffix(".tsv.gz").removeprefix("general_").split("-")
        rows = ["\t".join(pair), *("\t".join(f"{names(n, 3)} {language}" for language in pair) for n in range(40))]
        with gzip.open(shared / "parallel" / file, "wt", encoding="utf-8") as handle:
            handle.write("\n".join(rows))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder beside drawn data, in which README's commands have run as printed; but for two tiny steps."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    folder.mkdir()
    (folder / "configs").symlink_to(ROOT / "configs")
    draw_corpus(folder.parent / "shared")
    picture("red", 4).save(folder / "dog.jpg")
    picture("blue", 9).save(folder / "boat.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in chain():
            main([*command, *SMALLER.get(" ".join(command[:2]), [])])
    return folder


@pytest.fixture(scope="module")
def pretrained(project: Path) -> Path:
    return project / "runs" / "photos" / "pretrained"


class TestChain:
    """Build, tokenizer, fit, evaluate, index, search."""

    def test_it_is_complete(self) -> None:
        verbs = [" ".join(command[:2]) for command in chain()]
        for verb in ("data build", "data tokenizer", "fit --config", "evaluate retrieval"):
            assert verb in verbs
        verbs = [" ".join(command[:2]) for command in chain(SEARCH)]
        for verb in ("data build", "index build", "serve runs/photos/index", "index add", "index delete"):
            assert verb in verbs

    def test_report(self, project: Path) -> None:
        report = json.loads((project / "runs" / "photos" / "report.json").read_text(encoding="utf-8"))
        assert set(report["languages"]) == set(LANGUAGES)
        for ways in report["languages"].values():
            plain, reranked = ways["text_to_image"], ways["text_to_image_rerank"]
            assert plain["gallery"] == 12 and plain["chance"]["R@10"] == pytest.approx(100 * 10 / 12)
            assert plain["R@1"] < plain["R@10"] and reranked["R@1"] < reranked["R@10"]
        assert report["languages"]["en"]["text_to_image"]["queries"] == 36
        assert (project / "runs" / "photos" / "report.png").stat().st_size > 1000

    def test_search(self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        """The section line by line, but for the service, whose own tests run it, and what is about millions."""
        monkeypatch.chdir(project)
        (project / "more_pictures").mkdir()
        picture("green", 2).save(project / "more_pictures" / "new.jpg")
        told = []
        for command in chain(SEARCH):
            if command[0] not in ("serve", "data") and "big" not in command:  # the shards are there, as it says
                main(command)
                told.append((command, capsys.readouterr().out))
        text, image, explained = (out for command, out in told if command[0] == "search")
        assert len(text.strip().splitlines()) == 5 and len(explained.strip().splitlines()) == 10
        assert len(list((project / "sheets").glob("*.png"))) == 10
        assert json.loads(image) == []  # none of them has a German caption
        added, again = (out for command, out in told if command[:2] == ["index", "add"])
        assert "1 picture" in added and "nothing new" in again
        assert "31" in told[-1][1]  # 30, and the new one

    def test_pivot(self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        """The section line by line, but for emoji, whose pictures are not drawn here."""
        monkeypatch.chdir(project)
        fit = [*SMALLER["fit --config"], "--data.loader.cache", "null"]  # which would read all scenes for two steps
        smaller = {
            "data tokenizer": ["--vocab_size", "130"],  # Chinese has more characters
            "fit --config": fit,
            "evaluate alignment": ["--sentences", "50"],
            "evaluate captions": ["--generation.max_tokens", "8"],
        }
        told = {}
        for command in chain(PIVOT):
            if command[0] != "install" and "emoji" not in " ".join(command):
                main([*command, *smaller.get(" ".join(command[:2]), [])])
                told[" ".join(command[:2])] = capsys.readouterr().out
        assert Image.open("scene.png").size == (32, 32)
        assert "generate runs/scenes_chat/pretrained" in told
        found = json.loads(Path("runs/photos_chat/captions.json").read_text(encoding="utf-8"))
        assert set(found["languages"]) == set(LANGUAGES) and found["regimes"]["pt"] == "zero-shot"
        layers = json.loads(Path("runs/scenes_lm_aligned/alignment.json").read_text(encoding="utf-8"))
        assert layers

    def test_python_snippet(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(project)
        names: dict[str, Any] = {}
        exec(compile(next(b for b in blocks("python") if "CCLMModel" in b), "README.md", "exec"), names)
        assert names["similarity"].shape == (3, 2) and abs(names["similarity"]).max() <= 1.001
        assert names["match"].shape == (3,) and ((names["match"] > 0) & (names["match"] < 1)).all()

    def test_embeddings(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(project)
        (command,) = chain("From Python")
        main(command)
        assert np.load("runs/photos/embeddings/img_emb/img_emb_0.npy").shape[0] > 12  # a row for each caption

    def test_released_checkpoint(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Line by line on the recorded file."""
        if not (oracle := ROOT.parent / "shared" / "oracle").is_dir():
            pytest.skip("needs the recorded checkpoint beside the project")
        (project.parent / "shared" / "oracle").symlink_to(oracle)
        monkeypatch.chdir(project)
        commands = chain("Use a released CCLM checkpoint")
        for command in commands:
            main(command)
        source, target = (Path(commands[place][index]) for place, index in ((2, 1), (-1, 2)))
        before, after = (torch.load(path, weights_only=True) for path in (source, target))
        assert before["config"] == after["config"] and list(before["model"]) == list(after["model"])
        assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
        assert json.loads(Path("runs/released.json").read_text())["languages"]["en"]["text_to_image_rerank"]

    def test_transfer_reads_the_report(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        transfer = load(ROOT / "benchmarks" / "transfer.py", "readme_transfer")
        found = transfer.outcome(str(project / "runs" / "photos" / "report.json"))
        assert found["gallery"] == 12 and set(found["R@10"]["languages"]) == set(LANGUAGES)
        assert {"en", "others", "ratio"} <= set(found["R@10_reranked"])


def test_tables_can_be_checked_from_the_command_line() -> None:
    done = subprocess.run([sys.executable, "benchmarks/table.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_damaged_result_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    table = load(ROOT / "benchmarks" / "table.py", "readme_table")
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    (tmp_path / "pivot_cost.json").write_text('{"sizes": {')
    with pytest.raises(SystemExit, match="pivot_cost.json: no JSON .*; run its benchmark again"):
        table.read("pivot_cost")
    assert table.read("pivot_photos") == {}
