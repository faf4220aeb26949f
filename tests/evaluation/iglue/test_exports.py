"""What other programs read: CLIP_benchmark's and MTEB's forms, with metrics that agree with pytrec_eval."""

from __future__ import annotations

import csv
import datetime
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from cclm.cli import main
from cclm.evaluation import exports, predictions
from cclm.evaluation.cells import RunFolder
from cclm.evaluation.exports import KS, SCRIPTS, clip_benchmark, mteb
from cclm.evaluation.pictures import StandIns
from cclm.evaluation.result import Result
from cclm.evaluation.runs import Measured
from cclm.evaluation.scoring import Scored, ScoreOptions, score_embeddings
from cclm.evaluation.task import DataFolder, find


class TaskResult(BaseModel, strict=True, extra="forbid"):
    """The fields of mteb.results.TaskResult (2.x)."""

    dataset_revision: str
    task_name: str
    mteb_version: str | None
    scores: dict[str, list[dict[str, Any]]]
    evaluation_time: float | None
    kg_co2_emissions: float | None = None
    date: datetime.datetime | None = None
    evaluation_phases: list[Any] | None = None


@pytest.fixture(scope="module")
def scored(bundle: Path) -> dict[str, Scored]:
    """WIT in Arabic, where images have several captions, as both protocols have it; xFlickr&CO in German."""
    data, generator = DataFolder(bundle), torch.Generator().manual_seed(0)
    found = {}
    for name, language in (("wit", "ar"), ("xflickrco", "de")):
        task = find(name)
        for protocol in task.protocols:
            test = task.test_set(data, language, protocol)
            images = torch.randn(len(test.gallery), 24, generator=generator)
            row = {image: number for number, image in enumerate(test.gallery)}
            owners = [row[caption.image] for caption in test.captions]
            texts = images[owners] + 1.2 * torch.randn(len(owners), 24, generator=generator)
            one = score_embeddings(test, images, texts, ScoreOptions(draws=0, listed=10))
            found[f"{name} {protocol.name}"] = replace(one, result=replace(one.result, system="org/model"))
    return found


@pytest.fixture
def runs(scored: dict[str, Scored], tmp_path: Path) -> list[Measured]:
    found = []
    for name, one in scored.items():
        path = tmp_path / f"{name}.jsonl"
        predictions.write(one.items, path)
        found.append(Measured(one.result, path))
    return found


def test_mteb_files_are_what_its_class_reads(runs: list[Measured]) -> None:
    exported = mteb(runs)
    assert set(exported.files) == {
        f"org__model/{name}.json"
        for name in ("WITT2IRetrieval", "WITI2TRetrieval", "XFlickr30kCoT2IRetrieval", "XFlickr30kCoI2TRetrieval")
    }
    for name, content in exported.files.items():
        found = TaskResult.model_validate_json(json.dumps(content))
        assert f"/{found.task_name}.json" in name
        (scores,) = found.scores["test"]
        assert scores["main_score"] == scores["ndcg_at_10"]
        assert scores["hf_subset"] == ("ar" if "WIT" in name else "de")
        assert scores["languages"] == (["ara-Arab"] if "WIT" in name else ["deu-Latn"])
        assert all(0 <= value <= 1 for key, value in scores.items() if "_at_" in key)
    assert exported.left_out["not by MTEB's protocol"] == [
        "org/model wit ar official zero-shot image_to_text",
        "org/model wit ar captioned zero-shot text_to_image",
    ]
    told = "without org/model wit ar official zero-shot image_to_text and 1 more: not by MTEB's protocol"
    assert told in exported.reasons()


def test_mteb_scores_are_pytrec_evals(scored: dict[str, Scored], runs: list[Measured]) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    checks = {
        ("wit official", "text_to_image"): "WITT2IRetrieval",
        ("wit captioned", "image_to_text"): "WITI2TRetrieval",
        ("xflickrco official", "image_to_text"): "XFlickr30kCoI2TRetrieval",
    }
    files = mteb(runs).files
    for (name, way), task in checks.items():
        items = [item for item in scored[name].items if item["direction"] == way]
        owners: dict[str, list[str]] = {}
        for item in scored[name].items:
            if item["direction"] == "text_to_image":
                owners.setdefault(item["images"][0], []).append(item["id"])
        relevant = {
            item["id"]: dict.fromkeys(item["images"] if way == "text_to_image" else owners[item["images"][0]], 1)
            for item in items
        }
        assert max(map(len, relevant.values())) > 1 or task != "WITI2TRetrieval"
        run = {item["id"]: {doc: -float(place) for place, doc in enumerate(item["ranked"])} for item in items}
        cuts = ",".join(map(str, KS))
        found = pytrec_eval.RelevanceEvaluator(relevant, {f"ndcg_cut.{cuts}", f"recall.{cuts}"}).evaluate(run)
        (ours,) = files[f"org__model/{task}.json"]["scores"]["test"]
        for k in KS:
            for own, theirs in ((f"ndcg_at_{k}", f"ndcg_cut_{k}"), (f"recall_at_{k}", f"recall_{k}")):
                wanted = sum(query[theirs] for query in found.values()) / len(found)
                assert ours[own] == pytest.approx(wanted, abs=1e-9)
        for k in (1, 5, 10):
            assert ours[f"cv_recall_at_{k}"] == pytest.approx(scored[name].result.scores[way][f"R@{k}"] / 100)


def test_mteb_names_what_it_cannot_give(scored: dict[str, Scored], runs: list[Measured]) -> None:
    result = scored["xflickrco official"].result
    cases = {
        "nDCG at 10 needs ranked lists": Measured(result),
        "stand-in pictures": replace(runs[2], result=replace(result, notes=(StandIns.note,))),
        "translate-test": replace(runs[2], result=replace(result, regime="translate-test")),
        "12 items of 2,000": replace(runs[2], result=replace(result, items=12)),
        "no task of MTEB's": Measured(Result("xvnli", "fr", "official", 1164, {"accuracy": 50.0}, "0" * 64)),
    }
    for told, one in cases.items():
        exported = mteb([one])
        assert exported.files == {}
        assert exported.left_out
        assert all(told in reason for reason in exported.left_out)


def test_every_language_of_its_tasks_has_a_script() -> None:
    for task in ("xflickrco", "wit", "xm3600"):
        assert set(find(task).languages) <= set(SCRIPTS)


def built(contents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As CLIP_benchmark's `build` makes rows of its files: metrics beside the other fields, and a full name."""
    rows = [
        content["metrics"]
        | {name: value for name, value in content.items() if name != "metrics"}
        | {"model_fullname": f"{content['model']} {content['pretrained']}"}
        for content in contents
    ]
    handle = io.StringIO()
    writer = csv.DictWriter(handle, sorted({name for row in rows for name in row}))
    writer.writeheader()
    writer.writerows(rows)
    return list(csv.DictReader(io.StringIO(handle.getvalue())))


def test_clip_benchmark_files_build_one_table(runs: list[Measured]) -> None:
    exported = clip_benchmark(runs)
    assert exported.left_out == {}
    rows = built(list(exported.files.values()))
    assert len(rows) == 4
    for content in exported.files.values():
        assert set(content) == {"dataset", "model", "pretrained", "task", "metrics", "language"}
        assert content["task"] == "zeroshot_retrieval"
        assert set(content["metrics"]) == {
            f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in (1, 5, 10)
        }
    row = next(row for row in rows if row["dataset"] == "xflickrco_official")
    scores = runs[2].result.scores
    assert float(row["image_retrieval_recall@5"]) == pytest.approx(scores["text_to_image"]["R@5"] / 100)
    assert float(row["text_retrieval_recall@5"]) == pytest.approx(scores["image_to_text"]["R@5"] / 100)


def test_clip_benchmark_keeps_its_own_names_and_leaves_out_the_rest() -> None:
    scores = {"R@1": 50.0, "R@5": 60.0, "R@10": 70.0, "queries": 3600, "gallery": 3600}
    one = Result(
        "xm3600", "de", "one-caption", 3600, {"text_to_image": scores, "image_to_text": None}, "0" * 64, "test", "m"
    )
    (content,) = clip_benchmark([Measured(one)]).files.values()
    assert content["dataset"] == "crossmodal3600"
    assert content["metrics"] == {f"image_retrieval_recall@{k}": scores[f"R@{k}"] / 100 for k in (1, 5, 10)}
    classes = Result("babel_imagenet", "de", "official", 100, {"accuracy": 25.0}, "0" * 64, "test", "m")
    (content,) = clip_benchmark([Measured(classes)]).files.values()
    assert content["task"] == "zeroshot_classification"
    assert content["metrics"] == {"acc1": 0.25}
    answers = Result("xvnli", "fr", "official", 1164, {"accuracy": 50.0}, "0" * 64, "test", "m")
    exported = clip_benchmark([Measured(answers)])
    assert exported.files == {}
    assert list(exported.left_out) == ["neither retrieval nor classes of pictures"]


def test_a_model_that_is_not_tested_as_it_is_does_not_pass_as_one(scored: dict[str, Scored]) -> None:
    result = scored["xflickrco official"].result
    reranked = "the 64 best of each query reordered by the matching head"
    seen = "12 of its 2,000 images were in the training"
    for other, told in (
        (replace(result, notes=(reranked,)), "reranked by the matching head"),
        (replace(result, provenance={"settings": {"rerank": 64}}), "reranked by the matching head"),
        (replace(result, notes=(seen,)), "images were in the training"),
        (replace(result, provenance={"training": {"rate": 1e-5}}), "a model fine-tuned on the task"),
        (replace(result, notes=("fine-tuned before: model",)), "a model fine-tuned on the task"),
        (replace(result, notes=("partial: 3 of 2,000 images",)), "a part of the test"),
    ):
        for export in (clip_benchmark, mteb):
            exported = export([Measured(result), Measured(other)])
            (reason,) = (reason for reason in exported.left_out if told in reason)
            assert exported.left_out[reason] == ["org/model xflickrco de official zero-shot"]
    assert len(clip_benchmark([Measured(result)]).files) == 1


def test_trec_files_score_in_pytrec_eval_as_the_results_do(
    scored: dict[str, Scored], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    run, output = RunFolder.at(tmp_path / "run"), tmp_path / "out"
    for name, one in scored.items():
        run.write(name.replace(" ", "-"), one)
    bare = replace(scored["wit official"].result, system="bare")
    run.tell("bare", bare)
    run.tell("answers", Result("xvnli", "fr", "official", 1164, {"accuracy": 50.0}, "0" * 64, system="bare"))
    for _ in range(2):  # a report of it is replaced
        main(["iglue", "report", str(run.root), "--output", str(output), "--format", "trec"])
    told = capsys.readouterr().out
    assert "without bare wit ar official zero-shot text_to_image and 1 more: no ranked lists are kept" in told
    assert "without bare xvnli fr official zero-shot: nothing is ranked" in told
    assert len(list((output / "trec").iterdir())) == 4 * 2 * 2
    for one in scored.values():
        result = one.result
        for way in ("text_to_image", "image_to_text"):
            name = f"org__model-{result.task}-{result.language}-{result.protocol}-zero-shot-{way}"
            with open(output / "trec" / f"{name}.qrels") as relevant, open(output / "trec" / f"{name}.run") as lists:
                judged, ranked = pytrec_eval.parse_qrel(relevant), pytrec_eval.parse_run(lists)
            assert len(judged) == len(ranked) == result.scores[way]["queries"]
            found = pytrec_eval.RelevanceEvaluator(judged, {"success.1,5,10"}).evaluate(ranked).values()
            for k in (1, 5, 10):
                share = 100 * sum(query[f"success_{k}"] for query in found) / len(found)
                assert share == pytest.approx(result.scores[way][f"R@{k}"])


def test_no_two_names_become_one_file() -> None:
    names = ["a b", "a_b", "a|b", "a  b", "a/b", "a:b"]
    found = {exports._file(name) for name in names}
    assert len(found) == len(names) and "a_b" in found and "a__b" in found
    assert not any(set(name) & set(" |/:") for name in found)
