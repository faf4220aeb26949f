"""Results in the forms of other programs: CLIP_benchmark's JSON files and MTEB's, and TREC's run and qrels files.

Neither of the first two has a place to say that pictures stood in for the benchmark's, that a test was cut, or that a
model had learned the task or seen the test: such results, and those of other protocols than theirs, are left out, and
it is said why.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from cclm.evaluation import predictions
from cclm.evaluation.items import Caption, Captions, Sentence, Sentences
from cclm.evaluation.pictures import StandIns
from cclm.evaluation.protocol import RetrievalProtocol, ZeroShot
from cclm.evaluation.result import Result
from cclm.evaluation.runs import Measured
from cclm.evaluation.task import find, names
from cclm.evaluation.trec import write_qrels, write_run

CLIP_BENCHMARK = {  # (task, protocol) -> its data set; others keep our names
    ("xm3600", "one-caption"): "crossmodal3600",
    ("xtd10", "official"): "xtd10",
    ("xtd_200", "official"): "xtd200",
    ("flickr30k_200", "official"): "flickr30k-200",
    ("babel_imagenet", "official"): "babel_imagenet",
}
SIDES = {"text_to_image": "image", "image_to_text": "text"}  # what is retrieved
MTEB = {  # (task, protocol, direction) -> its task: WIT's blank captions are left out in one direction only
    ("xflickrco", "official", "text_to_image"): "XFlickr30kCoT2IRetrieval",
    ("xflickrco", "official", "image_to_text"): "XFlickr30kCoI2TRetrieval",
    ("wit", "official", "text_to_image"): "WITT2IRetrieval",
    ("wit", "captioned", "image_to_text"): "WITI2TRetrieval",
    ("xm3600", "all-captions", "text_to_image"): "XM3600T2IRetrieval",
    ("xm3600", "all-captions", "image_to_text"): "XM3600I2TRetrieval",
}
KS = (1, 3, 5, 10)
SCRIPTS = {
    "ar": "ara-Arab", "bg": "bul-Cyrl", "bn": "ben-Beng", "cs": "ces-Latn", "da": "dan-Latn", "de": "deu-Latn",
    "el": "ell-Grek", "en": "eng-Latn", "es": "spa-Latn", "et": "est-Latn", "fa": "fas-Arab", "fi": "fin-Latn",
    "fil": "fil-Latn", "fr": "fra-Latn", "he": "heb-Hebr", "hi": "hin-Deva", "hr": "hrv-Latn", "hu": "hun-Latn",
    "id": "ind-Latn", "it": "ita-Latn", "ja": "jpn-Jpan", "ko": "kor-Hang", "mi": "mri-Latn", "nl": "nld-Latn",
    "no": "nor-Latn nno-Latn nob-Latn", "pl": "pol-Latn", "pt": "por-Latn", "quz": "quz-Latn", "ro": "ron-Latn",
    "ru": "rus-Cyrl", "sv": "swe-Latn", "sw": "swa-Latn", "te": "tel-Telu", "th": "tha-Thai", "tr": "tur-Latn",
    "uk": "ukr-Cyrl", "vi": "vie-Latn", "zh": "zho-Hans",
}  # fmt: skip


@dataclass
class Exported:
    """`files`: name -> content. `left_out`: reason -> what could not be given for it, by name."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, result: Result, reason: str, way: str = "") -> None:
        self.left_out.setdefault(reason, []).append(" ".join(_parts(result, way)))

    def reasons(self) -> Iterator[str]:
        """A line each, with an example."""
        for reason, (first, *more) in self.left_out.items():
            others = f" and {len(more):,} more" if more else ""
            yield f"without {first}{others}: {reason}"


def clip_benchmark(runs: Iterable[Measured]) -> Exported:
    """A file per result, as its `eval` writes and its `build` reads: recalls as shares, acc1 of classes of pictures."""
    found = Exported()
    for one in runs:
        result, metrics = one.result, _clip_metrics(one.result)
        reason = _unfit(result) or ("" if metrics else "neither retrieval nor classes of pictures")
        if reason:
            found.leave_out(result, reason)
            continue
        dataset = CLIP_BENCHMARK.get((result.task, result.protocol), f"{result.task}_{result.protocol}")
        task = "zeroshot_retrieval" if "acc1" not in metrics else "zeroshot_classification"
        content = {
            "dataset": dataset,
            "model": result.system,
            "pretrained": "",
            "task": task,
            "metrics": metrics,
            "language": result.language,
        }
        found.files[f"{_file(f'{dataset}_{result.system}_{result.language}_{task}')}.json"] = content
    return found


def _clip_metrics(result: Result) -> dict[str, float]:
    if result.task == "babel_imagenet":
        return {"acc1": result.scores["accuracy"] / 100}
    ways = {side: result.scores.get(way) or {} for way, side in SIDES.items()}
    return {
        f"{side}_retrieval_recall@{k}": scores[f"R@{k}"] / 100
        for k in (1, 5, 10)
        for side, scores in ways.items()
        if f"R@{k}" in scores
    }


def mteb(runs: Iterable[Measured]) -> Exported:
    """A file per system and task, languages as subsets. The main score, nDCG at 10, needs the ranked lists of the
    predictions; MAP, precision and scores beyond the first ten are not given. No version of mteb has made these.
    """
    found = Exported()
    for one in runs:
        result = one.result
        known = {way: MTEB.get((result.task, result.protocol, way)) for way in SIDES if result.scores.get(way)}
        reason = _unfit(result) or ("" if any(known.values()) else "no task of MTEB's, or not by its protocol")
        lists = [] if reason or one.predictions is None else predictions.read(one.predictions)
        for way, name in known.items() if not reason else ():
            if name is None:
                found.leave_out(result, "not by MTEB's protocol", way)
            elif (scores := _ranked_scores(lists, way)) is None:
                found.leave_out(result, "nDCG at 10 needs ranked lists, which are not kept", way)
            else:
                file = found.files.setdefault(f"{_file(result.system)}/{name}.json", _task_file(name))
                languages = SCRIPTS[result.language].split()
                subset = {"hf_subset": result.language, "languages": languages, "main_score": scores["ndcg_at_10"]}
                file["scores"]["test"].append(scores | subset)
        if reason:
            found.leave_out(result, reason)
    return found


def _task_file(name: str) -> dict[str, Any]:
    return {
        "dataset_revision": "the benchmark's own files, read by cclm",
        "task_name": name,
        "mteb_version": None,
        "evaluation_time": None,
        "kg_co2_emissions": None,
        "scores": {"test": []},
    }


def _ranked_scores(items: Sequence[dict[str, Any]], way: str) -> dict[str, float] | None:
    """nDCG, recall, share of queries with a hit and mean reciprocal rank at each of KS; None without lists of ten.

    Captions of an image are all relevant to it, each as much: of image to text, as the other direction's items tell.
    """
    captions: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.get("direction") == "text_to_image":
            captions[item["images"][0]].add(item["id"])
    asked = [item for item in items if item.get("direction") == way]
    size = len(captions) if way == "text_to_image" else sum(map(len, captions.values()))
    if not asked or not captions or any(len(item.get("ranked", ())) < min(KS[-1], size) for item in asked):
        return None
    scores: dict[str, list[float]] = defaultdict(list)
    for item in asked:
        image = item["images"][0]
        relevant = {image} if way == "text_to_image" else captions[image]
        for name, value in _scores_of([name in relevant for name in item["ranked"][: KS[-1]]], len(relevant)).items():
            scores[name].append(value)
    return {name: fmean(values) for name, values in scores.items()}


def _scores_of(hits: Sequence[bool], relevant: int) -> dict[str, float]:
    """Of one list: whether each of its first items is relevant, and how many there are."""
    first = next((place for place, hit in enumerate(hits, 1) if hit), None)
    found = {}
    for k in KS:
        gain = sum(1 / math.log2(place + 1) for place, hit in enumerate(hits[:k], 1) if hit)
        best = sum(1 / math.log2(place + 1) for place in range(1, min(k, relevant) + 1))
        found[f"ndcg_at_{k}"] = gain / best
        found[f"recall_at_{k}"] = sum(hits[:k]) / relevant
        found[f"cv_recall_at_{k}"] = float(any(hits[:k]))
        found[f"mrr_at_{k}"] = 1 / first if first is not None and first <= k else 0.0
    return found


def _unfit(result: Result) -> str:
    """Why it cannot be given where nothing can be said beside it; "" where it can."""
    told = result.provenance
    for reason, is_so in {
        "stand-in pictures": StandIns.note in result.notes,
        "a part of the test": _noted(result, "partial: "),
        "reranked by the matching head, where the others test embeddings": _noted(result, "by the matching head")
        or bool((told.get("settings") or {}).get("rerank")),
        "some of its images were in the training": _noted(result, "images were in the training"),
        "a model fine-tuned on the task, where the others test it as it is": bool(told.get("training"))
        or _noted(result, "fine-tuned before"),
    }.items():
        if is_so:
            return reason
    if result.regime != ZeroShot.name or result.split != "test":
        return f"{result.regime} on {result.split}, where the others test a model as it is on the test"
    if result.task in names():
        task = find(result.task)
        wanted = task.expected(task.protocol(result.protocol), result.language)
        if wanted not in (None, result.items):
            return f"{result.items:,} items of {wanted:,}"
    return ""


def _noted(result: Result, words: str) -> bool:
    return any(words in note for note in result.notes)


def _parts(result: Result, way: str = "") -> list[str]:
    parts = (result.system, result.task, result.language, result.protocol, result.regime, result.shots, way)
    return [part for part in parts if part]


def _file(name: str) -> str:
    """A name fit for a file; where characters had to go, with a hash of them all, so that no two become one."""
    plain = name.replace("/", "__")
    fit = re.sub(r"[^\w.@-]+", "_", plain)
    return fit if fit == plain else f"{fit}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def trec(runs: Iterable[Measured], folder: Path) -> Exported:
    """Writes NAME.run and NAME.qrels for each direction of each retrieval result, NAME all that tells it apart: the
    lists that its predictions hold, and what is relevant by these. `files` of the answer is empty.

    Nothing but predictions goes into these, so that every regime, stand-in pictures and parts of tests are given too.
    """
    found = Exported()
    for one in runs:
        result = one.result
        ways = [way for way, scores in result.scores.items() if isinstance(scores, dict) and "gallery" in scores]
        items = predictions.read(one.predictions) if ways and one.predictions else []
        test = _tested(result, items)
        for way in ways:
            if not any("ranked" in item for item in items if item.get("direction") == way):
                found.leave_out(result, "no ranked lists are kept", way)
            elif not len(test):
                found.leave_out(result, "which caption is of which image, text to image tells, which is not kept", way)
            else:
                name = _file("-".join(_parts(result, way)))
                write_run(items, folder / f"{name}.run", way, result.system)
                write_qrels(test, folder / f"{name}.qrels", way)
        if not ways:
            found.leave_out(result, "nothing is ranked")
    return found


def _tested(result: Result, items: Sequence[dict[str, Any]]) -> Captions | Sentences:
    """As much of a test as its predictions tell: ids and what belongs together, without texts."""
    ways: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in items:
        ways[item.get("direction", "")].append(item)
    about = {"task": result.task, "language": result.language, "split": result.split}
    protocol = RetrievalProtocol(name=result.protocol, about="")
    if "text_to_image" in result.scores:
        captions = tuple(Caption(item["id"], item["images"][0], "") for item in ways["text_to_image"])
        gallery = tuple(dict.fromkeys(caption.image for caption in captions))
        return Captions(**about, protocol=protocol, captions=captions, gallery=gallery)
    ids = dict.fromkeys(item["id"] for found in ways.values() for item in found)
    return Sentences(**about, protocol=protocol, sentences=tuple(Sentence(name, "", "") for name in ids))
