"""Averages, few-shot curves and charts of results, each by the rules of its own protocol."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from cclm.evaluation.plots import charts
from cclm.evaluation.result import Result
from cclm.evaluation.survey import Survey
from cclm.evaluation.tables import Table, latex, markdown, tables
from cclm.evaluation.task import find

HASH = "0123456789abcdef" * 4


def cells(
    task: str, protocol: str, trained: Collection[str] | None = None, notes: tuple[str, ...] = ()
) -> list[Result]:
    """50 % in English and 30 elsewhere, 10 more with any examples; these in the languages `trained`, None for all."""
    found = find(task)
    assert found.shots is not None
    return [
        Result(
            *(task, language, protocol, 100, {"accuracy": (50.0 if language == "en" else 30.0) + 10 * bool(shots)}),
            HASH,
            system="ours",
            regime="few-shot" if shots else "zero-shot",
            shots=shots,
            notes=notes,
        )
        for language in found.languages
        for shots in ("", *found.shots.examples)
        if not shots or language in (found.shots.languages if trained is None else trained)
    ]


def by_slug(results: list[Result], literature: str = "none") -> dict[str, Table]:
    return {table.slug: table for table in tables(Survey(tuple(results), literature))}


def drawn(results: list[Result], literature: str = "none") -> dict[str, tuple[list[str], list[str]]]:
    """Of every chart, what stands below it, unwrapped, and the names along the axis or of the panels."""
    found = {}
    for name, figure in charts(Survey(tuple(results), literature)):
        below = figure.legends[0].get_title().get_text().replace("\n  ", " ").splitlines()
        along = [label.get_text() for axes in figure.axes for label in axes.get_xticklabels()]
        panels = [axes.get_title(loc="left") for axes in figure.axes]
        found[name] = (below, panels if any(panels) else along)
    return found


@pytest.mark.parametrize(("protocol", "zero"), [("avg8", (7 * 30 + 50) / 8), ("testdev", 30.0)])
def test_few_shot_averages_as_its_own_protocol_does(protocol: str, zero: float) -> None:
    found = by_slug(cells("xgqa", protocol))
    (whole, most), (curve,) = (found[slug].rows for slug in ("xgqa_accuracy", "xgqa_accuracy_few_shot"))
    assert float(whole.cells[-1]) == pytest.approx(zero, abs=0.006)
    assert float(most.cells[-1]) == pytest.approx(zero + 10, abs=0.006)
    assert [float(cell) for cell in curve.cells[:-1]] == pytest.approx([zero] + 6 * [zero + 10], abs=0.006)
    assert float(curve.cells[-1]) == pytest.approx(zero + 10 - 10 * 27 / 2 / 1490, abs=0.006)
    said = drawn(cells("xgqa", protocol))["xgqa_accuracy_few-shot"][0]
    names = "en bn de id ko pt ru zh" if protocol == "avg8" else "bn de id ko pt ru zh"
    english = "included" if protocol == "avg8" else "excluded"
    assert said == [f"average: mean of {len(names.split())} languages ({names}), English {english}"]


def test_charts_say_what_each_average_is_of() -> None:
    found = drawn([*cells("xgqa", "avg8"), *cells("xgqa", "official", ("de", "bn"))])
    official, all8 = (f"mean of {n} languages ({names}), English {told}" for n, names, told in (
        (7, "bn de id ko pt ru zh", "excluded"), (8, "en bn de id ko pt ru zh", "included")
    ))  # fmt: skip
    assert found["xgqa_accuracy_zero-shot"][0] == [
        f"average of ours, avg8: {all8}",
        f"average of ours, official: {official}",
    ]
    partial = "2 of 7 languages, not shown"
    assert found["xgqa_accuracy_max-shot"][0] == [
        f"average of ours, avg8: {all8}",
        f"average of ours, official: {partial}",
    ]
    assert found["xgqa_accuracy_few-shot"][0][1] == f"average of ours, official: {official}; elsewhere {partial}"


def test_published_averages_beside_our_partial_ones_are_told_too() -> None:
    below, panels = drawn(cells("xvnli", "official", ("ar", "fr")), "verified")["xvnli_accuracy_few-shot"]
    assert panels == ["average", "ar", "fr"]
    assert below[0].endswith("English excluded; elsewhere 2 of 4 languages, not shown")
    assert "(published)" in below[1] and below[1].endswith("mean of 4 languages (ar es fr ru), English excluded")


def test_no_language_is_shown_without_a_number() -> None:
    shown = drawn(cells("marvl", "official"), "verified")
    assert shown["marvl_accuracy_max-shot"][1] == ["id", "tr", "zh", "average"]
    assert set(shown["marvl_accuracy_zero-shot"][1]) > {"sw", "ta"}
    first = [one for one in cells("marvl", "official") if one.shots == "1" or one.language == "id"]
    assert by_slug(first)["marvl_accuracy"].columns == ("id", "avg")


def test_notes_keep_their_words_apart_and_names_their_signs() -> None:
    results = cells("xvnli", "official", ())
    noted = "3 of its 30 images were in the training"
    given = [
        Result.of(one.to_dict() | {"system": "a|b_c<d>", "notes": [noted] if one.language == "fr" else []})
        for one in results
    ]
    found = list(by_slug(given).values())
    assert f"{noted} in fr" in markdown(found) and f"{noted} in fr" in latex(found)
    assert "| **a\\|b\\_c\\<d\\>** <sup>" in markdown(found)
    assert r"\textbf{a\textbar{}b\_c\textless{}d\textgreater{}}" in latex(found)
