"""Which views and languages are drawn: reproducible per (seed, epoch, key), and as frequent as temperature says."""

from __future__ import annotations

from collections import Counter

import pytest

from cclm.data.pairs import CaptionCaption, ImageCaption, PairDrawer, Translation, UnwantedError
from cclm.data.seeding import random_of
from cclm.types import Pair, Record

IMAGE = Record("k", b"", {"en": ["a", "b", "c"], "de": ["x"]}, {"en": "s", "fr": "t", "de": "u"})


def _draws(drawer: PairDrawer, record: Record, count: int = 400) -> list[Pair]:
    drawn = [drawer.draw(record, random_of("seed", epoch, record.key)) for epoch in range(count)]
    return [pair for pair in drawn if pair is not None]


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
            pair = drawer.draw(Record("", parallel={"en": "a", language: "b"}), random_of(language, number))
            if pair is not None:
                drawn[language] += 1
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


@pytest.mark.parametrize("arguments", [{"temperature": 0}, {"temperature": -1.0}, {"swap": 1.5}])
def test_wrong_arguments(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"Translation: (temperature|swap)="):
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
