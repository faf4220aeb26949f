"""Every official aggregate is rebuilt from the numbers per language, to the digit; none is made of a part unasked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cclm.evaluation.aggregate import Aggregate, area, average, averages, few_shot_score
from cclm.evaluation.number import Number, numbers
from cclm.evaluation.published import published
from cclm.evaluation.result import Result
from cclm.evaluation.task import find

# reference/iglue.md 3.1, in the order of its columns
COLUMNS = (
    ("xvnli", "", "accuracy"),
    ("xgqa", "", "accuracy"),
    ("marvl", "", "accuracy"),
    ("xflickrco", "text_to_image", "R@1"),
    ("xflickrco", "image_to_text", "R@1"),
    ("wit", "text_to_image", "R@1"),
    ("wit", "image_to_text", "R@1"),
)
ZERO_SHOT = {
    "mUNITER": (53.69, 9.97, 53.72, 8.06, 8.86, 9.16, 10.48),
    "xUNITER": (58.48, 21.72, 54.59, 14.04, 13.51, 8.72, 9.81),
    "UC2": (62.05, 29.35, 57.28, 20.31, 17.89, 7.83, 9.09),
    "M3P": (58.25, 28.17, 56.00, 12.91, 11.90, 8.12, 9.98),
}
TRANSLATE_TEST = {
    "mUNITER": (73.09, 49.05, 63.82, 40.95, 36.78, 16.25, 16.64),
    "xUNITER": (72.83, 49.15, 64.04, 36.26, 30.29, 13.01, 14.20),
    "UC2": (73.67, 50.19, 63.09, 36.03, 30.37, 12.70, 14.11),
    "M3P": (73.37, 48.83, 62.52, 27.74, 21.29, 11.53, 13.63),
    "LXMERT": (72.57, 48.08, 62.51, 34.02, 26.66, 14.28, 14.86),
    "UNITER": (73.65, 50.62, 61.92, 41.04, 37.49, 15.43, 16.01),
    "ViLBERT": (73.45, 50.33, 62.39, 36.97, 33.21, 15.40, 16.93),
    "VisualBERT": (74.12, 48.72, 62.35, 41.64, 36.44, 15.36, 15.75),
    "VL-BERT": (73.86, 49.78, 64.16, 38.18, 31.84, 15.11, 16.09),
}
ENGLISH = {
    "mUNITER": (76.38, 54.68, 71.91, 44.50, 40.90, 19.90, 22.34),
    "xUNITER": (75.77, 54.83, 71.55, 38.45, 32.05, 16.70, 18.54),
    "UC2": (76.38, 55.19, 70.56, 37.40, 34.55, 17.90, 19.71),
    "M3P": (76.89, 53.75, 68.22, 31.35, 24.60, 15.50, 15.33),
}
FEW_SHOT = {  # area and max-shot
    "mUNITER": ((54.10, 53.95), (33.67, 37.21), (54.68, 53.41), (8.36, 8.54), (8.89, 9.32)),
    "xUNITER": ((59.78, 60.55), (38.10, 40.68), (56.82, 57.46), (14.05, 14.30), (13.51, 13.54)),
    "UC2": ((63.43, 63.68), (40.43, 42.95), (57.11, 58.32), (19.24, 19.79), (17.31, 17.59)),
    "M3P": ((59.07, 59.36), (38.89, 41.04), (49.96, 49.79), (12.90, 13.21), (12.07, 12.26)),
}


def official(system: str, column: tuple[str, str, str], **wanted: str) -> list[Number]:
    task, direction, metric = column
    return published(system=system, task=task, direction=direction, metric=metric, protocol="official", **wanted)


@pytest.mark.parametrize(
    ("regime", "table"), [("zero-shot", ZERO_SHOT), ("translate-test", TRANSLATE_TEST)], ids=["zero-shot", "translate"]
)
def test_averages_are_the_official_ones(regime: str, table: dict[str, tuple[float, ...]]) -> None:
    for system, row in table.items():
        for column, wanted in zip(COLUMNS, row, strict=True):
            (found,) = averages(official(system, column, regime=regime), find(column[0]))
            assert f"{found.value:.2f}" == f"{wanted:.2f}", (system, column)
            assert "en" not in found.languages
            assert "English excluded" in found.words


def test_english_is_the_official_upper_line() -> None:
    for system, row in ENGLISH.items():
        for column, wanted in zip(COLUMNS, row, strict=True):
            (found,) = official(system, column, regime="zero-shot", language="en")
            assert abs(found.value - wanted) <= 0.005 + 1e-9, (system, column)


def test_few_shot_scores_and_max_shot_are_the_official_ones() -> None:
    for system, row in FEW_SHOT.items():
        for column, (wanted_area, wanted_most) in zip(COLUMNS, row, strict=False):
            task = find(column[0])
            few = official(system, column, regime="few-shot")
            whole = few_shot_score(few + official(system, column, regime="zero-shot"), task)
            assert f"{whole.value:.2f}" == f"{wanted_area:.2f}", (system, column)
            most = [number for number in few if number.shots == list(task.shots.examples)[-1]]
            (found,) = averages(most, task, task.averaged(task.protocol(), few_shot=True))
            assert f"{found.value:.2f}" == f"{wanted_most:.2f}", (system, column)


def test_marvl_few_shot_is_of_the_same_three_languages_at_every_point() -> None:
    column = COLUMNS[2]
    given = official("UC2", column, regime=("few-shot", "zero-shot"))
    score = few_shot_score(given, find("marvl"))
    assert score.languages == ("id", "tr", "zh")
    with_others = [number for number in given if number.language in ("id", "tr", "zh")]
    assert few_shot_score(with_others, find("marvl")).value == score.value
    assert "id tr zh" in score.words


def test_one_language_has_a_few_shot_score_of_its_own_and_their_mean_is_the_whole() -> None:
    given = official("UC2", COLUMNS[0], regime=("few-shot", "zero-shot"))
    task = find("xvnli")
    parts = [few_shot_score(given, task, language).value for language in ("ar", "es", "fr", "ru")]
    assert sum(parts) / 4 == pytest.approx(few_shot_score(given, task).value)


def test_a_few_shot_score_names_the_cells_that_are_missing() -> None:
    given = official("UC2", COLUMNS[0], regime=("few-shot", "zero-shot"))
    torn = [n for n in given if (n.shots, n.language) not in (("20", "fr"), ("", "ru"))]
    with pytest.raises(ValueError, match=r"UC2 on xvnli without zero-shot \(ru\), 20 \(fr\)"):
        few_shot_score(torn, find("xvnli"))


def test_max_shot_results_serve_as_the_last_point() -> None:
    given = official("UC2", COLUMNS[0], regime=("few-shot", "zero-shot"))
    named = [replace(n, regime="max-shot") if n.shots == "48" else n for n in given]
    assert few_shot_score(named, find("xvnli")).value == few_shot_score(given, find("xvnli")).value
    both = given + [replace(n, regime="max-shot", value=0.0) for n in given if n.shots == "48"]
    assert few_shot_score(both, find("xvnli")).value == few_shot_score(given, find("xvnli")).value


def test_area_is_the_mean_height_of_the_curve() -> None:
    assert area({0: 10.0, 10: 10.0}) == 10.0
    assert area({0: 0.0, 1: 10.0, 10: 10.0}) == pytest.approx(9.5)
    with pytest.raises(ValueError, match="give one at 0"):
        area({1: 10.0, 10: 10.0})


def test_an_average_over_a_part_is_refused_or_says_so() -> None:
    part = [n for n in official("UC2", COLUMNS[0], regime="zero-shot") if n.language != "ru"]
    with pytest.raises(ValueError, match="3 of 4 languages, without ru"):
        average(part, ("ar", "es", "fr", "ru"))
    found = average(part, ("ar", "es", "fr", "ru"), partial=True)
    assert found.missing == ("ru",)
    assert "mean of 3 of 4 languages (ar es fr), without ru, English excluded" in found.words
    assert averages(part, find("xvnli")) == []


def test_numbers_of_different_kinds_have_no_average() -> None:
    mixed = official("UC2", COLUMNS[0], regime="zero-shot", language="ar")
    mixed += official("UC2", COLUMNS[0], regime="translate-test", language="es")
    with pytest.raises(ValueError, match="2 kinds"):
        average(mixed, ("ar", "es"))
    twice = official("UC2", COLUMNS[0], regime="zero-shot", language="ar") * 2
    with pytest.raises(ValueError, match="twice in ar"):
        average(twice, ("ar", "es"))


def test_xgqa_averages_with_and_without_english_are_told_apart() -> None:
    task = find("xgqa")
    given = official("UC2", COLUMNS[1], regime="zero-shot")
    (seven,) = averages(given, task)
    (eight,) = averages([replace(number, protocol="avg8") for number in given], task)
    assert len(seven.languages) == 7
    assert "7 languages" in seven.words
    assert "English excluded" in seven.words
    assert len(eight.languages) == 8
    assert "English included" in eight.words
    assert eight.value == pytest.approx((7 * seven.value + 55.1935) / 8, abs=1e-3)


def retrieval(language: str, captions: int) -> Result:
    scores = {"R@1": 40.0, "R@5": 60.0, "R@10": 80.0}
    return Result(
        task="multi30k",
        language=language,
        protocol="official",
        items=1000 * captions,
        ids="0" * 64,
        system="ours",
        scores={
            "text_to_image": scores | {"queries": 1000 * captions, "gallery": 1000, "chance": {"R@1": 0.1}},
            "image_to_text": scores | {"queries": 1000, "gallery": 1000 * captions, "R@1": 70.0},
        },
        notes=(f"captions per image: {captions}",),
    )


def test_an_average_over_different_captions_per_image_says_so() -> None:
    given = [n for name, each in (("de", 5), ("fr", 1), ("cs", 1)) for n in numbers(retrieval(name, each))]
    way = [number for number in given if number.direction == "image_to_text" and number.metric == "R@1"]
    found = average(way, ("de", "fr", "cs"))
    assert "captions per image differ, 1 to 5" in found.words
    assert found.captions is None
    assert "differ" not in average([n for n in way if n.language != "de"], ("fr", "cs")).words


def test_mean_recall_is_of_six() -> None:
    (found,) = [n for n in numbers(retrieval("de", 5)) if n.metric == "mean_recall" and not n.direction]
    assert found.value == pytest.approx((40 + 60 + 80 + 70 + 60 + 80) / 6)
    assert found.captions == 5


def test_a_printed_average_is_taken_as_it_is() -> None:
    (found,) = averages(published(system="GPT-4o", task="marvl"), find("marvl"))
    assert isinstance(found, Aggregate)
    assert found.value == 82.1
    assert "as its source prints it" in found.words
