"""Does zero-shot transfer come from the parallel stream? R@10 of languages without pictures, with and without it.

python benchmarks/transfer.py --run emoji=runs/emoji/report.json \
    --without emoji=runs/emoji_without_parallel/report.json --steps emoji=900 --seconds emoji=580
At once; adds these runs to benchmarks/results/transfer.json, in place of former ones of the same name.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from machine import RESULTS, facts, write

from cclm.evaluation.report import Report

WAY = "text_to_image"
QUESTION = "text -> image R@10 in English and in languages that met no picture, with and without parallel text"


def recalls(report: Report, way: str) -> dict[str, Any]:
    """English, the others' mean, their ratio, and every language. Errors: ValueError for a report without English."""
    if "en" not in report.languages or len(report.languages) < 2:
        raise ValueError(
            f"report of {report.provenance.model}: needs en and another language, has {[*report.languages]}"
        )
    each = {language: round(ways[way]["R@10"], 2) for language, ways in report.languages.items()}
    others = statistics.mean(value for language, value in each.items() if language != "en")
    ratio = round(others / each["en"], 3) if each["en"] else None
    return {"en": each["en"], "others": round(others, 2), "ratio": ratio, "languages": each}


def outcome(path: str) -> dict[str, Any]:
    """What one report says."""
    report = Report.read(path)
    english = report.languages["en"][WAY]
    found = {
        "gallery": english["gallery"],
        "chance": round(statistics.mean(ways[WAY]["chance"]["R@10"] for ways in report.languages.values()), 2),
        "R@10": recalls(report, WAY),
    }
    if f"{WAY}_rerank" in report.directions():
        found["R@10_reranked"] = recalls(report, f"{WAY}_rerank")
    return found


def named(value: str) -> tuple[str, str]:
    name, separator, rest = value.partition("=")
    if not (name and separator and rest):
        raise argparse.ArgumentTypeError(f"{value!r} is not NAME=VALUE")
    return name, rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = {
        "--run": "report.json of a run",
        "--without": "report.json of the same run without the parallel stream",
        "--steps": "training steps of either",
        "--seconds": "training time of the run",
        "--trained-on": "the machine that trained, where it is not this one",
    }
    for option, meaning in options.items():
        parser.add_argument(option, type=named, action="append", default=[], metavar="NAME=VALUE", help=meaning)
    given = parser.parse_args()
    without, steps, times = dict(given.without), dict(given.steps), dict(given.seconds)
    machines, runs = dict(given.trained_on), dict(given.run)
    unknown = sorted({*without, *steps, *times, *machines} - {*runs})
    if unknown or not runs:
        parser.error(f"no --run is named {', '.join(unknown) or 'at all'}")
    file = RESULTS / "transfer.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"question": QUESTION, "runs": {}}
    noted = facts()
    del noted["machine"]["load_1min"]  # of now, not of the training
    for name, path in runs.items():
        entry = {"with_parallel": outcome(path)}
        if name in without:
            entry["without_parallel"] = outcome(without[name])
        entry |= {"steps": int(steps[name])} if name in steps else {}
        entry |= {"train_seconds": round(float(times[name]))} if name in times else {}
        entry |= {"trained_on": machines[name]} if name in machines else {}
        result["runs"][name] = entry | noted
    write("transfer", result)


if __name__ == "__main__":
    main()
