"""What a protocol makes of answers and embeddings: ties, folds, several captions, consistency, conversions."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cclm.cli import main
from cclm.evaluation.items import Caption, Captions, Picture, Pictures, Question, Questions, Sentence, Sentences
from cclm.evaluation.protocol import ClassificationProtocol, Protocol, RetrievalProtocol
from cclm.evaluation.scoring import (
    ScoreOptions,
    score_answers,
    score_embeddings,
    score_rankings,
    score_ranks,
    score_sentences,
)
from cclm.evaluation.task import DataFolder, find
from cclm.evaluation.ways import Ranking, Rankings, searched, ways

POINT = ScoreOptions(draws=0)


def captions(counts: list[int], **policies: Any) -> Captions:
    """So many captions of each image, those of one image not side by side."""
    made = [(n, row) for row, count in enumerate(counts) for n in range(count)]
    protocol = RetrievalProtocol(name="official", about="", **policies)
    return Captions(
        task="own",
        language="de",
        protocol=protocol,
        split="test",
        captions=tuple(Caption(f"{row}#{n}", f"{row}.jpg", f"{row} {n}") for n, row in sorted(made)),
        gallery=tuple(f"{row}.jpg" for row in range(len(counts))),
    )


def embedded(test: Captions, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and captions near them."""
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(len(test.gallery), 12, generator=generator), dim=1)
    owners = torch.tensor([test.gallery.index(caption.image) for caption in test.captions])
    texts = images[owners] + noise * torch.randn(len(owners), 12, generator=generator)
    return images, F.normalize(texts, dim=1)


def test_a_constant_scorer_is_at_chance_and_never_above(bundle: Path) -> None:
    task = find("xflickrco")
    for language in ("en", "de"):
        test = task.test_set(DataFolder(bundle), language, task.protocol())
        scores = score_embeddings(test, torch.ones(2000, 3), torch.ones(2000, 3), POINT).result.scores
        for way in ("text_to_image", "image_to_text"):
            assert scores[way]["R@1"] == pytest.approx(100 / 2000)
            assert scores[way]["R@1"] == pytest.approx(scores[way]["chance"]["R@1"])
            assert scores[way]["median_rank"] == 1000.5


def test_duplicate_captions_do_not_change_text_to_image(bundle: Path) -> None:
    """Some captions of the real files stand there twice, of two images: equal queries get equal ranks."""
    task = find("xflickrco")
    test = task.test_set(DataFolder(bundle), "zh", task.protocol())
    texts = [caption.text for caption in test.captions]
    assert len(set(texts)) < len(texts)
    rows = torch.tensor([texts.index(text) for text in texts])
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(2000, 16, generator=generator), dim=1)
    embeddings = F.normalize(images + 0.3 * torch.randn(2000, 16, generator=generator), dim=1)[rows]
    found = score_embeddings(test, images, embeddings, POINT)
    brute = (images @ embeddings.T).double()
    own = brute.diagonal()
    assert found.result.scores["text_to_image"]["R@1"] == pytest.approx(
        100 * float((brute > own).sum(0).eq(0).double().mean()), abs=0.06
    )
    twice = {text for text in texts if texts.count(text) > 1}
    back = {item["id"]: item for item in found.items if item["direction"] == "image_to_text"}
    for caption in test.captions:
        if caption.text in twice:  # the image finds its caption or the equal one of another image: a coin decides
            assert back[caption.image]["R@1"] in (0.0, 0.5)


def test_a_wit_image_is_found_by_any_of_its_captions_whatever_the_order_of_the_file(
    bundle: Path, tmp_path: Path
) -> None:
    task = find("wit")
    test = task.test_set(DataFolder(bundle), "ar", task.protocol())
    assert (len(test.captions), len(test.gallery)) == (890, 792)
    images, texts = embedded(test, 0.4)
    plain = score_embeddings(test, images, texts)
    brute = images.double() @ texts.double().T
    owners = np.array([caption.image for caption in test.captions])
    first = owners[brute.argmax(1).numpy()] == np.array(test.gallery)
    assert plain.result.scores["image_to_text"]["R@1"] == pytest.approx(100 * first.mean())
    assert plain.result.scores["image_to_text"]["queries"] == 792
    assert plain.result.scores["text_to_image"]["queries"] == 890
    assert "captions per image: 1.12" in plain.result.notes
    (name,) = [name for name in task.splits["test"].files("ar")]
    path = DataFolder(bundle).path(name)
    lines = path.read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(lines)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    other = task.test_set(DataFolder(tmp_path), "ar", task.protocol())
    assert other.ids != test.ids and other.fingerprint() == test.fingerprint()
    rows = [test.gallery.index(name) for name in other.gallery], [test.ids.index(name) for name in other.ids]
    shuffled = score_embeddings(other, images[rows[0]], texts[rows[1]])
    for way in ("text_to_image", "image_to_text"):
        for metric in ("R@1", "R@5", "R@10", "median_rank", "mean_reciprocal_rank"):
            assert shuffled.result.scores[way][metric] == pytest.approx(plain.result.scores[way][metric])
    by_id = {(item["direction"], item["id"]): item["rank"] for item in plain.items}
    assert {(item["direction"], item["id"]): item["rank"] for item in shuffled.items} == by_id


def test_one_gallery_its_first_part_and_the_mean_over_parts_are_three_numbers() -> None:
    counts = [5] * 40
    images, texts = embedded(captions(counts), 0.5)
    whole = score_embeddings(captions(counts), images, texts)
    folded = score_embeddings(captions(counts, folds=5), images, texts)
    test = captions(counts)
    parts = []
    for fold in range(5):
        rows = [row for row, one in enumerate(test.captions) if int(one.image[:-4]) // 8 == fold]
        own = captions([5] * 8)
        order = [f"{int(test.captions[row].image[:-4]) % 8}{test.captions[row].id[-2:]}" for row in rows]
        rows = [rows[order.index(name)] for name in own.ids]
        parts.append(score_embeddings(own, images[8 * fold : 8 * fold + 8], texts[rows], POINT).result.scores)
    for way in ("text_to_image", "image_to_text"):
        found = folded.result.scores[way]
        for metric in ("R@1", "R@5", "median_rank", "mean_reciprocal_rank", "queries", "gallery"):
            assert found[metric] == pytest.approx(np.mean([part[way][metric] for part in parts]))
        low, high = found["R@1_interval"]
        assert low < found["R@1"] < high
        assert found["R@1"] not in (parts[0][way]["R@1"], whole.result.scores[way]["R@1"])
        assert found["chance"]["R@1"] == pytest.approx(parts[0][way]["chance"]["R@1"])
    assert "mean of 5 disjoint galleries of 8 images" in folded.result.notes
    listed = next(item for item in folded.items if item["direction"] == "text_to_image" and item["id"] == "39#0")
    assert {int(name[:-4]) // 8 for name in listed["ranked"]} == {4}
    fold = {name: int(name.partition("#")[0].partition(".")[0]) // 8 for name in (*test.ids, *test.gallery)}
    rankings = _rankings(whole.items)  # of the whole gallery: what is of other parts is passed over
    assert all(len(set(map(fold.get, one.items))) > 1 for one in rankings["text_to_image"].values())
    full = score_embeddings(captions(counts), images, texts, ScoreOptions(draws=0, listed=200))
    again = score_rankings(captions(counts, folds=5), _rankings(full.items), POINT)
    for way in ("text_to_image", "image_to_text"):
        assert again.result.scores[way]["R@1"] == pytest.approx(folded.result.scores[way]["R@1"])


def _rankings(items: list[dict[str, Any]]) -> Rankings:
    found: Rankings = {}
    for item in items:
        made = Ranking(tuple(item["ranked"]), tuple(item["scores"]))
        found.setdefault(item["direction"], {})[item["id"]] = made
    return found


def test_embeddings_ranks_and_full_lists_are_one_number() -> None:
    test = captions([1, 3, 2, 1, 2, 5, 1, 1, 4, 2, 1, 1])
    images, texts = embedded(test, 0.8)
    scored = score_embeddings(test, images, texts, ScoreOptions(draws=50))
    there, back = searched(ways(test), texts, images, 100)
    lists = [(there.scores, there.rows), (back.scores, back.rows)]
    assert score_ranks(test, there.ranks, back.ranks, ScoreOptions(draws=50), lists) == scored
    again = score_rankings(test, _rankings(scored.items), ScoreOptions(draws=50))
    assert again.result.scores == scored.result.scores and again.items == scored.items
    six = [scored.result.scores[way][f"R@{k}"] for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    assert scored.result.scores["mean_recall"] == pytest.approx(np.mean(six))
    with pytest.raises(ValueError, match="image_to_text: ranks of 24 queries where the test has 12"):
        score_ranks(test, there.ranks, there.ranks)
    with pytest.raises(ValueError, match="images: 24 embeddings for 12"):
        score_embeddings(test, texts, images)


def test_what_a_short_list_does_not_hold_is_not_told() -> None:
    test = captions([1] * 30)
    images, texts = embedded(test, 1.2)
    whole = score_embeddings(test, images, texts, ScoreOptions(draws=0))
    short = score_rankings(
        test, _rankings(score_embeddings(test, images, texts, ScoreOptions(0, listed=10)).items), POINT
    )
    for way in ("text_to_image", "image_to_text"):
        full, cut = whole.result.scores[way], short.result.scores[way]
        assert [cut[f"R@{k}"] for k in (1, 5, 10)] == [full[f"R@{k}"] for k in (1, 5, 10)]
        assert full["mean_reciprocal_rank"] > 0 and cut["mean_reciprocal_rank"] is None
        assert cut["median_rank"] == full["median_rank"] < 10
        assert any(note.startswith(f"{way}: lists of 10 or more") for note in short.result.notes)
    assert {item["rank"] for item in short.items} - {None} <= set(range(1, 11))
    assert None in {item["rank"] for item in short.items}


def test_sentences_find_each_other() -> None:
    pairs = tuple(Sentence(str(row), f"satz {row}", f"sentence {row}") for row in range(5))
    test = Sentences(
        task="tatoeba", language="de", protocol=Protocol(name="official", about=""), split="test", sentences=pairs
    )
    english = torch.eye(5)
    texts = english.clone()
    texts[0] = torch.tensor([0.0, 1, 0, 0, 0])
    scores = score_sentences(test, texts, english).result.scores
    assert scores["to_english"]["R@1"] == 80.0
    assert scores["from_english"]["R@1"] == pytest.approx(100 * (3 + 1 / 2 + 1 / 5) / 5)  # of two, of five equal ones


def statements(wanted: list[tuple[str, str | None]], images: int = 2) -> Questions:
    asked = tuple(
        Question(f"q{number}", tuple(f"{number}-{n}.jpg" for n in range(images)), text, label)
        for number, (text, label) in enumerate(wanted)
    )
    protocol = ClassificationProtocol(name="official", about="")
    return Questions(
        task="own", language="id", protocol=protocol, split="test", questions=asked, labels=("False", "True")
    )


def test_consistency_counts_sentences_that_are_right_with_all_their_pairs() -> None:
    test = statements([("a", "True"), ("a", "False"), ("b", "True"), ("b", "True"), ("c", "False")])
    answers = {"q0": "True", "q1": "True", "q2": "True", "q3": "True", "q4": "False"}
    scores = score_answers(test, answers, POINT).result.scores
    assert scores["accuracy"] == 80.0 and scores["consistency"] == pytest.approx(200 / 3)
    assert (scores["sentences"], scores["chance"]) == (3, 50.0)
    one = score_answers(statements([("a", "True"), ("a", "True")], images=1), {"q0": "True", "q1": "True"}, POINT)
    assert "consistency" not in one.result.scores


def test_marvl_has_as_many_sentences_as_the_paper_says(bundle: Path) -> None:
    task = find("marvl")
    for language, sentences in {"id": 282, "sw": 276, "ta": 305, "tr": 295, "zh": 253}.items():
        test = task.test_set(DataFolder(bundle), language, task.protocol())
        right = {question.id: str(question.label) for question in test.questions}
        scores = score_answers(test, right, POINT).result.scores
        assert (scores["sentences"], scores["accuracy"], scores["consistency"]) == (sentences, 100.0, 100.0)


def test_intervals_draw_whole_images() -> None:
    asked = tuple(Question(f"q{n}", (f"{n // 10}.jpg",), "?", "a") for n in range(200))
    protocol = ClassificationProtocol(name="official", about="")
    labels = ("a", "b")
    test = Questions(task="own", language="de", protocol=protocol, split="test", questions=asked, labels=labels)
    together = score_answers(test, {one.id: "ab"[int(one.images[0][:-4]) % 2] for one in asked}).result.scores
    apart = score_answers(test, {one.id: "ab"[number % 2] for number, one in enumerate(asked)}).result.scores
    assert together["accuracy"] == apart["accuracy"] == 50.0
    assert apart["accuracy_interval"] == [50.0, 50.0]  # every image half right: no draw differs
    assert together["accuracy_interval"][0] < 35 and together["accuracy_interval"][1] > 65


def test_pictures_are_classified() -> None:
    pictures = tuple(Picture(str(number), f"{number}.jpg", "dog") for number in range(4))
    test = Pictures(
        task="zeroshot",
        language="de",
        protocol=Protocol(name="official", about=""),
        split="test",
        pictures=pictures,
        names={"dog": ("Hund",), "cat": ("Katze",), "cow": ("Kuh",)},
    )
    scored = score_answers(test, {"0": "dog", "1": "cat", "2": "dog", "3": "dog"})
    assert scored.result.scores["accuracy"] == 75.0 and scored.result.scores["chance"] == pytest.approx(100 / 3)
    with pytest.raises(ValueError, match="1 of 4 pictures have no prediction, first '3'"):
        score_answers(test, {"0": "dog", "1": "cat", "2": "dog"})


def xvnli(bundle: Path, folder: Path, labelled: bool) -> tuple[Path, int]:
    """Predictions that are right for the first 700 labelled rows, and how many these are."""
    task = find("xvnli")
    test = task.test_set(DataFolder(bundle), "fr", task.protocol("labelled" if labelled else None))
    rows, right = [], 0
    for question in test.questions:
        hit = question.label is not None and right < 700
        right += hit
        wrong = "neutral" if question.label == "entailment" else "entailment"
        rows.append({"pairID": question.id, "prediction": question.label if hit else wrong})
    path = folder / "predictions.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path, right


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("protocol", ["official", "labelled"])
def test_both_numbers_of_xvnli_are_shown(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], labelled: bool, protocol: str
) -> None:
    """Whether the file holds the 14 rows without a label or not, as they are wrong in any case."""
    path, right = xvnli(bundle, tmp_path, labelled)
    given = ["iglue", "score", "xvnli", "--predictions", str(path), "--language", "fr", "--data", str(bundle)]
    given += ["--protocol", protocol, "--draws", "0", "--system", "ours"]
    if labelled and protocol == "official":
        with pytest.raises(SystemExit):
            main(given)
        told = capsys.readouterr().err
        assert "14 of 1,164 questions have no prediction" in told and told.count("\n") == 1
        assert told.endswith("the ids are exactly those of --protocol labelled\n")
        return
    main([*given, "--json"])
    found = json.loads(capsys.readouterr().out)
    counts = {"official": 1164, "labelled": 1150}
    (other,) = set(counts) - {protocol}
    assert found["items"] == counts[protocol] and found["system"] == "ours"
    assert found["accuracy"] == pytest.approx(100 * right / counts[protocol])
    converted = found["provenance"]["other_protocols"]
    assert converted == {other: {"items": counts[other], "accuracy": pytest.approx(100 * right / counts[other])}}
    by_hand = found["accuracy"] * counts[protocol] / counts[other]  # reference/iglue.md 1.8: exact both ways
    assert converted[other]["accuracy"] == pytest.approx(by_hand)
    policy = "rows without a label of the task: 14, " + ("count as wrong" if protocol == "official" else "left out")
    assert policy in found["notes"]
    main(given)
    told = capsys.readouterr().out
    assert policy in told and f"under protocol {other}, {counts[other]:,} items: {by_hand:.2f}" in told


def test_a_cut_test_is_refused_or_said_to_be_partial(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = DataFolder(bundle).path("XVNLI/annotations/fr/test.jsonl")
    (tmp_path / "XVNLI/annotations/fr").mkdir(parents=True)
    lines = source.read_text(encoding="utf-8").splitlines()[:100]
    (tmp_path / "XVNLI/annotations/fr/test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = {json.loads(line)["pairID"]: 0 for line in lines}
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    given = ["iglue", "score", "xvnli", "--predictions", str(path), "--language", "fr", "--data", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(given)
    assert "100 items where protocol official has 1,164" in capsys.readouterr().err
    main([*given, "--partial", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["items"] == 100 and "other_protocols" not in found["provenance"]  # whose set is cut, too


def test_lists_of_another_protocols_captions_name_it(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = find("xflickrco")
    test = task.test_set(DataFolder(bundle), "de", task.protocol("captioned"))
    path = tmp_path / "captioned.json"
    path.write_text(json.dumps({name: list(test.gallery[:10]) for name in test.ids}), encoding="utf-8")
    given = ["iglue", "score", "xflickrco", "--predictions", str(path), "--language", "de", "--data", str(bundle)]
    with pytest.raises(SystemExit):
        main(given)
    told = capsys.readouterr().err
    assert "1 of 2,000 text_to_image queries have no prediction" in told
    assert told.endswith("the ids are exactly those of --protocol captioned\n") and told.count("\n") == 1


def test_a_folder_is_no_file_of_predictions(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("xvnli", "xflickrco"):
        given = ["iglue", "score", task, "--predictions", str(tmp_path), "--language", "ru", "--data", str(bundle)]
        with pytest.raises(SystemExit):
            main(given)
        told = capsys.readouterr().err
        assert f"{tmp_path} is a folder; give the file of predictions in it" in told and told.count("\n") == 1


def test_how_answers_were_read_is_part_of_the_result(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = xvnli(bundle, tmp_path, labelled=False)
    given = ["iglue", "score", "xvnli", "--predictions", str(path), "--language", "fr", "--data", str(bundle)]
    main([*given, "--draws", "0", "--json"])
    assert not any("read from" in note for note in json.loads(capsys.readouterr().out)["notes"])
    path.write_text(path.read_text(encoding="utf-8").replace('"prediction"', '"label"'), encoding="utf-8")
    main([*given, "--draws", "0", "--json"])
    assert "answers read from field 'label'" in json.loads(capsys.readouterr().out)["notes"]
    path.write_text(path.read_text(encoding="utf-8").replace('"label"', '"output": "x", "label"'), encoding="utf-8")
    with pytest.raises(SystemExit):
        main(given)
    assert "'label' may be what is right, and 'output' what was predicted" in capsys.readouterr().err


def test_trec_files_are_for_rankings(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = xvnli(bundle, tmp_path, labelled=False)
    given = ["iglue", "score", "xvnli", "--predictions", str(path), "--language", "fr", "--data", str(bundle)]
    with pytest.raises(SystemExit):
        main([*given, "--trec-run", str(tmp_path / "run")])
    assert "task xvnli ranks nothing" in capsys.readouterr().err and not (tmp_path / "run").exists()
    official = bundle / "_official_results/xflickrco/zero_shot/uc2/test_ja_0_result.json"
    shutil.copy(official, tmp_path / "uc2.json")
    given = ["iglue", "score", "xflickrco", "--predictions", str(tmp_path / "uc2.json"), "--language", "ja"]
    given += ["--data", str(bundle), "--draws", "0", "--json"]
    main([*given, "--trec-run", str(tmp_path / "run"), "--trec-qrels", str(tmp_path / "qrels")])
    first = json.loads(capsys.readouterr().out)
    assert len((tmp_path / "run").read_text().splitlines()) == 40_000
    assert len((tmp_path / "qrels").read_text().splitlines()) == 2000
    given[given.index("--predictions") + 1] = str(tmp_path / "run")
    main(given)
    again = json.loads(capsys.readouterr().out)
    assert first.pop("provenance")["predictions"] == "uc2.json" and again.pop("provenance")["predictions"] == "run"
    assert first.pop("notes")[-1] == "text_to_image: lists without ids, matched by position"
    assert again.pop("notes")[-1] == "text_to_image: the lists do not say their direction, which is by their ids"
    assert again == first
    with pytest.raises(SystemExit):
        main([*given, "--trec-run", str(tmp_path / "back"), "--direction", "image_to_text"])
    assert "no ranked list of direction image_to_text" in capsys.readouterr().err
