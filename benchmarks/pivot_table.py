"""README's tables of the pivots, lines of Markdown from benchmarks/results/pivot_*.json; table.py sets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SCENES = ("en", "de", "tr", "zh")
PHOTOS = ("en", "de", "fr", "cs", "pt")
PLACE = "benchmarks/results"
EMOJI = ("en", "de", "fr", "tr", "ar", "zh")
PHOTO_AIM = {
    "zero-shot": "others ≥ 50 % of en, fidelity ≥ 90, en above nearest",
    "quasi-zero-shot": "none: beside it",
    "control": "others about 0",
}
READERS = {
    "aligned": "its languages aligned (stage 0)",
    "answers_alone": "aligned; pictures not aligned with captions",
    "unaligned": "not aligned",
    "control": "English only: control",
}


def pivots(read: Mapping[str, Mapping[str, Any]], where: Mapping[str, str]) -> list[str]:
    """`read`: results by name, empty where there are none; `where`: machine, date and commit of each."""
    lines = [
        "**Pivots** (MPM). Pictures are met with English captions alone; means of three seeds (± their deviation)."
    ]
    lines += scenes(read["pivot_scenes"], read["pivot_scenes_ablation"], where["pivot_scenes"])
    lines += photos(read["pivot_photos"], where["pivot_photos"])
    lines += emoji(read["pivot_emoji"], where["pivot_emoji"])
    lines += languages(read["pivot_languages"], where["pivot_languages"])
    return [*lines, *cost(read["pivot_cost"], where["pivot_cost"])]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["", *("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))]


def mean(found: Mapping[str, Any], digits: int = 1, factor: float = 100.0) -> str:
    """Of a metric over seeds: its mean and their deviation."""
    if not found:
        return ""
    spread = "" if found["deviation"] is None else f" ± {factor * found['deviation']:.{digits}f}"
    return f"{factor * found['mean']:.{digits}f}{spread}"


def scenes(result: Mapping[str, Any], ablation: Mapping[str, Any], where: str) -> list[str]:
    """Both directions, a row for each language model; and what is not aligned with captions."""
    lines = [
        "",
        "Drawn scenes whose combination of attributes was never seen, %. To text: all four attributes right in the",
    ]
    lines += [
        "language asked for. To picture: attributes that a trained reader finds as asked (mismatched: as asked of the",
        "other pictures). Kept: the worst language's share of English, above mismatched. The language models have read",
        "sentences of all scenes, in each language that they know; painters read the third layer of each. Settings",
    ]
    lines += [f"were chosen on these scenes with the first seed{_by_seed(result)}. {where}".rstrip()]
    head = ["direction", "language model", *SCENES, "mismatched", "kept, worst of others", "aim"]
    rows = []
    for part, direction, metric, aim in (
        ("chat", "to text", "exact", "75"),
        ("paint", "to picture", "attributes", "85"),
    ):
        for variant, title in READERS.items():
            if (part, variant) == ("paint", "answers_alone"):
                continue
            source = ablation if variant == "answers_alone" else result
            own = source.get(part, {}).get(variant, {})
            if own and source["seeds"] != result.get("seeds"):
                title += f" (seeds {', '.join(map(str, source['seeds']))})"
            cells = [mean(own.get(language, {}).get(metric, {})) for language in SCENES]
            floor = mean(own.get("en", {}).get("mismatched", {}))
            rows.append(
                [direction, title, *cells, floor, mean(own.get("least_kept", {})), aim if variant == "aligned" else ""]
            )
    chart = f"![Scenes told and painted, by language and language model]({PLACE}/pivot_scenes.png)"
    sheet = f"[Painted by each, from the same noise]({PLACE}/pivot_scenes_sheet.png)"
    return [*lines, *table(head, rows), *(["", chart, "", sheet] if result else [])]


def _by_seed(result: Mapping[str, Any]) -> str:
    """What the worst language kept with each seed, in both directions."""
    told = [
        f"{direction} " + ", ".join(f"{100 * value:.0f}" for value in result[part]["aligned"]["least_kept"]["seeds"])
        for part, direction in (("chat", "to text"), ("paint", "to picture"))
        if part in result
    ]
    return f" (kept by seed: {'; '.join(told)})" if told else ""


def photos(result: Mapping[str, Any], where: str) -> list[str]:
    """CIDEr and fidelity of captions of photographs."""
    lines = [
        "",
        "Captions of 1,081 photographs against the one sentence that all languages share: CIDEr-D (language fidelity,",
        "%); nearest is that sentence of the training photograph that looks most alike. All seeds share one language",
        "model; the control's has only learned to repeat English, in fewer steps. Four beams were chosen among one to",
    ]
    lines += [f"five on the first 250 of these photographs, with the first seed.{_trained_on(result)} {where}".rstrip()]
    head = ["regime", *PHOTOS, "worst of others / en, %", "aim"]
    rows = []
    for variant, aim in PHOTO_AIM.items():
        own = result.get("variants", {}).get(variant, {})
        each = [own.get(language, {}).get("parallel", {}) for language in PHOTOS]
        cells = [f"{mean(one['CIDEr'], factor=1)} ({one['fidelity']['mean']:.1f})" if one else "" for one in each]
        rows.append([variant, *cells, mean(own.get("least", {}).get("of_en", {}), factor=1), aim])
    level = [result["nearest"][language]["parallel"]["CIDEr"] for language in PHOTOS] if result else []
    rows.append(["nearest", *(f"{one:.1f}" for one in level), *[""] * (len(head) - 1 - len(level))])
    return [*lines, *table(head, rows)]


def _trained_on(result: Mapping[str, Any]) -> str:
    """Where another machine trained than the one that measured."""
    found = {name for own in result.get("trainings", {}).values() for name in own["device"] if name}
    return f" Trained on: {', '.join(sorted(found))}; measured on:" if found else ""


def emoji(result: Mapping[str, Any], where: str) -> list[str]:
    """R-precision@10 of 100 by language."""
    lines = [
        "",
        "Emoji art from English names, asked for in five other languages: R-precision@10 of 100, % (chance 10), by the",
        "retrieval model of `emoji.yaml`. Painters have met all names, of animals, food and activities, in one style;",
        "real pictures are of another. Kept: the worst language's share of English above mismatched names. All seeds",
    ]
    lines += [
        "share one language model, which has read these names in each language; the control's has only learned to",
        "repeat the English ones, in fewer steps.",
    ]
    if sampling := result.get("sampling"):
        told = f"Steps of sampling: {sampling['steps']}, chosen between 1 and 4 on these prompts with the first seed."
        lines += [told, "So near chance, a ratio of half says little by itself: read it beside what is kept."]
    lines += [where] if where else []
    head = ["language model", *EMOJI, "worst of others / en", "kept", "real pictures", "aim"]
    rows = []
    painters = {
        "aligned": "20 languages, aligned",
        "unsteady": "the same; bridges not made steady",
        "control": READERS["control"],
    }
    for variant, title in painters.items():
        own = result.get(variant, {})
        cells = [mean(own.get("languages", {}).get(code, {}).get("R-precision@10", {}), factor=1) for code in EMOJI]
        real = mean(own.get("real", {}).get("R-precision@10", {}), factor=1)
        told = [mean(own.get(name, {})) for name in ("ratio", "kept")]
        aim = {"aligned": "worst / en ≥ 50 %", "control": "chance"}.get(variant, "")
        rows.append([title, *cells, *told, real, aim])
    sheets = [f"[{title}](benchmarks/results/pivot_emoji_{variant}.png)" for variant, title in painters.items()]
    shown = ["", f"Contact sheets of the first seed: {'; '.join(sheets)}."] if sampling else []
    return [*lines, *table(head, rows), *shown]


def languages(result: Mapping[str, Any], where: str) -> list[str]:
    """What the language models know: translation, and the probe."""
    lines = [
        "",
        "The language models themselves: chrF from / into English, and the probe's R@1, %, in its best layer. Of the",
        "photographs' sentences none was read before, but for one in Czech; of the scenes' all were, by those that",
        f"know the language. {where}".rstrip(),
    ]
    rows = []
    for name, own in result.get("models", {}).items():
        others = sorted({code for pair in own["directions"] for code in pair.split("-")} - {"en"})
        told = ", ".join(
            f"{code} {own['directions'][f'en-{code}']['chrF']:.0f} / {own['directions'][f'{code}-en']['chrF']:.0f}"
            for code in others
        )
        rows.append([f"`{name}.yaml`", told, f"{max(own['alignment']['R@1']):.1f} (layer {own['alignment']['layer']})"])
    return [*lines, *table(["config", "chrF", "R@1"], rows)] if rows else []


def cost(result: Mapping[str, Any], where: str) -> list[str]:
    """S1 beside plain fine-tuning."""
    sizes = result.get("sizes", {})
    if not sizes:
        return []
    seconds = " and ".join(f"{own['seconds_to_cache_a_picture']:.2f}" for own in sizes.values())
    lines = [
        "",
        "What stage 1 costs (`chat_s1`, answers alone): samples a second, and memory of the whole process at its peak,",
        "beside two loops around transformers that see each picture in every step, one with every weight trained",
        "(plain), one with the same parts frozen as ours. Left out, on all sides: reading data, and aligning pictures",
        f"with their captions. Our states of pictures are computed once and then read; to compute them, {seconds} s",
        f"a picture, is left out too. {where}",
    ]
    head = ["model", "faster than plain", "than a frozen loop", "GiB: ours", "plain", "frozen loop", "aim"]
    rows = [
        [
            f"`{name}`, {sum(own['millions_of_parameters'].values()):.0f} M parameters",
            f"{own['faster_than_plain']:.1f} x",
            f"{own['faster_than_frozen']:.1f} x",
            *(f"{own['sides'][side]['peak_mib'] / 1024:.1f}" for side in ("ours", "plain", "frozen")),
            "1.5 x plain",
        ]
        for name, own in sizes.items()
    ]
    return [*lines, *table(head, rows)]
