"""The literature's numbers are data: whole, of known tasks and protocols, equal to the official tables and logs."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from cclm.evaluation.number import AVERAGE, Number
from cclm.evaluation.published import COMPARABLE, beside, published
from cclm.evaluation.task import find, names

ROOT = Path(__file__).resolve().parents[3]
SYSTEMS = {"ctrl_muniter": "mUNITER", "ctrl_xuniter": "xUNITER", "uc2": "UC2", "m3p": "M3P"}


def one(**wanted: str) -> float:
    (found,) = published(**wanted)
    return found.value


def test_only_verified_numbers_are_shown_unless_all_are_asked_for() -> None:
    every, verified = published(unverified=True), published()
    assert len(verified) < len(every)
    assert all(number.verified for number in verified)
    hidden = {number.source for number in every} - {number.source for number in verified}
    assert any("recalled" in source for source in hidden)
    assert all("recalled" in source or "third party" in source for source in hidden)
    assert not published(task="xflickrco", system="CCLM-4M")
    assert [n.value for n in published(True, task="xflickrco", system="CCLM-4M")] == [76.56, 73.46]


def test_every_number_is_of_a_known_task_language_and_protocol_and_stands_once() -> None:
    numbers = published(unverified=True)
    for number in numbers:
        assert number.task in names(), number
        task = find(number.task)
        assert number.language in (AVERAGE, *task.languages), number
        assert number.protocol in ("", *(protocol.name for protocol in task.protocols)), number
        assert 0 <= number.value <= 100, number
        assert number.shots == "" or f"train_{number.shots}" in task.splits, number
        assert number.source
    key = (*COMPARABLE, "system", "source")
    repeated = Counter(tuple(getattr(number, name) for name in key) for number in numbers)
    assert max(repeated.values()) == 1


def test_a_system_has_an_average_only_where_its_languages_are_not_known() -> None:
    numbers = published(unverified=True)
    by_language = {(n.series, n.source) for n in numbers if n.language != AVERAGE}
    assert not [n for n in numbers if n.language == AVERAGE and (n.series, n.source) in by_language]


def test_a_system_has_one_name_in_all_files() -> None:
    """A name that another one has all words of is a shorter form of it, but for these, which are two systems."""
    systems = {number.system: {*re.split(r"[ /()-]+", number.system.lower())} for number in published(unverified=True)}
    longer = {(one, other) for one in systems for other in systems if systems[one] < systems[other]}
    adapted = {(name, f"{name} + cultural code-switching") for name in ("xUNITER", "UC2", "M3P")}
    assert longer == adapted | {
        ("mBLIP mT0-XL", "mBLIP mT0-XL (fine-tuned in English)"),
        ("PaliGemma 3B 224 px", "PaliGemma 2 3B 224 px"),
    }
    for system in (
        "SigLIP-i18n B/16-256",
        "OpenCLIP XLM-R-L ViT-H/14",
        "OpenCLIP XLM-R-B ViT-B/32",
        "NLLB-SigLIP-L (v1)",
    ):
        numbers = published(system=system, task="xm3600", direction="text_to_image", metric="R@1")
        assert {number.protocol for number in numbers} == {"all-captions", "one-caption"}, system


def test_numbers_stand_beside_results_of_the_same_thing_only() -> None:
    own = Number(
        system="ours",
        task="xvnli",
        language="fr",
        protocol="official",
        regime="zero-shot",
        metric="accuracy",
        value=1.0,
    )
    assert {number.system: round(number.value, 1) for number in beside(own)} == {
        "mUNITER": 59.4,
        "xUNITER": 63.3,
        "UC2": 69.7,
        "M3P": 56.4,
    }


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        ({"system": "UC2", "task": "wit", "language": "ar", "regime": "zero-shot"}, 6.622),
        ({"system": "UC2", "task": "xflickrco", "language": "de", "regime": "translate-train"}, 29.15),
        ({"system": "xUNITER", "task": "xflickrco", "language": "ja", "shots": "1500"}, 16.65),
        ({"system": "OpenCLIP XLM-R-L ViT-H/14", "task": "xm3600", "language": "en"}, 54.4306),
    ],
)
def test_single_numbers(wanted: dict[str, str], value: float) -> None:
    assert one(direction="text_to_image", metric="R@1", **wanted) == value


def test_the_official_tables_are_all_there(bundle: Path) -> None:
    tables = {"xvnli": "XVNLI", "xgqa": "xGQA", "marvl": "MaRVL"}
    count = 0
    for task, name in tables.items():
        for path in sorted((bundle / "_official_results" / task).glob(f"{name}_*.csv")):
            shots, _, rest = path.stem.removeprefix(f"{name}_").partition(".")
            if rest.startswith("id_tr_zh"):
                continue
            regime = "translate-test" if rest == "mt" else "zero-shot" if shots == "0" else "few-shot"
            for row in csv.DictReader(path.read_text().splitlines()):
                for language in row.keys() - {"model", "avg", "en"}:
                    wanted = {"language": language, "regime": regime, "shots": "" if shots == "0" else shots}
                    system = SYSTEMS.get(row["model"])
                    if system and float(row[language]) >= 0:
                        found = one(system=system, task=task, metric="accuracy", **wanted)
                        assert found == pytest.approx(float(row[language]), abs=5e-5)
                        count += 1
    assert count == 4 * (4 * 2 + 4 * 6 + 7 * 2 + 7 * 6 + 5 * 2 + 3 * 5)


def test_the_golden_predictions_scores_are_the_published_ones(bundle: Path) -> None:
    golden = json.loads((bundle / "derived" / "golden_scores.json").read_text())
    checked = 0
    for model, languages in golden["xgqa"].items():
        for language, score in languages.items():
            wanted = {"task": "xgqa", "language": language, "regime": "zero-shot", "metric": "accuracy"}
            assert one(system=SYSTEMS[model], **wanted) == pytest.approx(score, abs=5e-5)
            checked += 1
    for model, languages in golden["xflickrco_ir"].items():
        for language, recalls in languages.items():
            wanted = {"task": "xflickrco", "language": language, "regime": "zero-shot", "direction": "text_to_image"}
            found = [one(system=SYSTEMS[model], metric=f"R@{k}", **wanted) for k in (1, 5, 10)]
            assert found == recalls
            checked += 1
    assert checked == 48


def test_the_files_are_made_from_the_logs(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "published_numbers", raising=False)
    import published_numbers

    monkeypatch.setattr(published_numbers, "OUTPUT", tmp_path)
    published_numbers.main(bundle)
    for name in ("iglue.csv", "babel_imagenet.csv"):
        assert (tmp_path / name).read_text() == (ROOT / "cclm/evaluation/published" / name).read_text()
