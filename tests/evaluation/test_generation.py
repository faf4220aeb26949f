"""Generated pictures judged: painters that heed the prompt, only English, or nothing; kept pictures; bad painters."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from cclm.evaluation.embedder import Images, System
from cclm.evaluation.generation import EmbeddingFeatures, GenerationReport, JudgeOptions, judge_pictures, table
from cclm.evaluation.painting import MISMATCHED, Kept, Painter, PaintOptions, Prompts, draw_prompts, paint
from cclm.types import Record

NUMBERS = {"en": "number {}", "de": "Nummer {}", "tr": "{} sayısı"}
COUNT = 20


def colour(number: int) -> tuple[int, int, int]:
    """Twenty colours that lie far apart."""
    return 60 + 60 * (number % 3), 60 + 45 * (number // 3 % 4), 60 + 90 * (number // 12)


def number_of(text: str) -> int:
    return next(int(word) for word in text.split() if word.isdigit())


def picture(number: int, side: int = 12) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), colour(number)).save(out, "PNG")
    return out.getvalue()


def record(number: int, **texts: str) -> Record:
    own = {language: text.format(number) for language, text in NUMBERS.items()} | texts
    return Record(f"r{number}", picture(number), captions={"en": [own["en"], "another"]}, parallel=own)


class Judge:
    """Knows the colour of every number: embeds a picture and a text by the colour that it shows or asks for."""

    def embed_texts(self, texts: Sequence[str], language: str) -> Tensor:
        return self._unit([colour(number_of(text)) for text in texts])

    def embed_images(self, images: Images) -> Tensor:
        return self._unit([image.resize((1, 1)).getpixel((0, 0)) for image in images])

    def _unit(self, colours: list[tuple[int, int, int]]) -> Tensor:
        centres = torch.tensor([colour(number) for number in range(COUNT)]).float()  # (20, 3)
        distances = torch.cdist(torch.tensor(colours).float(), centres)
        return nn.functional.normalize(torch.softmax(-distances / 10, dim=1), dim=-1)


class Painted:
    """A painter that heeds prompts of some languages; for others its noise alone makes the picture."""

    def __init__(self, *heeded: str) -> None:
        self.heeded, self.asked = heeded, []

    def __call__(self, texts: Sequence[str], language: str, seed: int) -> list[Image.Image]:
        self.asked.append((language, tuple(texts), seed))
        noise = torch.Generator().manual_seed(seed)
        drawn = torch.randint(COUNT, (len(texts),), generator=noise).tolist()
        shades = torch.randint(-4, 5, (len(texts),), generator=noise).tolist()
        numbers = [number_of(text) if language in self.heeded else n for text, n in zip(texts, drawn, strict=True)]
        return [
            Image.new("RGB", (8, 8), tuple(part + shade for part in colour(number)))
            for number, shade in zip(numbers, shades, strict=True)
        ]


JUDGE = System.of(Judge(), "colours", "test's", "0")


def drawn(count: int = COUNT) -> Prompts:
    return draw_prompts([record(number) for number in range(COUNT)], ["en", "de", "tr"], count, "en", seed=0)


def report(painter: Painter, gallery: int = 100) -> GenerationReport:
    painted = paint(drawn(), painter, PaintOptions(batch=7))
    return judge_pictures(drawn(), painted, JUDGE, EmbeddingFeatures(JUDGE), JudgeOptions(gallery, draws=50))


def test_a_painter_that_heeds_all_languages_is_perfect() -> None:
    found = report(Painted("en", "de", "tr"))
    for language, own in found.languages.items():
        assert own["R-precision@1"] == own["R-precision@10"] == 100.0
        assert own["R-precision@1_mismatched"] == 0.0
        assert own["R-precision@10_mismatched"] == pytest.approx(100 * 9 / 19)
        assert own["CLIP-score"] > 99 > 30 > own["CLIP-score_mismatched"]
        assert own["FID"] == pytest.approx(found.languages["en"]["FID"], abs=1e-6) and own["FID"] < 0.5
        if language != "en":  # the very same pictures: the noise was the same
            assert own["consistency"] == pytest.approx(1.0) and own["consistency_mismatched"] < 0.3
            assert own["CLIP-score_kept"] == own["R-precision@10_kept"] == pytest.approx(1.0)
        else:
            assert "consistency" not in own and "CLIP-score_kept" not in own
    assert found.real["R-precision@1"] == 100.0 and found.real["R-precision@1_interval"] == [100.0, 100.0]


def test_a_painter_of_english_alone_keeps_nothing_in_the_others() -> None:
    found = report(Painted("en")).languages
    assert found["en"]["R-precision@1"] == 100.0
    for language in ("de", "tr"):
        assert found[language]["R-precision@1"] < 30 and abs(found[language]["CLIP-score_kept"]) < 0.3
        assert found[language]["consistency"] < 0.3
        assert found[language]["FID"] > 2 * found["en"]["FID"]
        low, high = found[language]["R-precision@1_interval"]
        assert low <= found[language]["R-precision@1"] <= high


def test_a_painter_that_heeds_nothing_looks_consistent_and_its_floor_says_so() -> None:
    found = report(Painted()).languages
    assert found["de"]["consistency"] == pytest.approx(1.0) == found["de"]["consistency_mismatched"]
    assert abs(found["de"]["CLIP-score"] - found["de"]["CLIP-score_mismatched"]) < 20


def test_galleries_are_parts_of_the_prompts() -> None:
    whole, parts = report(Painted("en")).languages["de"], report(Painted("en"), gallery=10)
    assert (
        parts.protocol["gallery"] == 10 and parts.languages["de"]["R-precision@10"] == 100.0 > whole["R-precision@10"]
    )
    with pytest.raises(ValueError, match="20 prompts do not fill galleries of 15; give a multiple"):
        report(Painted("en"), gallery=15)
    with pytest.raises(ValueError, match="give 2 or more of both"):
        JudgeOptions(gallery=1).parts(4)


def test_features_of_any_network_are_taken() -> None:
    seen = []

    def network(pictures: Tensor) -> Tensor:
        seen.append((pictures.dtype, tuple(pictures.shape[1:])))
        return pictures.float().mean((2, 3))

    prompts = drawn()
    found = judge_pictures(
        prompts, paint(prompts, Painted("en"), PaintOptions()), JUDGE, network, JudgeOptions(draws=0)
    )
    # The data's pictures of 12 pixels are reduced to the 8 of those painted.
    assert set(seen) == {(torch.uint8, (3, 8, 8))}
    assert "CLIP-score_interval" not in found.languages["en"] and found.languages["en"]["FID"] < 100


def test_a_judge_that_embeds_nothing_is_refused() -> None:
    prompts = drawn()
    with pytest.raises(ValueError, match="judge texts embeds no pictures and texts"):
        judge_pictures(prompts, {}, System("texts", "", ""), EmbeddingFeatures(JUDGE), JudgeOptions())


def test_prompts_are_drawn_by_seed_and_what_cannot_be_is_counted() -> None:
    records = [record(number) for number in range(COUNT)]
    found = draw_prompts(records, ["en", "tr"], 8, "en", seed=1)
    assert found == draw_prompts(iter(records), ["en", "tr"], 8, "en", seed=1)
    assert found.ids != draw_prompts(records, ["en", "tr"], 8, "en", seed=2).ids
    assert set(found.texts) == {"en", "tr"} and len(found) == 8 == len(set(found.ids))
    for place, name in enumerate(found.ids):
        assert found.texts["tr"][place] == f"{name[1:]} sayısı"
        assert found.pictures[place].getpixel((0, 0)) == colour(int(name[1:]))
    odd = [Record("t", parallel={"en": "x", "tr": "y"}), record(1, tr=" "), record(3), record(3), record(4)]
    odd += [record(5, tr="Number 5")]
    few = draw_prompts(odd, ["en", "tr"], 2, "en", seed=0)
    assert few.skipped == {
        "no picture": 1,
        "no text in tr": 1,
        "the same text in en as another": 1,
        "the same text in tr as in en": 1,
    }
    with pytest.raises(
        ValueError, match=r"2 records to draw 3 prompts from; 1 x no picture; .*give 2 prompts to so many"
    ):
        draw_prompts(odd, ["en", "tr"], 3, "en", seed=0)
    with pytest.raises(ValueError, match="reference language 'en' is none of de, tr"):
        draw_prompts(odd, ["de", "tr"], 2, "en", seed=0)
    with pytest.raises(ValueError, match="record r5: image not readable; repair or remove it"):
        broken = Record("r5", picture(5)[:50], captions={"en": ["number 5"]})
        draw_prompts([broken, record(1)], ["en"], 2, "en", seed=0)


def test_captions_serve_where_there_is_no_parallel_sentence() -> None:
    records = [Record(f"r{n}", picture(n), captions={"en": [f"number {n}", "x"]}) for n in range(3)]
    assert sorted(draw_prompts(records, ["en"], 3, "en", seed=0).texts["en"]) == ["number 0", "number 1", "number 2"]


def test_every_row_is_painted_from_the_same_noise_in_the_same_batches() -> None:
    painter, prompts = Painted("en"), drawn(5)
    painted = paint(prompts, painter, PaintOptions(seed=9, batch=2))
    assert list(painted) == ["en", "de", "tr", MISMATCHED] and {len(row) for row in painted.values()} == {5}
    assert [(language, len(texts), seed) for language, texts, seed in painter.asked] == [
        (language, count, 9 + first)
        for language in ("en", "de", "tr", "en")
        for first, count in ((0, 2), (2, 2), (4, 1))
    ]
    assert painter.asked[-1][1] == prompts.texts["en"][:1]  # the last one's mismatched prompt is the first one's


def test_kept_pictures_are_not_painted_again(tmp_path: Path) -> None:
    prompts, options, model = drawn(6), PaintOptions(batch=4), {"model": "m", "sha256": "1"}
    first = paint(prompts, Painted("en"), options, Kept.at(tmp_path / "kept", prompts, options, model))
    assert len(list((tmp_path / "kept" / "de").glob("*.png"))) == 6
    (tmp_path / "kept" / "de" / "00005.png").unlink()
    (tmp_path / "kept" / "tr" / "00001.png").write_bytes(b"\x89PNG cut")
    painter = Painted("en")
    again = paint(prompts, painter, options, Kept.at(tmp_path / "kept", prompts, options, model))
    assert [(language, len(texts)) for language, texts, _ in painter.asked] == [("de", 2), ("tr", 4)]
    assert all(a.tobytes() == b.tobytes() for row in first for a, b in zip(first[row], again[row], strict=True))
    for other in (
        (drawn(7), options, model),
        (prompts, PaintOptions(seed=1, batch=4), model),
        (prompts, options, {"model": "m", "sha256": "2"}),
    ):
        with pytest.raises(ValueError, match="holds pictures of another model, seed or prompts"):
            Kept.at(tmp_path / "kept", *other)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files; name a new or empty folder"):
        Kept.at(tmp_path / "other", prompts, options, model)


def test_painters_that_give_too_little_or_unequal_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="gave 1 pictures for 5 prompts"):
        paint(drawn(5), lambda texts, language, seed: [Image.new("RGB", (4, 4))], PaintOptions())
    with pytest.raises(ValueError, match="pictures of sizes .* were painted"):
        paint(
            drawn(5),
            lambda texts, language, seed: [Image.new("RGB", (4 + (language == "de"), 4)) for _ in texts],
            PaintOptions(),
        )
    with pytest.raises(ValueError, match="batch is 0"):
        PaintOptions(batch=0)


def test_the_report_is_json_and_a_table_of_80_columns(tmp_path: Path) -> None:
    found = report(Painted("en", "de"))
    found.regimes.update({"en": "trained", "de": "zero-shot", "tr": "quasi-zero-shot"})
    found.write(tmp_path / "report.json", Image.new("RGB", (3, 2)))
    assert Image.open(tmp_path / "report.png").size == (3, 2)
    assert GenerationReport.read(tmp_path / "report.json") == found
    (tmp_path / "other.json").write_text('{"languages": {}}')
    with pytest.raises(ValueError, match="is no report of `cclm evaluate generation`"):
        GenerationReport.read(tmp_path / "other.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["languages"]["de"]["R-precision@10"] == 100.0 and stored["protocol"]["prompts"] == COUNT
    assert stored["protocol"]["reranked"] is False and stored["regimes"]["tr"] == "quasi-zero-shot"
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(found))
    shown = console.export_text()
    assert all(len(line) <= 80 for line in shown.splitlines())
    for told in ("100.0 (47.4)", "quasi-zero-shot", "1.00", "real", "among 20"):
        assert told in shown
