"""Makes README's tables of figures from benchmarks/results/*.json; what was not measured stays empty.

python benchmarks/table.py            # writes them between the two markers of README.md
python benchmarks/table.py --check    # only says, by its exit status, whether they are up to date
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pivot_table import pivots

from cclm.storage import whole_file

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = ROOT / "benchmarks" / "results", ROOT / "README.md"
BEGIN, END = "<!-- figures: begin (made by benchmarks/table.py) -->", "<!-- figures: end -->"
RUNS = {  # name -> what it is, and the aim
    "emoji": ("`emoji.yaml`", "en 50; ratio 0.3"),
    "emoji_full": ("`emoji_full.yaml`", "en 60; ratio 0.7"),
    "photos": ("`photos.yaml`", "en 45, reranked 50; ratio 0.6"),
    "photos_general": ("`photos_general.yaml`", ""),
    "photos_search": ("`photos_search.yaml` (pictures captioned in en, de, zh, pt, ar)", ""),
}
TRANSFER = ("run", "parallel text", "pictures", "chance", "en", "others", "others / en", "reranked: en", "others",
            "aim", "training")  # fmt: skip
SPEED = ("what", "measured", "aim", "where and when")
RATIO = ("width", "precision", "original / ours", "joint", "in processor time", "without AdamW", "pairs/s",
         "GFLOP a step", "GFLOP/s", "peak GiB", "aim", "where and when")  # fmt: skip
MULTI30K = ("protocol", "language", "texts", "text → image: R@1", "R@5", "R@10", "image → text: R@1", "R@5", "R@10",
            "mean recall", "reranked")  # fmt: skip
COMPARED = [  # of which file, width, precision
    *(("reference_ratio", size, precision) for size in ("tiny", "quarter", "full") for precision in ("fp32", "bf16")),
    *(("reference_ratio_cuda", "full", precision) for precision in ("bf16", "fp16")),
]


def read(name: str) -> dict[str, Any]:
    """Errors: SystemExit where a file of results cannot be read."""
    path = RESULTS / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise SystemExit(f"{path}: no JSON ({error}); run its benchmark again, or restore the file") from None


def row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def shown(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def where(result: dict[str, Any]) -> str:
    """Machine, date, commit; and that the machine was busy, where it was."""
    if not result:
        return ""
    machine = result["machine"]
    place = result.get("device") or result.get("trained_on") or f"{machine['processor']}, {machine['cores']} cores"
    busy = machine.get("load_1min", 0) > machine["cores"] / 2
    load = f" (busy: load {machine['load_1min']})" if busy else ""
    return f"{place}{load}, {result['date']}, {result['commit']}"


def training(entry: dict[str, Any]) -> str:
    steps = f"{entry['steps']:,} steps" if "steps" in entry else ""
    minutes = f"{entry['train_seconds'] / 60:.0f} min" if "train_seconds" in entry else ""
    return ", ".join(part for part in (steps, minutes, where(entry)) if part)


def transfer_rows(name: str, entry: dict[str, Any]) -> list[str]:
    """The run with its parallel text, and the same without it."""
    rows = []
    title, aim = RUNS.get(name, (name, ""))
    for kind, told in (("with_parallel", "yes"), ("without_parallel", "no")):
        found = entry.get(kind, {})
        plain, reranked = found.get("R@10", {}), found.get("R@10_reranked", {})
        cells = (
            title if told == "yes" else "",
            told,
            shown(found.get("gallery"), 0),
            shown(found.get("chance")),
            shown(plain.get("en")),
            shown(plain.get("others")),
            shown(plain.get("ratio"), 3),
            shown(reranked.get("en")),
            shown(reranked.get("others")),
            aim if told == "yes" else "",
            training(entry) if told == "yes" else "",
        )
        rows.append(row(cells))
    return rows


def transfer() -> list[str]:
    runs = read("transfer").get("runs", {})
    lines = ["Text → image R@10 in %; `others` is the mean over the languages that met no picture.", ""]
    lines += [row(TRANSFER), row(("---",) * len(TRANSFER))]
    for name in [*RUNS, *(name for name in runs if name not in RUNS)]:
        lines += transfer_rows(name, runs.get(name, {}))
    for name, entry in runs.items():
        each = entry["with_parallel"]["R@10"]["languages"]
        title, _ = RUNS.get(name, (name, ""))
        lines += ["", f"{title}: " + ", ".join(f"{code} {value:.1f}" for code, value in each.items())]
    return lines


def loader_cells(loader: dict[str, Any]) -> str:
    kinds = {"jpeg_640": "jpeg 640 px", "webp_128": "webp 128 px"}
    cells = [
        f"{title} {loader[kind]['efficiency']:.2f}, augmented {loader[kind + '_augmented']['efficiency']:.2f}"
        for kind, title in kinds.items()
        if loader
    ]
    return "; ".join(cells)


def gpu_cells(gpu: dict[str, Any]) -> str:
    modes = gpu.get("modes", {}).items()
    return "; ".join(
        f"{name.replace('_', ', ')} {mode['samples_per_s']:,.0f}/s"
        + (f", MFU {mode['mfu']:.1%}" if mode["mfu"] else "")
        for name, mode in modes
    )


def speed() -> list[str]:
    step, gpu, loader, memory, search = (read(n) for n in ("step", "step_cuda", "loader", "memory", "search"))
    rates = f"{step['sgemm_share']:.2f} ({step['step_gflops']} of {step['sgemm_gflops']} GFLOP/s)" if step else ""
    decode = f"{loader['jpeg_640_scaled_decode']['speedup']:.1f} x" if loader else ""
    growth = f"{memory['growth_over_three_epochs']:.1%}" if memory else ""
    queries = f"{search['queries_per_s']:,.0f} queries/s, {search['sgemm_share']:.2f} of the product" if search else ""
    rows = [
        ("training step of photos.yaml / bare matrix products", rates, "0.6", where(step)),
        ("the same step on a GPU, pairs", gpu_cells(gpu), "", where(gpu)),
        ("loader / decoding and resizing alone, one core", loader_cells(loader), "0.95", where(loader)),
        ("scaled JPEG decode / plain Pillow", decode, "1.5 x", where(loader)),
        ("growth of memory over three epochs", growth, "below 5 %", where(memory)),
        ("exact search, 99,999 pictures, 1,000 queries at once", queries, "1.0 of the product", where(search)),
    ]
    return [row(SPEED), row(("---",) * len(SPEED)), *map(row, [*rows, *index_rows(), *benchmark_rows()])]


def ratio_row(title: str, precision: str, run: dict[str, Any]) -> str:
    """One comparison of training steps; with the range of its rounds."""

    def ratio(name: str) -> str:
        each = run.get(f"{name}_each", [])
        return f"{run[name]:.2f} ({min(each):.2f}–{max(each):.2f})" if each else ""

    def both(name: str, digits: int) -> str:
        return ", ".join(shown(run[side][name], digits) for side in ("ours", "original")) if run else ""

    ratios = map(ratio, ("ratio", "ratio_joint", "ratio_processor_time", "ratio_without_adamw"))
    figures = (both("samples_per_s", 1), both("gflop_per_step", 0), both("gflops", 0), both("peak_gib", 1))
    return row((title, precision, *ratios, *figures, "2.0", where(run)))


def ratio_note(size: str, run: dict[str, Any]) -> str:
    """What was compared, and what of the recipe was left out."""
    network, pairs = run["network"], run["pairs_per_stream"]
    left_out = f" Left out: {network['left_out']}." if network["left_out"] else ""
    texts = "; ".join(
        f"{stream} {found['mean']} tokens on average, {found['padded']} with our padding, {found['original_padded']} "
        "with the original's"
        for stream, found in run["tokens"].items()
    )
    return (
        f"{size}: width {network['width']}, {network['layers']} layers, vocabulary {network['vocabulary']:,}, "
        f"{network['parameters_million']} M parameters; {pairs} + {pairs} pairs, {run['threads']} thread(s)."
        f"{left_out} Texts: {texts}."
    )


def reference() -> list[str]:
    """Our pre-training step beside the original's."""
    lines = [
        "The pre-training step of `cclm_3m.yaml` beside the original's, written anew in `benchmarks/original_step.py`:",
        "a batch of sentences and one of pictures, two updates each; `joint` is against one of ours on both. Of two",
        "figures the first is ours; in brackets are the least and the most of the rounds. Where the machine was busy,",
        "processor time is the one to believe; `without AdamW` is in it too.",
        "",
        row(RATIO),
        row(("---",) * len(RATIO)),
    ]
    notes = []
    for name, size, precision in COMPARED:
        run = read(name).get("runs", {}).get(f"{size}_{precision}", {})
        lines.append(ratio_row(size + (", GPU" if name.endswith("cuda") else ""), precision, run))
        notes += ["", ratio_note(size, run)] if run and precision == "fp32" else []
    return lines + notes


def multi30k() -> list[str]:
    """Multi30K's dev pictures, as far as they are at hand."""
    found = read("multi30k")
    if not found:
        return []
    cells = {(cell["protocol"], cell["language"]): cell for cell in found["similarity"]}
    reranked = {(cell["protocol"], cell["language"]): cell for cell in found["reranked"]}
    gallery = next(iter(cells.values()))["text_to_image"]["gallery"]
    lines = [
        f"Multi30K's dev split, those {gallery} of its 1,014 pictures that `../shared/photos` holds, % (`photos.yaml`;",
        "made by `benchmarks/multi30k.py`). `dev` has five captions of a picture in en and de, written for it;",
        "`dev-task1` has one in each language, translations of each other. `reranked`: mean recall with the 16 best",
        f"reordered. {where(found)}.",
        "",
        row(MULTI30K),
        row(("---",) * len(MULTI30K)),
    ]
    order = sorted(cells, key=lambda key: (key[0], ["en", "de", "fr", "cs"].index(key[1])))
    for key in order:
        cell = cells[key]
        recalls = [shown(cell[way][f"R@{k}"]) for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
        means = (shown(cell["mean_recall"]), shown(reranked[key]["mean_recall"]))
        lines.append(row((f"`{key[0]}`", key[1], shown(cell["items"], 0), *recalls, *means)))
    return [*lines, "", "![Text to image R@1 per language, with 95 % intervals](benchmarks/results/multi30k.png)"]


def index_rows() -> list[tuple[str, ...]]:
    """Embedding, indexing and serving pictures."""
    extraction, many, service, killed = map(read, ("extraction", "approximate_search", "service", "killed_writers"))
    share = f"{extraction['ratio']:.2f} ({extraction['pictures_per_s']:.0f} pictures/s)" if extraction else ""
    built = [
        (
            f"1 M x 256 clustered vectors, `{each['factory']}`",
            f"recall@10 {each['recall_at_10']:.3f}, {each['times_exact']:.1f} x exact search, "
            f"{each['bytes_per_vector']:.0f} bytes a vector; built in {each['build_s']:.0f} s, "
            f"peak {each['peak_rss'] / 1e6:.0f} MB of "
            f"{each['max_memory'] / 1e6:.0f}",
            "0.95, 20 x, 350 bytes, within",
            where(many),
        )
        for each in many.get("settings", {}).values()
    ]
    served = kept = ""
    if service:
        served = (
            f"{service['service']['per_s']:.0f} queries/s, {service['share_of_in_process']:.2f} of searching in batches"
            f" in process; p99 {service['p99_over_p50']:.1f} x p50, {service['errors']} errors"
        )
    if killed:
        kept = (
            f"opened after each, {killed['lost']} of {killed['acknowledged']:,} changes lost; a reader beside it: "
            f"{killed['searches']:,} searches, {killed['reader_errors']} errors"
        )
    return [
        ("embedding pictures / decode and model alone", share, "0.9", where(extraction)),
        *built,
        ("the service, 64 clients for 60 s", served, "0.7; p99 below 5 x p50; 0 errors", where(service)),
        ("200 SIGKILLs of a writer", kept, "0 lost", where(killed)),
    ]


def benchmark_rows() -> list[tuple[str, ...]]:
    """Speed and memory of what scores benchmarks."""
    ranks, stage, whole = read("retrieval_ranks"), read("two_stage"), read("iglue_end_to_end")
    small = large = again = ""
    if ranks:
        scored, many = ranks["xflickrco"]["scored"], ranks["many"]["ranks"]
        small = f"{scored['median_s']:.1f} s, {scored['growth_mb']} MB beyond torch"
        large = f"{many['median_s']:.0f} s, {many['growth_mb']} MB beyond torch"
    if whole:
        again = f"{whole['total_seconds']:.0f} s ({whole['models_trained']} models, {whole['cells']} tests)"
    loops = [
        f"{size} {stage[size]['loop_of_80_tokens']['times_faster']:.1f} x"
        f" ({stage[size]['loop_of_40_tokens']['times_faster']:.1f} x where the loop pads to 40 tokens, and"
        f" {stage[size]['loop_of_40_tokens']['times_faster_sharing_none']:.1f} x were no pair wanted both ways)"
        for size in ("tiny", "quarter")
        if size in stage
    ]
    return [
        ("scores of xFlickr&CO, 8 languages, embeddings given", small, "2 s, 300 MB", where(ranks)),
        ("ranks of 100,000 in 100,000, both directions", large, "1,000 MB", where(ranks)),
        ("reranking 128 each way / the original's loop", "; ".join(loops), "5 x", where(stage)),
        ("five IGLUE tasks at tiny width: zero-shot, few-shot in part, translate-test", again, "600 s", where(whole)),
    ]


def figures() -> str:
    names = ("scenes", "scenes_ablation", "photos", "emoji", "languages", "cost")
    results = {f"pivot_{name}": read(f"pivot_{name}") for name in names}
    pivoted = pivots(results, {name: where(result) for name, result in results.items()})
    sections = [transfer(), multi30k(), pivoted, speed(), reference()]
    return "\n".join([BEGIN, "", *(line for section in sections for line in [*section, ""]), END])


def renewed(readme: str) -> str:
    """README with the figures as they are now. Errors: ValueError without the two markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{README} lacks the markers {BEGIN} and {END}")
    return before + figures() + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where they are out of date")
    check = parser.parse_args().check
    old = README.read_text(encoding="utf-8")
    new = renewed(old)
    if check and old != new:
        raise SystemExit(f"{README.name}'s figures are not those of benchmarks/results: run python benchmarks/table.py")
    if not check:
        with whole_file(README) as partial:
            partial.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
