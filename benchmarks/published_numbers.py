"""Which numbers are official? IGLUE's own logs and Babel-ImageNet's recalls -> cclm/evaluation/published/*.csv.

    python benchmarks/published_numbers.py FOLDER      the folder that the benchmarks' bundle unpacks to

Every log value is checked against the official table of it before anything is written. The third file there,
later_models.csv, is kept by hand: its numbers stand in papers and pictures only.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cclm.evaluation.published import COLUMNS
from cclm.storage import whole_file

OUTPUT = Path(__file__).resolve().parents[1] / "cclm" / "evaluation" / "published"
NAMES = {
    "ctrl_muniter": "mUNITER",
    "ctrl_xuniter": "xUNITER",
    "uc2": "UC2",
    "m3p": "M3P",
    "ctrl_lxmert": "LXMERT",
    "ctrl_uniter": "UNITER",
    "ctrl_vilbert": "ViLBERT",
    "ctrl_visualbert": "VisualBERT",
    "ctrl_vl-bert": "VL-BERT",
}
MULTILINGUAL = ("ctrl_muniter", "ctrl_xuniter", "uc2", "m3p")
CONTRASTIVE = {
    "altclip-xlmrl-vitl14": "AltCLIP-m9",
    "mclip-mbert-vitb32": "M-CLIP mBERT ViT-B/32",
    "mclip-xlmrl-vitb16plus": "M-CLIP XLM-R-L ViT-B/16+",
    "mclip-xlmrl-vitb32": "M-CLIP XLM-R-L ViT-B/32",
    "mclip-xlmrl-vitl14": "M-CLIP XLM-R-L ViT-L/14",
    "nllb-base": "NLLB-CLIP-B (v1)",
    "nllb-large": "NLLB-CLIP-L (v1)",
    "nllb-siglip-base": "NLLB-SigLIP-B (v1)",
    "nllb-siglip-large": "NLLB-SigLIP-L (v1)",
    "openclip-xlmrb-vitb32": "OpenCLIP XLM-R-B ViT-B/32",
    "openclip-xlmrl-vith14": "OpenCLIP XLM-R-L ViT-H/14",
    "siglip-vitb16": "SigLIP-i18n B/16-256",
}
RECALLS = {"xflickrco": ("xflickrco", "official"), "xtd": ("xtd10", "official"), "xm3600": ("xm3600", "all-captions")}
LANGUAGES = {"jp": "ja"}  # what XTD10 calls it
WAYS = {"IR": "text_to_image", "TR": "image_to_text", "t2i": "text_to_image", "i2t": "image_to_text"}
TABLES = {"xvnli": "XVNLI", "xgqa": "xGQA", "marvl": "MaRVL", "xflickrco": "xFlickrCO", "wit": "WIT"}
LOGS = "IGLUE logs (e-bug/iglue)"
WITHDRAWN = f"{LOGS}; on 891 captions, one was withdrawn later"
BABEL = "Babel-ImageNet results/retrieval; no fine-tuning"
Row = dict[str, str]


def row(
    system: str, cell: tuple[str, str, str], regime: tuple[str, str], score: tuple[str, str, float], source: str
) -> Row:
    """`cell`: task, language, protocol. `regime`: with shots. `score`: direction, metric, percent."""
    *named, value = score
    fields = (system, *cell, *regime, *named, f"{value:.4f}".rstrip("0").rstrip("."), source, "yes")
    return dict(zip(COLUMNS, fields, strict=True))


def scores(task: str, logged: Any) -> Iterator[tuple[str, str, float]]:
    """(direction, metric, percent) of what a log says of one test."""
    if task in ("xflickrco", "wit"):
        for way, values in logged.items():
            yield from ((WAYS[way], f"R@{k}", value) for k, value in zip((1, 5, 10), values, strict=True))
        return
    accuracy, consistency = (logged, None) if task == "xgqa" else logged
    yield "", "accuracy", accuracy
    if consistency is not None:
        yield "", "consistency", consistency


def logged(bundle: Path) -> Iterator[Row]:
    zero = json.loads((bundle / "official_zero_shot_from_logs.json").read_text())
    few = json.loads((bundle / "official_few_shot_from_logs.json").read_text())["few_shot"]
    for task in TABLES:
        cells = [
            (model, name.removesuffix("_mt"), ("translate-test" if name.endswith("_mt") else "zero-shot", ""), test)
            for model, languages in zero[task].items()
            for name, test in languages.items()
            if model in MULTILINGUAL or name.endswith(("_mt", "en"))  # the others read English only
        ]
        cells += [
            (model, language, ("few-shot", shots), test)
            for model, languages in few.get(task, {}).items()
            for language, sets in languages.items()
            for shots, test in sets.items()
        ]
        for model, language, regime, test in cells:
            source = WITHDRAWN if (task, language) == ("wit", "ar") else LOGS
            for score in scores(task, test):
                if (task, language) == ("marvl", "en"):  # IGLUE's English of MaRVL is NLVR2
                    yield row(NAMES[model], ("nlvr2", "en", "official"), regime, score, source)
                yield row(NAMES[model], (task, language, "official"), regime, score, source)


def tables(bundle: Path) -> Iterator[Row]:
    """The official tables: accuracy, or recall at 1. A test that was not run stands there as -1."""
    for task, name in TABLES.items():
        for path in sorted((bundle / "_official_results" / task).glob(f"{name}*.csv")):
            kind, _, rest = path.stem.removeprefix(name).lstrip("_").rpartition("_")
            shots, _, regime = rest.partition(".")
            way = WAYS.get(kind.split("_")[-1].upper(), "")
            regime = {"": "few-shot" if shots != "0" else "zero-shot", "mt": "translate-test"}.get(regime, regime)
            with path.open(newline="") as handle:
                for line in csv.DictReader(handle):
                    for language in line.keys() - {"model", "avg"}:
                        if float(line[language]) >= 0 and not path.stem.count("id_tr_zh"):
                            own = "zero-shot" if language == "en" and regime == "translate-test" else regime
                            score = (way, "R@1" if way else "accuracy", float(line[language]))
                            cell = (task, language, "official")
                            yield row(NAMES[line["model"]], cell, (own, shots.removeprefix("0")), score, LOGS)


def recalls(bundle: Path) -> Iterator[Row]:
    for folder, (task, protocol) in RECALLS.items():
        for path in sorted((bundle / "babel_imagenet" / "results_retrieval" / folder).glob("*.json")):
            for result in sorted(json.loads(path.read_text())["results"], key=lambda result: result["lang"]):
                for way in ("t2i", "i2t"):
                    for k in (1, 5, 10):
                        score = (WAYS[way], f"R@{k}", 100 * result[f"{way}_r@{k}"])
                        yield row(
                            CONTRASTIVE[path.stem],
                            (task, LANGUAGES.get(result["lang"], result["lang"]), protocol),
                            ("zero-shot", ""),
                            score,
                            BABEL,
                        )


def write(name: str, rows: Iterable[Row]) -> None:
    with whole_file(OUTPUT / name) as partial, partial.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(bundle: Path) -> None:
    key = COLUMNS[: COLUMNS.index("value")]
    known = {tuple(row[name] for name in key): row for row in logged(bundle)}
    for line in tables(bundle):
        own = known.setdefault(tuple(line[name] for name in key), line)  # translate-train stands in the tables only
        assert own["value"] == line["value"], f"log {own}, table {line}"
    write("iglue.csv", (known[name] for name in sorted(known)))
    write("babel_imagenet.csv", recalls(bundle))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
