"""Predictions of other systems in all the forms they come in; and what is wrong with a file is said with the count."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cclm.cli import main
from cclm.evaluation import predictions, trec
from cclm.evaluation.items import Caption, Captions, Question, Questions, Sentence, Sentences
from cclm.evaluation.labels import LabelError, contained, read_label
from cclm.evaluation.protocol import ClassificationProtocol, Protocol, RetrievalProtocol
from cclm.evaluation.result import Result
from cclm.evaluation.runs import read_run
from cclm.evaluation.scoring import ScoreOptions, score_answers, score_rankings
from cclm.evaluation.task import DataFolder, find
from cclm.evaluation.ways import Ranking, Rankings

POINT = ScoreOptions(draws=0)
ENTAILMENT = ("contradiction", "neutral", "entailment")
TRUTHS = ("False", "True")


def questions(labels: tuple[str, ...], wanted: list[str | None], match: str = "exact") -> Questions:
    protocol = ClassificationProtocol(name="official", about="", match=match)
    asked = [Question(f"q{number}", (f"{number}.jpg",), "?", label) for number, label in enumerate(wanted)]
    return Questions(
        task="own", language="de", protocol=protocol, split="test", questions=tuple(asked), labels=labels,
        spared=frozenset({"spared"}),
    )  # fmt: skip


def captions(count: int = 12, each: int = 1, **policies: Any) -> Captions:
    made = [Caption(f"{row}.jpg#{n}", f"{row}.jpg", f"text {row} {n}") for row in range(count) for n in range(each)]
    protocol = RetrievalProtocol(name="official", about="", **policies)
    gallery = tuple(dict.fromkeys(caption.image for caption in made))
    return Captions(
        task="own", language="de", protocol=protocol, split="test", captions=tuple(made), gallery=gallery
    )  # fmt: skip


def stored(folder: Path, content: Any, lines: bool = False) -> Path:
    path = folder / "predictions.json"
    text = "".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "rows",
    [
        [{"questionId": "q0", "prediction": "neutral"}, {"questionId": "q1", "prediction": "entailment"}],
        [{"question_id": "q0", "answer": "neutral"}, {"question_id": "q1", "answer": "entailment"}],
        [{"id": "q0", "label": 1}, {"id": "q1", "label": 2}],
        [{"pairID": "q1", "label": " Entailment"}, {"pairID": "q0", "label": "NEUTRAL"}],
        [{"identifier": "q0", "prediction": "1"}, {"identifier": "q1", "prediction": "2"}],
        [{"question_id": "q0", "answer": [0.1, 0.8, 0.1]}, {"question_id": "q1", "answer": [-3.0, -2, -1.5]}],
    ],
)
def test_answers_in_every_form(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    test = questions(ENTAILMENT, ["neutral", "neutral"])
    wanted = {"q0": "neutral", "q1": "entailment"}
    field = list(rows[0])[1]
    notes = () if field == "prediction" else (f"answers read from field {field!r}",)
    given = predictions.Given(wanted, notes)
    assert predictions.read_answers(stored(tmp_path, rows), test) == given
    assert predictions.read_answers(stored(tmp_path, rows, lines=True), test) == given
    by_id = {next(iter(row.values())): list(row.values())[1] for row in rows}
    assert predictions.read_answers(stored(tmp_path, by_id), test) == predictions.Given(wanted)
    assert score_answers(test, wanted, POINT).result.scores["accuracy"] == 50.0


def test_what_is_right_is_not_taken_for_what_was_said(tmp_path: Path) -> None:
    test = questions(ENTAILMENT, ["neutral", "neutral"])
    own = score_answers(test, {"q0": "entailment", "q1": "neutral"}, POINT).items
    found = predictions.read_answers(stored(tmp_path, own), test)
    assert found.predictions == {"q0": "entailment", "q1": "neutral"}
    assert found.notes == ("answers read from field 'answer'",)
    rows: list[dict[str, Any]] = [{"id": "q0", "answer": 1, "pred": 2}, {"id": "q1", "answer": "neutral", "pred": 0}]
    found = predictions.read_answers(stored(tmp_path, rows), test)
    assert found.predictions == {"q0": "entailment", "q1": "contradiction"}
    assert found.notes == ("answers read from field 'pred'",)
    del rows[1]["pred"]  # of this one only what is right is there
    with pytest.raises(ValueError, match="item 2 has no pred, as others have"):
        predictions.read_answers(stored(tmp_path, rows), test)


@pytest.mark.parametrize("gold", ["label", "answer"])
@pytest.mark.parametrize(("field", "value"), [("model_output", "neutral"), ("said", 1), ("scores", [0.1, 0.2, 0.7])])
def test_a_field_that_may_be_the_prediction_is_not_passed_over(
    tmp_path: Path, gold: str, field: str, value: Any
) -> None:
    test = questions(ENTAILMENT, ["neutral"])
    path = stored(tmp_path, [{"pairID": "q0", field: value, gold: "neutral"}])
    told = f"'{gold}' may be what is right, and '{field}' what was predicted; name the field of the predictions"
    with pytest.raises(ValueError, match=told):
        predictions.read_answers(path, test)
    path = stored(tmp_path, [{"pairID": "q0", "prediction": value, gold: "entailment", "other": "x"}])
    assert predictions.read_answers(path, test).notes == ()


def test_ids_may_be_numbers(tmp_path: Path) -> None:
    test = questions(TRUTHS, ["True"])
    found = predictions.read_answers(stored(tmp_path, [{"id": 7, "label": True}]), test)
    assert found.predictions == {"7": "True"}


@pytest.mark.parametrize("value", [True, "True", "true", " TRUE", 1, "1", 1.0, "1.0", "yes"])
def test_truth_values_in_every_form(value: Any) -> None:
    if value == "yes":  # another word, which only a protocol that looks through answers reads
        with pytest.raises(LabelError, match="False or True"):
            read_label(value, TRUTHS)
    else:
        assert read_label(value, TRUTHS) == "True"
        assert read_label(value, ("True", "False")) == "True"  # whatever their order
    assert contained("True", str(value)) or str(value) in ("1", "1.0")


def test_texts_of_a_long_list_are_taken_as_they_stand() -> None:
    answers = tuple(f"answer {number}" for number in range(100)) + ("2",)
    assert read_label("Answer 3", answers) == "Answer 3" and read_label("2", answers) == "2"
    with pytest.raises(LabelError, match="101 labels as text"):
        read_label(3, answers)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("maybe", "'maybe' is no label; give contradiction or neutral or entailment"),
        (3, "3 is no label"),
        (-1, "-1 is no label"),
        (None, "None is no label"),
        (True, "True is no label"),
        (1.5, "1.5 is no label"),
        (float("inf"), "inf is no label"),
        ([0.5, 0.5], "a list of 2 is no label"),
        ([0.4, 0.4, 0.2], "no one of the scores"),
        (["a", "b", "c"], "a list of 3 is no label"),
        ([0.1, float("nan"), 0.2], "a list of 3 is no label"),
        ({"neutral": 1}, "is no label"),
    ],
)
def test_what_is_no_label_is_told_with_what_is(tmp_path: Path, value: Any, message: str) -> None:
    test = questions(ENTAILMENT, ["neutral", "neutral"])
    path = stored(tmp_path, {"q0": "neutral", "q1": value})
    with pytest.raises(ValueError, match=message.replace("[", r"\[")) as caught:
        predictions.read_answers(path, test)
    assert "1 of 2 answers" in str(caught.value) and "'q1'" in str(caught.value)


def test_free_answers_hold_the_label_or_do_not() -> None:
    test = questions(TRUTHS, ["True", "False", "True"], match="contains")
    answers = {"q0": "Yes, they are.", "q1": "It is false", "q2": "not of the kind"}
    scored = score_answers(test, answers, POINT).result
    assert scored.scores["accuracy"] == pytest.approx(200 / 3)
    assert "answers that hold none of the 2 labels: 1, count as wrong" in scored.notes


@pytest.mark.parametrize("one", [1, "1", True, "True", "true", 1.0, "1.0", "Yes.", [0.2, 0.8]])
def test_where_answers_are_looked_through_other_forms_of_a_label_count_too(tmp_path: Path, one: Any) -> None:
    test = questions(TRUTHS, ["True", "True", "False"], match="contains")
    path = stored(tmp_path, {"q0": one, "q1": one, "q2": one})
    scored = score_answers(test, predictions.read_answers(path, test).predictions, POINT).result
    assert scored.scores["accuracy"] == pytest.approx(200 / 3) and not any("labels" in note for note in scored.notes)
    many = questions((*(f"answer {number}" for number in range(100)), "2"), ["2"], match="contains")
    path = stored(tmp_path, {"q0": "there are 2"})
    assert score_answers(many, predictions.read_answers(path, many).predictions, POINT).result.scores["accuracy"] == 100
    assert read_label("7 of them", TRUTHS, loose=True) == "7 of them" and read_label("7", TRUTHS, loose=True) == "7"


Mutation = Callable[[list[dict[str, str]]], Any]


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (lambda rows: rows[:-3], "3 of 9,666 questions have no prediction"),
        (
            lambda rows: [*rows, {"questionId": "x1", "prediction": "no"}],
            "predictions of none of the test's questions: 1, first 'x1', where ids are as '201",
        ),
        (lambda rows: [*rows, *rows[:2]], "ids that stand there more than once: 2, first"),
        (
            lambda rows: [{"prediction": row["prediction"]} for row in rows],
            "item 1 has no questionId or question_id or id or pairID or identifier or qid; it has prediction",
        ),
        (
            lambda rows: [{"questionId": row["questionId"]} for row in rows],
            "item 1 has no prediction or pred or answer or label; it has questionId",
        ),
        (lambda rows: [row["prediction"] for row in rows], "holds no answers"),
        (lambda rows: [], "is empty; write the predictions again"),
        (lambda rows: {}, "is empty; write the predictions again"),
        (lambda rows: "no", "holds no answers"),
    ],
)
def test_a_mutated_official_file_is_refused(bundle: Path, tmp_path: Path, mutate: Mutation, message: str) -> None:
    task = find("xgqa")
    test = task.test_set(DataFolder(bundle), "de", task.protocol())
    path = bundle / "_official_results" / "xgqa" / "zero_shot" / "uc2" / "test_de_0_result.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    asked = frozenset(test.ids)
    rows.sort(key=lambda row: row["questionId"] in asked)  # those of the test last
    with pytest.raises(ValueError, match=message):
        score_answers(test, predictions.read_answers(stored(tmp_path, mutate(rows)), test).predictions, POINT)


def test_order_does_not_matter_and_strange_answers_are_counted(bundle: Path, tmp_path: Path) -> None:
    task = find("xgqa")
    test = task.test_set(DataFolder(bundle), "de", task.protocol())
    path = bundle / "_official_results" / "xgqa" / "zero_shot" / "uc2" / "test_de_0_result.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    plain = score_answers(test, predictions.read_answers(path, test).predictions).result
    random.Random(0).shuffle(rows)
    shuffled = score_answers(test, predictions.read_answers(stored(tmp_path, rows), test).predictions).result
    assert shuffled == plain
    for row in rows:
        row["prediction"] += " "  # exact match means exact
    strange = score_answers(test, predictions.read_answers(stored(tmp_path, rows), test).predictions, POINT).result
    assert strange.scores["accuracy"] == 0
    assert "answers that are none of the 1,842 labels: 9,666, count as wrong" in strange.notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"id": "q0", "label": 1}, {"id"', "is cut or no JSON"),
        (b'{"id": "q0", "label": 1}\n{"id": "q', "is cut or no JSON .line 2"),
        (b'{"q0": 1, "q1": 2, "q0": 1}', "ids that stand there more than once: 1, first 'q0'"),
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"[" * 100_000, "nested too deeply"),
        (pickle.dumps({"q0": 1}), "no UTF-8 text|no JSON"),
        (b"\xff\xfe[\x00", "no UTF-8 text"),
        (b"q0 neutral\n", "is cut or no JSON"),
    ],
)
def test_damaged_files_are_one_line(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    path = tmp_path / "predictions.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        predictions.read_answers(path, questions(ENTAILMENT, ["neutral"]))
    with pytest.raises(SystemExit) as ended:
        main(["iglue", "score", "xvnli", "--predictions", str(path), "--language", "fr", "--data", str(bundle)])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_rankings_in_every_form_are_the_same(tmp_path: Path) -> None:
    test = captions()
    rows = [[(row + place) % 12 for place in range(11)] for row in range(12)]
    named = [[test.gallery[row] for row in own] for own in rows]
    given = predictions.read_rankings(stored(tmp_path, rows), test)
    assert given.notes == ("text_to_image: lists without ids, matched by position",)
    official = given.predictions
    assert official["text_to_image"]["3.jpg#0"].items[:2] == ("3.jpg", "4.jpg")
    by_id = dict(zip(test.ids, named, strict=True))
    listed = [{"id": name, "ranked": own} for name, own in reversed(by_id.items())]
    texts = {name: list(map(str, own)) for name, own in zip(test.ids, rows, strict=True)}
    for content, lines in ((named, False), (by_id, False), (listed, False), (listed, True), (texts, False)):
        given = predictions.read_rankings(stored(tmp_path, content, lines), test)
        assert given.predictions == official and len(given.notes) == 1
    assert given.notes == ("text_to_image: the lists do not say their direction, which is by their ids",)
    own = [{"direction": "image_to_text", "id": name, "ranked": list(test.ids)} for name in test.gallery]
    both = predictions.read_rankings(stored(tmp_path, listed + own, lines=True), test).predictions
    assert both["text_to_image"] == official["text_to_image"] and len(both["image_to_text"]) == 12


def test_the_direction_of_rows_of_a_gallery_is_told_and_not_guessed(tmp_path: Path) -> None:
    """Files of text to image name captions by their image, too: its rows would be taken for captions."""
    test = captions()
    rows = {image: [(row + place) % 12 for place in range(12)] for row, image in enumerate(test.gallery)}
    path = stored(tmp_path, rows)
    message = "nothing tells the direction of the list of query '0.jpg'; give .* --direction: text_to_image or image_to"
    with pytest.raises(ValueError, match=message):
        predictions.read_rankings(path, test)
    given = predictions.read_rankings(path, test, "image_to_text")
    assert given.predictions["image_to_text"]["3.jpg"].items[:2] == ("3.jpg#0", "4.jpg#0")
    listed = [{"id": image, "ranked": own, "direction": "image_to_text"} for image, own in rows.items()]
    assert predictions.read_rankings(stored(tmp_path, listed), test) == predictions.Given(given.predictions)
    named = {image: [test.ids[row] for row in own] for image, own in rows.items()}
    assert predictions.read_rankings(stored(tmp_path, named), test).predictions == given.predictions
    in_order = predictions.read_rankings(stored(tmp_path, list(rows.values())), test, "image_to_text")
    assert in_order.predictions == given.predictions
    with pytest.raises(ValueError, match="no direction 'up' in task own; allowed: text_to_image, image_to_text"):
        predictions.read_rankings(path, test, "up")


def test_an_unknown_id_is_told_beside_the_direction_that_is_there(tmp_path: Path) -> None:
    test = captions(count=12, each=2)
    named = {image: list(test.ids) for image in test.gallery} | {"strange.jpg": list(test.ids)}
    given = predictions.read_rankings(stored(tmp_path, named), test).predictions
    with pytest.raises(ValueError) as caught:
        score_rankings(test, given, POINT)
    told = "predictions of none of the test's image_to_text queries: 1, first 'strange.jpg', where ids are as '0.jpg'"
    assert str(caught.value).startswith(told) and "have no prediction" not in str(caught.value)


def test_own_items_and_trec_runs_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    made = captions(count=12, each=2)
    spaced = [Caption(f"{one.id} %20", f"{one.image}\t%", one.text) for one in made.captions]
    gallery = tuple(dict.fromkeys(one.image for one in spaced))
    test = Captions(
        task="own", language="de", protocol=made.protocol, split="test", captions=tuple(spaced), gallery=gallery
    )  # fmt: skip
    generator = random.Random(1)
    rankings: Rankings = {"text_to_image": {}, "image_to_text": {}}
    for way, asking, asked in (("text_to_image", test.ids, gallery), ("image_to_text", gallery, test.ids)):
        for query in asking:
            scores = sorted((generator.randint(0, 5) / 3 for _ in asked), reverse=True)
            order = tuple(generator.sample(asked, len(asked)))
            rankings[way][query] = Ranking(order, tuple(scores))
    scored = score_rankings(test, rankings, POINT)
    predictions.write(scored.items, tmp_path / "own.jsonl")
    assert predictions.read(tmp_path / "own.jsonl") == scored.items
    again = predictions.read_rankings(tmp_path / "own.jsonl", test).predictions
    assert score_rankings(test, again, POINT) == scored
    for way in rankings:
        trec.write_run(scored.items, tmp_path / f"{way}.run", way, tag="a system")
        lines = (tmp_path / f"{way}.run").read_text(encoding="utf-8").splitlines()
        assert all(len(line.split()) == 6 for line in lines)
        run = predictions.read_rankings(tmp_path / f"{way}.run", test).predictions
        assert score_rankings(test, run, POINT).result.scores[way] == scored.result.scores[way]
        trec.write_qrels(test, tmp_path / f"{way}.qrels", way)
        assert len((tmp_path / f"{way}.qrels").read_text(encoding="utf-8").splitlines()) == 24


Lists = Callable[[list[list[Any]]], Any]


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (lambda rows: rows[:-1], "holds 11 lists where text_to_image has 12 queries"),
        (lambda rows: [*rows, rows[0]], "holds 13 lists"),
        (
            lambda rows: [[12, *rows[0][1:]], *rows[1:]],
            "gallery row 12 in the list of query '0.jpg#0'; rows are 0 to 11",
        ),
        (lambda rows: [[-1, *rows[0][1:]], *rows[1:]], "gallery row -1"),
        (lambda rows: [["13.jpg", *rows[0][1:]], *rows[1:]], "1 of 12 lists hold an item that is not in the gallery"),
        (lambda rows: [[rows[0][1], *rows[0][1:]], *rows[1:]], "1 of 12 lists hold an item twice, first that of query"),
        (lambda rows: [rows[0][:9], *rows[1:]], "1 of 12 lists hold fewer than 10 items"),
        (lambda rows: [[True, *rows[0][1:]], *rows[1:]], "neither gallery row nor id"),
        (lambda rows: [[1.0, *rows[0][1:]], *rows[1:]], "neither gallery row nor id"),
        (lambda rows: [0] * 12, "holds no ranked lists"),
        (lambda rows: {"0.jpg#0": rows[0]}, "11 of 12 text_to_image queries have no prediction"),
        (lambda rows: [], "is empty; write the predictions again"),
        (lambda rows: {}, "is empty; write the predictions again"),
        (
            lambda rows: {f"{row}.jpg#1": own for row, own in enumerate(rows)},
            "predictions of none of the test's text_to_image queries: 12, first '0.jpg#1', where ids are as '0.jpg#0'",
        ),
        (lambda rows: {"0.jpg#0": "1.jpg"}, "give gallery rows or ids"),
        (
            lambda rows: [{"id": "0.jpg#0", "ranked": rows[0]}] * 2,
            "with more than one list: 1, first '0.jpg#0'",
        ),
        (lambda rows: [{"id": "0.jpg#0", "ranked": rows[0], "scores": [1]}], "no lists of one length"),
        (lambda rows: [{"id": "0.jpg#0", "ranked": [1], "scores": ["a"]}], "scores of query '0.jpg#0' are no numbers"),
        (lambda rows: [{"id": "0.jpg#0", "ranked": [1], "scores": [float("nan")]}], "'0.jpg#0' are no numbers"),
        (lambda rows: [{"id": "0.jpg#0", "ranked": [1], "direction": "up"}], "allowed: text_to_image, image_to_text"),
        (lambda rows: [{"id": "0.jpg#0", "ranked": [1], "direction": [1]}], "allowed: text_to_image, image_to_text"),
    ],
)
def test_wrong_rankings_are_refused(tmp_path: Path, mutate: Lists, message: str) -> None:
    test = captions()
    rows = [[(row + place) % 12 for place in range(11)] for row in range(12)]
    with pytest.raises(ValueError, match=message):
        score_rankings(test, predictions.read_rankings(stored(tmp_path, mutate(rows)), test).predictions, POINT)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0.jpg#0 Q0 0.jpg 1 high tag", "line 2 is neither JSON nor of a TREC run"),
        ("0.jpg#0 0.jpg 1", "line 2 is neither JSON nor"),
        ("0.jpg#0 Q0 0.jpg 1 nan tag", "score nan is no number"),
    ],
)
def test_a_wrong_line_of_a_run_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.run"
    path.write_text(f"0.jpg#0 Q0 1.jpg 1 0.5 tag\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        predictions.read_rankings(path, captions())


def test_sentences_are_ranked_too(tmp_path: Path) -> None:
    pairs = tuple(Sentence(str(row), f"satz {row}", f"sentence {row}") for row in range(10))
    test = Sentences(
        task="tatoeba", language="de", protocol=Protocol(name="official", about=""), split="test", sentences=pairs
    )  # fmt: skip
    rows = [[row, *(other for other in range(10) if other != row)] for row in range(10)]
    rows[0][:2] = rows[0][1], rows[0][0]
    given = predictions.read_rankings(stored(tmp_path, rows), test).predictions
    found = score_rankings(test, given, POINT).result.scores
    assert found["to_english"]["R@1"] == 90.0 and found["from_english"] is None
    assert found["to_english"]["mean_reciprocal_rank"] == pytest.approx(0.95)
    by_id = stored(tmp_path, dict(zip(test.ids, rows, strict=True)))
    with pytest.raises(ValueError, match="nothing tells the direction of the list of query '0'"):
        predictions.read_rankings(by_id, test)
    given_back = predictions.read_rankings(by_id, test, "from_english")
    assert given_back.predictions == {"from_english": given["to_english"]}
    assert given_back.notes == ("from_english: the lists do not say their direction, which is by --direction",)


def test_line_ends_of_unicode_stand_within_a_line(tmp_path: Path) -> None:
    """JSON may hold them as they are, and lines of JSON end at a line feed alone."""
    signs = ("\u2028", "\u2029", "\x85", "\u3000")
    path = tmp_path / "predictions.jsonl"
    rows = [{"id": f"q{sign}{number}", "prediction": "neutral"} for number, sign in enumerate(signs)]
    predictions.write(rows, path)
    assert predictions.read(path) == rows
    results = [Result("own", "de", "official", 1, {"accuracy": 50.0}, "0", system=f"a{sign}b") for sign in signs]
    predictions.write([result.to_dict() for result in results], path)
    assert [one.result for one in read_run(path)] == results
    items = [{"direction": "up", "id": f"a{sign}%b", "ranked": [f"c{sign}d"], "scores": [0.5]} for sign in signs]
    trec.write_run(items, tmp_path / "run", "up")
    assert all(len(line.split()) == 6 for line in (tmp_path / "run").read_text(encoding="utf-8").split("\n")[:-1])
    assert [(query, one.items) for query, one in trec.read_run(tmp_path / "run")] == [
        (item["id"], tuple(item["ranked"])) for item in items
    ]
    (tmp_path / "run").write_text(" a\u2028b Q0\tc\u3000d 1 0.5 tag\r\n", encoding="utf-8")  # by another hand
    assert list(trec.read_run(tmp_path / "run")) == [("a\u2028b", Ranking(("c\u3000d",), (0.5,)))]


def test_a_run_is_read_by_its_scores_whatever_the_order_of_its_lines(tmp_path: Path) -> None:
    test = captions(count=12, each=3)
    generator = random.Random(2)
    rankings: dict[str, Ranking] = {}
    for image in test.gallery:
        order = tuple(generator.sample(test.ids, len(test.ids)))
        rankings[image] = Ranking(order, tuple(float(-place) for place in range(len(order))))
    scored = score_rankings(test, {"image_to_text": rankings}, POINT)
    trec.write_run(scored.items, tmp_path / "a.run", "image_to_text")
    lines = (tmp_path / "a.run").read_text(encoding="utf-8").split("\n")[:-1]
    generator.shuffle(lines)
    (tmp_path / "b.run").write_text("\n".join(lines) + "\n", encoding="utf-8")
    again = score_rankings(test, {"image_to_text": dict(trec.read_run(tmp_path / "b.run"))}, POINT)
    assert again == scored and 0 < scored.result.scores["image_to_text"]["R@5"] < 100


def test_a_file_that_is_not_there_is_one_line(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--predictions", "nowhere.json", "--language", "ar", "--data", str(bundle)]
    with pytest.raises(SystemExit) as stopped:
        main(["iglue", "score", "xvnli", *given])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "cclm: there is no file of predictions nowhere.json; check the path\n"
