"""Which views and languages are drawn: reproducible per (seed, epoch, key), and as frequent as temperature says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from cclm.data.pairs import (
    CaptionCaption,
    ImageCaption,
    PairDrawer,
    Regions,
    Statements,
    Translation,
    UnwantedError,
)
from cclm.data.seeding import random_of
from cclm.types import Pair, Part, Record, Region, Statement

IMAGE = Record("k", b"", {"en": ["a", "b", "c"], "de": ["x"]}, {"en": "s", "fr": "t", "de": "u"})


def _draws(drawer: PairDrawer, record: Record, count: int = 400) -> list[Pair]:
    drawn = [drawer.draw(record, random_of("seed", epoch, record.key)) for epoch in range(count)]
    return [pair for pairs in drawn for pair in pairs]


def test_image_caption_draws_anew_every_epoch() -> None:
    pairs = _draws(ImageCaption(), IMAGE)
    assert pairs == _draws(ImageCaption(), IMAGE)
    assert {pair.target for pair in pairs} == {"a", "b", "c", "x"}
    assert all(pair.context == b"" and pair.languages[0] is None for pair in pairs)
    assert {pair.languages[1] for pair in _draws(ImageCaption(["de"]), IMAGE)} == {"de"}


def test_translation_takes_two_languages_in_both_orders() -> None:
    languages = Counter(pair.languages for pair in _draws(Translation(), IMAGE, 900))
    assert len(languages) == 6 and min(languages.values()) > 100
    for pair in _draws(Translation(), IMAGE):
        assert (pair.context, pair.target) == tuple(IMAGE.parallel[language] for language in pair.languages)


def test_anchor_is_always_one_side_and_swap_is_its_share() -> None:
    pairs = _draws(Translation(anchor="en", swap=0.25), IMAGE, 1000)
    assert all("en" in pair.languages for pair in pairs)
    assert 0.2 < sum(pair.languages[1] == "en" for pair in pairs) / 1000 < 0.3
    assert {pair.languages for pair in _draws(Translation(["fr"], anchor="en", swap=0.0), IMAGE)} == {("en", "fr")}


def test_copies_are_the_same_text_twice() -> None:
    pairs = _draws(Translation(copy=0.25), IMAGE, 1000)
    copies = [pair for pair in pairs if pair.languages[0] == pair.languages[1]]
    assert 0.2 < len(copies) / 1000 < 0.3
    assert {pair.languages[0] for pair in copies} == {"en", "fr", "de"}
    assert all(pair.context == pair.target == IMAGE.parallel[pair.languages[0]] for pair in copies)
    alone = _draws(Translation(["en"], copy=1.0), IMAGE, 10)  # as for a model that knows English only
    assert {(pair.languages, pair.target) for pair in alone} == {(("en", "en"), "s")}
    anchored = _draws(Translation(["fr"], anchor="de", copy=0.5), IMAGE)
    assert {pair.languages for pair in anchored} == {("de", "fr"), ("fr", "de"), ("de", "de")}
    assert _draws(Translation(copy=0.0), IMAGE) == _draws(Translation(), IMAGE)


def test_caption_caption_pairs_two_captions_of_one_image() -> None:
    assert {pair.languages for pair in _draws(CaptionCaption(), IMAGE)} == {("en", "de"), ("de", "en")}
    with pytest.raises(UnwantedError, match="no two texts"):
        CaptionCaption(["en"]).draw(IMAGE, random_of(0))


def test_records_without_a_wanted_language() -> None:
    for drawer, record, reason in (
        (ImageCaption(["ja"]), IMAGE, "no caption in a wanted language"),
        (ImageCaption(), Record("t", parallel={"en": "x"}), "record without an image"),
        (Translation(["en", "ja"]), IMAGE, "no two texts in wanted languages"),
        (Translation(anchor="ja"), IMAGE, "no text in the anchor language ja"),
    ):
        with pytest.raises(UnwantedError) as raised:
            drawer.draw(record, random_of(0))
        assert raised.value.reason == reason


def test_unknown_language_names_those_there_are() -> None:
    counts = {"en": 10, "de": 5}
    for drawer in (ImageCaption(["en", "xx"]), Translation(anchor="xx"), Translation(["xx"], anchor="en")):
        with pytest.raises(ValueError, match="data/train: no text in language xx; there are de, en"):
            drawer.bind(counts, "data/train")
    ImageCaption(["xx"]).bind({}, "img2dataset folder without a manifest")


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_temperature_sets_the_languages_shares(temperature: float) -> None:
    counts = {"de": 8000, "fr": 2000, "is": 500}
    drawer = Translation(anchor="en", temperature=temperature)
    drawer.bind({"en": sum(counts.values()), **counts}, "data")
    drawn: Counter[str] = Counter()
    for language, count in counts.items():
        for number in range(count):
            pairs = drawer.draw(Record("", parallel={"en": "a", language: "b"}), random_of(language, number))
            drawn[language] += len(pairs)
    expected = {language: count ** (1 / temperature) for language, count in counts.items()}
    for language in counts:
        share = expected[language] / sum(expected.values())
        assert drawn[language] / drawn.total() == pytest.approx(share, rel=0.15)
    assert temperature > 1 or drawn == counts


def test_temperature_within_a_record_prefers_the_rare_language() -> None:
    drawer = ImageCaption(temperature=4.0)
    drawer.bind({"en": 10_000, "de": 100}, "data")
    drawn = Counter(pair.languages[1] for pair in _draws(drawer, IMAGE, 1000))
    assert drawn["de"] > 10 * drawn["en"] > 0


@pytest.mark.parametrize("arguments", [{"temperature": 0}, {"temperature": -1.0}, {"swap": 1.5}, {"copy": -0.1}])
def test_wrong_arguments(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"Translation: (temperature|swap|copy)="):
        Translation(**arguments)


def test_drawers_come_from_yaml() -> None:
    from jsonargparse import ArgumentParser

    from cclm.data.batches import StreamConfig

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--streams", type=dict[str, StreamConfig])
    config = parser.parse_object(
        {
            "streams": {
                "texts": {
                    "shards": {"a": 2.0, "b": 1.0},
                    "pairs": {"class_path": "cclm.data.pairs.Translation", "init_args": {"anchor": "en"}},
                    "batch_size": 8,
                }
            }
        }
    )
    stream = parser.instantiate_classes(config).streams["texts"]
    assert (
        isinstance(stream.pairs, Translation) and stream.pairs.anchor == "en" and stream.shards == {"a": 2.0, "b": 1.0}
    )


SAID = Record(
    "k", b"", others=(b"", b""),
    statements=tuple(Statement({"en": f"e{n}", "de": f"d{n}"}, {f"label{n}": 1.0}) for n in range(5)),
)  # fmt: skip


def test_every_statement_is_one_pair_of_every_epoch_in_drawn_order() -> None:
    orders = Counter()
    for epoch in range(200):
        pairs = Statements().draw(SAID, random_of(epoch))
        assert sorted(pair.target[1] for pair in pairs) == list("01234")
        assert all(pair.labels == {f"label{pair.target[1]}": 1.0} and pair.part is None for pair in pairs)
        assert all(pair.languages == (None, {"e": "en", "d": "de"}[pair.target[0]]) for pair in pairs)
        assert all(pair.context == (b"", b"", b"") for pair in pairs)  # all images of the record
        orders.update([tuple(pair.target[1] for pair in pairs)])
    assert len(orders) > 70
    german = _draws(Statements(["de"]), replace(SAID, others=()), 20)
    assert {pair.target[0] for pair in german} == {"d"} and {pair.context for pair in german} == {b""}
    share = sum(pair.target[0] == "d" for pair in _draws(Statements(), SAID)) / 2000
    assert 0.45 < share < 0.55


def test_temperature_judges_every_statement_by_itself() -> None:
    mixed = Record("k", b"", statements=(Statement({"en": "a"}, {"x": 1.0}), Statement({"de": "b"}, {"x": 1.0})))
    drawer = Statements(temperature=2.0)
    drawer.bind({"en": 1600, "de": 100}, "data")
    drawn = Counter(pair.target for pair in _draws(drawer, mixed, 2000))
    assert drawn["b"] == 2000 and 430 < drawn["a"] < 570  # (1600 / 100) ** (1 / 2 - 1) = a quarter


SCENE = Record(
    "k", b"", {"en": ["all of it"]}, size=(100, 60),
    regions=(
        Region((30.0, 20.0, 20.0, 10.0), {"en": ["ball"], "de": ["Ball"]}, {"en": ["red"], "de": ["roter"]}),
        Region((31.5, 21.5, 15.0, 6.0), {"en": ["stripe"]}, {"en": ["blue", "thin"]}),
        Region((70.0, 5.0, 40.0, 30.0), {"en": ["tree"]}),  # ten pixels of it lie outside
        Region((0.0, 0.0, 3.0, 3.0), {"de": ["Ecke"]}, {"en": ["small"]}),
    ),
)  # fmt: skip
BOXES = {"ball": (30, 20, 50, 30), "stripe": (31.5, 21.5, 46.5, 27.5), "tree": (70, 5, 100, 35), "Ecke": (0, 0, 3, 3)}


def _in_image(part: Part) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the part's box in pixels of the stored image."""
    x, y, width, height = part.box
    x = 1 - x if part.flip else x
    left, top, across, down = part.crop
    return tuple(
        round(v, 6)
        for v in (left + (x - width / 2) * across, top + (y - height / 2) * down,
                  left + (x + width / 2) * across, top + (y + height / 2) * down)
    )  # fmt: skip


def _share_seen(box: tuple[float, ...], crop: tuple[float, ...]) -> float:
    across = min(box[2], crop[0] + crop[2]) - max(box[0], crop[0])
    down = min(box[3], crop[1] + crop[3]) - max(box[1], crop[1])
    return max(across, 0) * max(down, 0) / ((box[2] - box[0]) * (box[3] - box[1]))


def test_regions_of_one_crop_by_what_is_seen_of_them() -> None:
    flips = 0
    for epoch in range(400):
        pairs = Regions(attributes="none").draw(SCENE, random_of(epoch))
        first, *rest = pairs
        crop, flip = first.part.crop, first.part.flip
        flips += flip
        assert first.target == "all of it" and first.part.whole and first.part.box == (0.5, 0.5, 1.0, 1.0)
        assert all(value == int(value) for value in crop)
        assert crop[0] >= 0 and crop[1] >= 0 and crop[0] + crop[2] <= 100 and crop[1] + crop[3] <= 60
        names = {"Ball": "ball"} | {name: name for name in BOXES}
        seen = {names[pair.target] for pair in rest}
        assert seen == {name for name, box in BOXES.items() if _share_seen(box, crop) > 0.5} and seen
        assert any(_share_seen(BOXES[name], crop) == 1 for name in seen)
        for pair in rest:
            assert (pair.part.crop, pair.part.flip, pair.part.whole) == (crop, flip, False)
            box = BOXES[names[pair.target]]
            clipped = (max(box[0], crop[0]), max(box[1], crop[1]),
                       min(box[2], crop[0] + crop[2]), min(box[3], crop[1] + crop[3]))  # fmt: skip
            assert _in_image(pair.part) == pytest.approx(clipped)
            assert 0 < pair.part.box[2] <= 1 and 0 < pair.part.box[3] <= 1
    assert 160 < flips < 240


def test_edges_of_the_crop_are_uniform_between_the_box_and_the_image() -> None:
    record = replace(SCENE, regions=SCENE.regions[:1])
    crops = [Regions().draw(record, random_of(epoch))[0].part.crop for epoch in range(3000)]
    for least, most, values in (
        (0, 30, [crop[0] for crop in crops]),
        (0, 20, [crop[1] for crop in crops]),
        (50, 100, [crop[0] + crop[2] for crop in crops]),
        (30, 60, [crop[1] + crop[3] for crop in crops]),
    ):
        counts = Counter(values)
        expected = 3000 / (most - least + 1)
        assert set(counts) == set(range(least, most + 1))
        # Chi-squared has k degrees of freedom and a deviation of sqrt(2 k): five of them are never met by chance.
        spread = sum((count - expected) ** 2 / expected for count in counts.values())
        assert abs(spread - (most - least)) < 5 * (2 * (most - least)) ** 0.5


def test_attributes_stand_before_the_caption() -> None:
    def texts(attributes: str, languages: list[str] | None = None) -> set[str]:
        pairs = _draws(Regions(languages, attributes=attributes), replace(SCENE, captions={}), 300)
        return {pair.target for pair in pairs}

    assert texts("none") == {"ball", "Ball", "stripe", "tree", "Ecke"}
    assert texts("same") == {"red ball", "roter Ball", "blue stripe", "thin stripe", "tree", "Ecke"}
    assert texts("any") == {"red ball", "roter ball", "red Ball", "roter Ball", "blue stripe", "thin stripe", "tree",
                            "small Ecke"}  # fmt: skip
    assert texts("any", ["de"]) == {"roter Ball", "Ecke"}


def test_at_most_so_many_texts_and_only_wanted_regions() -> None:
    many = replace(SCENE, regions=SCENE.regions[:1] * 9)
    assert {len(Regions().draw(many, random_of(n))) for n in range(20)} == {5}
    assert {len(Regions(max_regions=1).draw(many, random_of(n))) for n in range(20)} == {1}
    assert len(Regions(max_regions=20).draw(replace(many, captions={}), random_of(1))) == 9
    strict = _draws(Regions(["de"], least_visible=0.99), SCENE, 100)
    assert {pair.target for pair in strict} == {"roter Ball", "Ecke"}  # the English caption of all is not wanted
    drawer = Regions(temperature=2.0)
    drawer.bind({"en": 1600, "de": 100}, "data")
    english = replace(SCENE, regions=SCENE.regions[1:3])
    used = sum(bool(drawer.draw(english, random_of("t", n))) for n in range(1000))
    assert 200 < used < 300  # the record as a whole is passed over


def test_records_without_statements_or_regions_are_unwanted() -> None:
    for drawer, record, reason in (
        (Statements(["ja"]), SAID, "no statement in a wanted language"),
        (Statements(), IMAGE, "no statement in a wanted language"),
        (Regions(["fr"]), SCENE, "no region with a caption in a wanted language"),
        (Regions(), Record("t", parallel={"en": "x"}), "record without an image"),
    ):
        with pytest.raises(UnwantedError) as raised:
            drawer.draw(record, random_of(0))
        assert raised.value.reason == reason


@pytest.mark.parametrize("arguments", [{"max_regions": 0}, {"least_visible": 1.0}, {"attributes": "all"}])
def test_wrong_arguments_of_regions(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Regions: {next(iter(arguments))}="):
        Regions(**arguments)


def test_drawers_of_regions_and_statements_come_from_yaml() -> None:
    from jsonargparse import ArgumentError, ArgumentParser

    from cclm.data.batches import StreamConfig

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--stream", type=StreamConfig)

    def stream(name: str, **arguments: object) -> StreamConfig:
        pairs = {"class_path": f"cclm.data.pairs.{name}", "init_args": arguments}
        given = {"stream": {"shards": "a", "pairs": pairs, "batch_size": 8}}
        return parser.instantiate_classes(parser.parse_object(given)).stream

    regions = stream("Regions", attributes="any", max_regions=3).pairs
    assert isinstance(regions, Regions) and (regions.attributes, regions.max_regions) == ("any", 3)
    assert isinstance(stream("Statements", languages=["en"]).pairs, Statements)
    with pytest.raises(ArgumentError, match="attributes"):
        stream("Regions", attributes="all")
