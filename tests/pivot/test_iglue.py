"""A language model that sees on IGLUE's tasks: the likeliest answer, exactly, through the runner of all models."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cclm.cli import main
from cclm.data.tokenizer import train_tokenizer
from cclm.evaluation.adapters.language_model import Prompted, PromptOptions, own_asking
from cclm.evaluation.embedder import Asked
from cclm.evaluation.task import find
from cclm.pivot.generation import GenerationOptions
from cclm.pivot.image_to_text import Built
from cclm.pivot.notes import TrainingNotes
from cclm.pivot.processor import PivotProcessorSettings
from cclm.types import PromptInput, StatesInput, VisualPromptBatch
from tests.data.conftest import WORDS
from tests.evaluation.iglue.conftest import bundle  # noqa: F401 (a fixture)
from tests.pivot.conftest import picture

Build = Callable[..., Built]
PROMPT = "<image>{text} <2en>"
TOLD = GenerationOptions(max_tokens=4)


def prompted(made: Built, **options: object) -> Prompted:
    return Prompted(made.model, PromptOptions(TOLD, batch=3, **options))


def sharpen(made: Built) -> None:
    """Some tokens far likelier than others, as training makes them."""
    with torch.no_grad():
        made.model.language_model.plain.get_output_embeddings().weight.mul_(8)


def some_answers(draw: random.Random, count: int) -> list[str]:
    """Different ones of one to three words."""
    words = WORDS["en"] + WORDS["fr"]
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(draw.choices(words, k=draw.randint(1, 3)))] = None
    return list(found)


def exhaustive(made: Built, image: int, text: str, answers: list[str], per_token: bool) -> list[float]:
    """The plain way: prompt and answer together, each to its end."""
    row = made.processor.prompt(PROMPT, "en", text, pictures=1)
    spelt = made.processor.answers(answers)
    with torch.no_grad():
        states = made.model.image_encoder(made.processor.images([picture(image)])).repeat(len(spelt), 1, 1)
        whole = made.model.log_likelihood(StatesInput(states), made.processor.prompts([row] * len(spelt), spelt))
    return [float(one) / (len(own) if per_token else 1) for one, own in zip(whole, spelt, strict=True)]


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("count", [3, 300])
def test_the_winner_is_that_of_all_answers_spelt_out(build: Build, count: int, per_token: bool) -> None:
    """300 answers, as many of them as cannot win are never spelt."""
    made, draw = build(), random.Random(count)
    sharpen(made)
    answers = some_answers(draw, count)
    asked = [Asked(row, text, "de") for row, text in ((0, "ein hund"), (1, "drei Häuser"), (0, ""), (1, "rote Gras"))]
    images = [[picture(5)], [picture(6)]]
    found = prompted(made, per_token=per_token).likeliest(images, asked, PROMPT, answers)
    for one, row in zip(asked, found, strict=True):
        wanted = exhaustive(made, 5 + one.row, one.text, answers, per_token)
        assert wanted[row] == pytest.approx(max(wanted), abs=1e-4)
        assert max(wanted) - sorted(wanted)[-2] > 1e-3  # else any of two would have done


def learn(made: Built, answer: str) -> None:
    """To give this answer, whatever is asked."""
    row = made.processor.prompt(PROMPT, "en", "ein Hund", pictures=1)
    prompts = made.processor.prompts([row], made.processor.answers([answer]))
    pictures = StatesInput(made.model.image_encoder(made.processor.images([picture(1)])).detach())
    optimizer = torch.optim.Adam(made.model.language_model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        made.model(VisualPromptBatch("one", prompts, ("1",), pictures)).backward()
        optimizer.step()


def test_answers_that_cannot_win_are_never_spelt(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build()
    answers, spelt = some_answers(random.Random(0), 1000), 0
    learn(made, answers[700])
    plain = made.model.label_log_likelihoods

    def counted(images: StatesInput, prompts: PromptInput, labels: list[list[int]]) -> torch.Tensor:
        nonlocal spelt
        spelt += sum(len(label) > 1 for label in labels)
        return plain(images, prompts, labels)

    monkeypatch.setattr(made.model, "label_log_likelihoods", counted)
    found = prompted(made).likeliest([[picture(1)]], [Asked(0, "ein Hund", "de")], PROMPT, answers)
    assert found == [700] and 0 < spelt <= 128


def test_fewer_candidates_are_those_of_the_likeliest_first_tokens(build: Build) -> None:
    made = build()
    answers = some_answers(random.Random(0), 300)
    learn(made, answers[30])
    asked, pictures = [Asked(0, "ein Hund", "de")], [[picture(1)]]
    assert prompted(made, candidates=40).likeliest(pictures, asked, PROMPT, answers) == [30]
    (first,) = prompted(made, candidates=1).likeliest(pictures, asked, PROMPT, answers)
    spelt = made.processor.answers([answers[first], answers[30]])
    assert spelt[0][0] == spelt[1][0]
    with pytest.raises(ValueError, match="candidates is -1"):
        prompted(made, candidates=-1)


def test_two_pictures_have_an_order(build: Build) -> None:
    made = build()
    adapter, wording = prompted(made), find("marvl").wording
    adapter.check_prompt(wording.prompt, 2)
    with pytest.raises(ValueError, match=r"2 mark\(s\) <image> for 1 picture"):
        adapter.check_prompt(wording.prompt, 1)
    answers = [" ".join(pair) for pair in zip(WORDS["en"], WORDS["fr"], strict=False)]
    pairs = [[picture(a), picture(b)] for a, b in ((1, 2), (2, 1), (3, 4), (4, 3))]
    asked = [Asked(row, "eins", "de") for row in range(4)]
    seen = [adapter._states(row) for row in pairs]
    prompts = [made.processor.prompt(wording.prompt, "en", "eins", 2)] * 4
    with torch.no_grad():
        scores = adapter._scores(seen, prompts, made.processor.answers(answers))
    assert not torch.allclose(scores[0], scores[1]) and not torch.allclose(scores[2], scores[3])
    assert adapter.likeliest(pairs, asked, wording.prompt, answers) == scores.argmax(1).tolist()


def test_a_picture_is_seen_once_for_captions_in_all_languages(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = build(), 0
    made.processor.template = "<image><2{code}>"
    plain = made.model.image_encoder.forward

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(pixels)
        return plain(pixels)

    monkeypatch.setattr(made.model.image_encoder, "forward", counted)
    adapter, pictures = prompted(made), [picture(number) for number in range(5)]
    told = {language: adapter.describe(pictures, language) for language in ("en", "de")}
    assert seen == 5
    some = [pictures[3], picture(7), pictures[0]]
    assert adapter.describe(some, "de")[::2] == [told["de"][3], told["de"][0]] and seen == 6
    assert prompted(made).describe(pictures, "en") == told["en"] and seen == 11


def test_models_with_tags_are_asked_as_they_were_trained(build: Build, tmp_path: Path) -> None:
    processor = build().processor

    def asked(template: str | None, images: int = 1) -> str | None:
        processor.template = template
        asking = own_asking(processor)
        return asking and asking(images)

    assert asked("<image><2{code}>") == "<image>{text}<2{code}>"
    assert asked("<image>\n{text} <2{code}>", 2) == "<image><image>\n{text} <2{code}>"
    assert asked("a <image> b <image><2{code}>", 2) == "a <image> b <image>{text}<2{code}>"
    assert asked(None) is None and asked("{text}<2{code}>") is None
    train_tokenizer([f"{a} {b}" for a in WORDS["en"] for b in WORDS["de"]], tmp_path / "bare", 60)
    bare = PivotProcessorSettings(str(tmp_path / "bare"), chat_template="plain", template="<image>\nDescribe it.")
    assert own_asking(bare.build()) is None  # a large one, which understands a task's wording


@pytest.fixture
def folder(build: Build, tmp_path: Path) -> Path:
    made = build()
    made.model.notes = TrainingNotes(("chat_s1",), ("de", "en"), {"de": 0.05})
    (tmp_path / "model").mkdir()
    made.model.save_pretrained(tmp_path / "model")
    made.processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data(bundle: Path, tmp_path: Path) -> Path:  # noqa: F811 (the fixture)
    """The first rows of the real files."""
    source, root = bundle / "iglue", tmp_path / "data"
    for name, count in (
        ("XVNLI/annotations/en/test.jsonl", 9),
        ("XVNLI/annotations/fr/test.jsonl", 9),
        ("marvl/zero_shot/annotations/marvl-tr.jsonl", 8),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        kept = (source / name).read_text(encoding="utf-8").splitlines(keepends=True)[:count]
        (root / name).write_text("".join(kept), encoding="utf-8")
    for name in ("dev", "train_48"):
        name = f"xGQA/annotations/few_shot/en/{name}.json"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, root / name)
    (root / "gqa/annotations").mkdir(parents=True)
    shutil.copy(source / "gqa/annotations/trainval_label2ans.json", root / "gqa/annotations")
    rows = json.loads((source / "gqa/annotations/testdev.json").read_text(encoding="utf-8"))[:12]
    (root / "gqa/annotations/testdev.json").write_text(json.dumps(rows), encoding="utf-8")
    return root


def test_iglue_runs_on_its_folder(folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["iglue", "evaluate", "--model", str(folder), "--data", str(data), "--output", str(tmp_path / "run")]
    command += ["--partial", "--stand-in-images", "--json"]
    found = {}
    for chosen in (["--tasks", "xgqa,xvnli", "--languages", "en,fr"], ["--tasks", "marvl", "--languages", "tr"]):
        main([*command, *chosen])
        found |= {(one["task"], one["language"]): one for one in json.loads(capsys.readouterr().out)}
    assert set(found) == {("xgqa", "en"), ("xvnli", "en"), ("xvnli", "fr"), ("marvl", "tr")}
    assert [found[name]["regime"] for name in found] == ["supervised", "supervised", "zero-shot", "zero-shot"]
    for (task, _), one in found.items():  # as it was trained, behind one picture or two
        asked = f"{'<image>' * (1 + (task == 'marvl'))}{{text}}<2{{code}}>"
        assert f"the likeliest answer to: {asked!r}" in one["notes"]
    assert 0 < found["xgqa", "en"]["items"] <= 12
    files = (tmp_path / "run/predictions").iterdir()
    said = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    labels = {label for task in ("marvl", "xvnli") for label in find(task).labels}
    answers = set(json.loads((data / "gqa/annotations/trainval_label2ans.json").read_text()))
    assert {item["answer"] for item in said} <= labels | answers
    main(["iglue", "report", str(tmp_path / "run"), "--with-published", "none"])
    shown = capsys.readouterr().out
    assert "| zero-shot |" in shown and "xgqa: accuracy" in shown  # one table with any other model's
    main([*command, "--prompt", "{text} <image> <2en>", "--tasks", "xvnli", "--languages", "en,fr", "--per_token"])
    again = json.loads(capsys.readouterr().out)
    assert all(one["provenance"]["settings"]["per_token"] for one in again)
    assert len(list((tmp_path / "run/cells").iterdir())) == 6  # another prompt is another number


def test_what_does_not_fit_is_told_in_one_line(folder: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["iglue", "evaluate", "--model", str(folder), "--data", str(data), "--partial", "--stand-in-images"]

    def told(*more: str) -> str:
        with pytest.raises(SystemExit):
            main([*command, *more])
        return capsys.readouterr().err

    one_picture = ["--tasks", "marvl", "--languages", "tr", "--prompt", "<image>{text}"]
    assert "has 1 mark(s) <image> for 2 picture(s)" in told(*one_picture)
    assert "has a field {question}" in told("--tasks", "xvnli", "--languages", "en", "--prompt", "<image>{question}")
    (data / "xm3600").mkdir()
    row = {"image/key": "0", "sw": {"caption": ["mbwa anakimbia"]}}
    (data / "xm3600/captions.jsonl").write_text(json.dumps(row), encoding="utf-8")
    found = told("--tasks", "xm3600_captions", "--languages", "sw")
    assert "language 'sw' is unknown to this model; it has tags for de, en, fr" in found
    assert found.count("\n") == 1


def test_captions_of_a_benchmark_come_from_it_too(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "own" / "xm3600" / "captions.jsonl"
    file.parent.mkdir(parents=True)
    rows = [
        {"image/key": str(n), "de": {"caption": [f"ein Hund läuft {n}", "drei rote Häuser"]}, "fr": {"caption": ["un"]}}
        for n in range(5)
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = ["iglue", "evaluate", "--model", str(folder), "--tasks", "xm3600_captions", "--languages", "de,fr"]
    main([*command, "--data", str(tmp_path / "own"), "--partial", "--stand-in-images", "--json"])
    german, french = json.loads(capsys.readouterr().out)
    assert (german["regime"], french["regime"]) == ("quasi-zero-shot", "zero-shot")
    assert {"CIDEr", "BLEU-4", "chrF", "fidelity", "empty"} <= set(german)
    assert german["provenance"]["settings"]["prompt"] == "<image><2{code}>"
