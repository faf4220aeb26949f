"""Searching with a real tiny model over real files: what is embedded, reranked, explained, and what is refused."""

from __future__ import annotations

import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cclm.cli import main
from cclm.images import open_image
from cclm.models.model import CCLMConfig, CCLMModel
from cclm.retrieval import searcher as module
from cclm.retrieval.index import ImageIndex, build_index
from cclm.retrieval.living import IndexWriter
from cclm.retrieval.manifest import ModelSource
from cclm.retrieval.metadata import Entry, Rows
from cclm.retrieval.pictures import Pictures
from cclm.retrieval.query import ImageTerm, IndexedTerm, Query, TextTerm, VectorTerm
from cclm.retrieval.searcher import Searcher
from tests.data.conftest import picture
from tests.models.conftest import TINY, pretrained, tiny_processor  # noqa: F401

COUNT = 12


class Counting(CCLMModel):
    """The model, with a note of what it was asked to embed."""

    asked: list[tuple[str, int]]

    def embed_texts(self, texts: list[str], **options: object) -> np.ndarray:
        self.asked.append(("texts", len(texts)))
        return super().embed_texts(texts, **options)

    def embed_images(self, images: list[Image.Image], **options: object) -> np.ndarray:
        self.asked.append(("images", len(images)))
        return super().embed_images(images, **options)


@pytest.fixture(scope="module")
def model(pretrained: Path) -> Counting:  # noqa: F811
    found = Counting.from_pretrained(pretrained)
    found.asked = []
    return found


@pytest.fixture(scope="module")
def folder(model: Counting, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """An index of pictures in a folder beside it."""
    place = tmp_path_factory.mktemp("search")
    (place / "pictures").mkdir()
    entries, images = [], []
    for number in range(COUNT):
        data = picture(number, kind="PNG")
        (place / "pictures" / f"{number}.png").write_bytes(data)
        images.append(open_image(data))
        entries.append(Entry(f"p/{number}", {"en": [f"picture {number}"]}, path=f"{number}.png", width=100 * number))
    rows = Rows.of(entries, model.embed_images(images))
    build_index([rows], place / "index", ModelSource.of(pretrained), [place / "pictures"])
    return place


@pytest.fixture
def searcher(model: Counting, folder: Path) -> Searcher:
    model.asked.clear()
    return Searcher(ImageIndex.open(folder / "index"), model, Pictures([folder / "pictures"]))


def test_all_terms_go_through_the_encoder_together_and_are_kept(searcher: Searcher, model: Counting) -> None:
    image = Image.open(io.BytesIO(picture(40, kind="PNG")))
    vector = np.arange(1, 9, dtype=np.float32)
    queries = [
        Query((TextTerm("ein Hund"), TextTerm("zwei", -0.5), IndexedTerm(4))),
        Query((ImageTerm(image, 2.0), TextTerm("zwei"))),
        Query((VectorTerm(vector),)),
    ]
    found = searcher.embed(queries)
    assert model.asked == [("texts", 2), ("images", 1)]
    (dog, two), (own,) = CCLMModel.embed_texts(model, ["ein Hund", "zwei"]), CCLMModel.embed_images(model, [image])
    sums = [dog - 0.5 * two + searcher.index.vectors(np.array([4]))[0], 2 * own + two, vector]
    assert np.allclose(found, [total / np.linalg.norm(total) for total in sums], atol=1e-5)
    model.asked.clear()
    again = searcher.embed([Query.of("zwei"), Query.of("drei"), Query.of("zwei")])
    assert model.asked == [("texts", 1)] and np.array_equal(again[0], again[2])


def test_the_least_recent_texts_are_forgotten(
    searcher: Searcher, model: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    for text in ("a", "b", "a", "c", "a", "b"):
        searcher.embed([Query.of(text)])
    assert len(model.asked) == 4  # a, b, c, and b again


def test_more_like_a_picture_finds_it_first(searcher: Searcher) -> None:
    for hits in searcher.search([Query((IndexedTerm(3),)), Query((IndexedTerm(7),))], 4):
        assert len(hits) == 4 and hits[0].score == pytest.approx(1, abs=1e-5) and hits[0].match is None
    for id in (99, 2**63, -(2**70)):
        with pytest.raises(ValueError, match=f"has no picture of id {id};"):
            searcher.search([Query((IndexedTerm(id),))])
        with pytest.raises(ValueError, match=f"has no picture of id {id};"):
            searcher.explain("Hund", id)


def test_reranking_orders_the_first_hits_by_match(searcher: Searcher, model: Counting, folder: Path) -> None:
    query = Query.parse('Hund^2 "zwei Boote" -rot^1')
    plain = searcher.search([query], COUNT)[0]
    hits = searcher.search([query], COUNT, rerank=8)[0]
    assert [hit.rank for hit in hits] == list(range(1, COUNT + 1))
    assert {hit.id for hit in hits[:8]} == {hit.id for hit in plain[:8]}
    assert [hit.id for hit in hits[8:]] == [hit.id for hit in plain[8:]] and all(hit.match is None for hit in hits[8:])
    matches = [hit.match for hit in hits[:8]]
    assert matches == sorted(matches, reverse=True) and len(set(matches)) == 8
    for hit in hits[:8]:
        dog, boats, red = model.score(folder / "pictures" / hit.entry.path, ["Hund", "zwei Boote", "rot"])
        assert hit.match == pytest.approx(dog * boats**0.5 * (1 - red) ** 0.5, abs=1e-4)
    assert searcher.search([query], 3, rerank=8)[0] == hits[:3]
    assert [hit.id for hit in searcher.search([query], 3, rerank=1)[0]] == [hit.id for hit in plain[:3]]
    assert len(searcher.search([query], 3, rerank=10**6)[0]) == 3  # more than there are


def test_pictures_that_cannot_be_read_follow_and_are_counted(model: Counting, folder: Path, tmp_path: Path) -> None:
    gone = tmp_path / "pictures"
    gone.mkdir()
    for number in range(0, COUNT, 2):
        (gone / f"{number}.png").write_bytes((folder / "pictures" / f"{number}.png").read_bytes())
    searcher = Searcher(ImageIndex.open(folder / "index"), model, Pictures([gone]))
    plain = searcher.search([Query.of("Hund")], COUNT)[0]
    hits = searcher.search([Query.of("Hund")], COUNT, rerank=COUNT)[0]
    assert [hit.match is None for hit in hits] == [False] * 6 + [True] * 6
    assert [hit.id for hit in hits[6:]] == [hit.id for hit in plain if hit.id % 2]
    assert sum(searcher.unread.values()) == 6 and len(searcher.unread) == 1
    with pytest.raises(ValueError, match="missing or not readable"):
        searcher.explain("Hund", 1)


def test_what_cannot_be_reranked_or_explained(
    searcher: Searcher,
    model: Counting,
    folder: Path,
    tiny_processor: object,  # noqa: F811
) -> None:
    without = Searcher(searcher.index, model)
    image = Query((ImageTerm(Image.new("RGB", (8, 8))),))
    for ask, message in (
        (lambda: without.search([Query.of("a")], rerank=3), "this searcher has none; tell where they are"),
        (lambda: without.explain("a", 1), "no pictures to read"),
        (lambda: searcher.search([image], rerank=3), "a query has none; add one, or do not rerank"),
        (lambda: searcher.search([Query.of("a")], 0, rerank=3), "k is 0"),
        (lambda: searcher.search([Query.of("a")], rerank=-1), "rerank -1"),
        (lambda: searcher.search([]), "no query given"),
        (lambda: searcher.explain("a", 99), "has no picture of id 99"),
        (lambda: searcher.search([Query((VectorTerm(np.ones(3)),))]), r"has shape \(3,\), those of index .* \(8,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ask()
    headless = CCLMModel(CCLMConfig(vocab_size=tiny_processor.vocab_size, **TINY, heads=["mlm"])).eval()
    headless.processor = tiny_processor
    with pytest.raises(ValueError, match="no match head"):
        Searcher(searcher.index, headless, searcher.pictures).search([Query.of("a")], rerank=3)


def test_explanation_is_of_the_picture_of_that_id(searcher: Searcher, model: Counting, folder: Path) -> None:
    found = searcher.explain("ein Hund", 5)
    assert found.tokens == ("ein", "Hund") and found.heat.shape[0] == 2
    assert found.match == pytest.approx(model.score(folder / "pictures" / "5.png", "ein Hund")[0], abs=1e-5)


def test_many_ask_at_once_while_the_index_is_replaced(searcher: Searcher, folder: Path) -> None:
    queries = [[Query.of(f"Hund {number % 7}"), Query((IndexedTerm(number % COUNT),))] for number in range(60)]
    wanted = [[[hit.id for hit in hits] for hits in searcher.search(asked, 3)] for asked in queries]

    def ask(number: int) -> list[list[int]]:
        if number % 5 == 0:
            searcher.index = ImageIndex.open(folder / "index")
        return [[hit.id for hit in hits] for hits in searcher.search(queries[number], 3, rerank=0)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(60))) == wanted


class TestVerb:
    def test_hits_are_told(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        index = str(folder / "index")
        main(["search", index, "Hund -rot", "-k", "3"])
        lines = capsys.readouterr().out.strip().splitlines()
        assert len(lines) == 3 and lines[0].startswith("1  ") and "  p/" in lines[0] and "picture" in lines[0]
        options = ["--rerank", "6", "-k", "4", "--where", "width >= 300", "--explain", str(tmp_path / "sheets")]
        main(["search", index, '"ein Hund"^2 -rot', *options, "--json"])
        hits = json.loads(capsys.readouterr().out)
        assert [hit["rank"] for hit in hits] == [1, 2, 3, 4] and all(hit["width"] >= 300 for hit in hits)
        assert hits[0]["match"] >= hits[-1]["match"] and {"score", "id", "key", "captions", "path"} <= set(hits[0])
        for hit in hits:
            assert Path(hit["explanation"]).name == f"{hit['rank']:03}_p_{hit['key'][2:]}.explained.png"
            assert Image.open(hit["explanation"]).width > 500
        main(["search", index, "Hund", "--rerank", "2", "-k", "3", "--explain", str(tmp_path / "sheets")])
        lines = capsys.readouterr().out.strip().splitlines()
        assert 0 < float(lines[0].split()[2]) < 1 and lines[2].split()[2] == "-"
        assert len(list((tmp_path / "sheets").iterdir())) == 3  # those of before are gone

    def test_pictures_as_queries(self, folder: Path, capsys: pytest.CaptureFixture) -> None:
        index, file = str(folder / "index"), str(folder / "pictures" / "4.png")
        main(["search", index, file, "-k", "1"])
        by_file = capsys.readouterr().out
        main(["search", index, "--like", "p/4", "-k", "1"])
        assert capsys.readouterr().out == by_file and "1.000" in by_file
        main(["search", index, " -Hund", "--image", file, "-k", "1"])
        assert "1.000" not in capsys.readouterr().out

    def test_a_text_stands_behind_flags_and_behind_a_minus(self, folder: Path, capsys: pytest.CaptureFixture) -> None:
        index, files = str(folder / "index"), [str(folder / "pictures" / f"{number}.png") for number in (4, 7)]
        also = ["-k", "1", "--image", files[0], "--like", "p/7", "--images", str(folder / "pictures")]
        main(["search", index, *also, "Hund"])
        found = capsys.readouterr().out
        main(["search", index, "Hund", *also])
        assert capsys.readouterr().out == found
        main(["search", index, "-k", "1", "--image", files[0], "--image", files[1]])
        both = capsys.readouterr().out
        main(["search", index, "-k", "1", "--like", "p/4", "--like", "p/7"])
        assert capsys.readouterr().out == both
        main(["search", index, *also, "--", "-Hund"])
        assert capsys.readouterr().out != found

    def test_what_would_act_on_a_terminal_is_escaped(self, folder: Path, capsys: pytest.CaptureFixture) -> None:
        index = ImageIndex.open(folder / "index")
        build_index(
            [Rows.of([Entry("a\x1b[2Jb\n", {"en": ["\x07bell"]}, path="0.png")], index.vectors(np.array([0])))],
            folder / "odd",
            ModelSource.of(index.model()),
            [folder / "pictures"],
        )
        main(["search", str(folder / "odd"), "Hund", "-k", "1"])
        assert r"a\x1b[2Jb\n  \x07bell" in capsys.readouterr().out

    def test_where_nothing_is_found_it_is_told(
        self, folder: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
    ) -> None:
        main(["search", str(folder / "index"), "Hund", "-k", "2", "--where", "key = 'none'"])
        told = capsys.readouterr()
        assert not told.out and re.search(r"cclm: nothing matches .* fulfils --where key = 'none'$", told.err.strip())
        with IndexWriter(shutil.copytree(folder / "index", folder / "emptied")) as writer:
            writer.delete(where="id >= 0")
        main(["search", str(folder / "emptied"), "Hund"])
        told = capsys.readouterr()
        assert not told.out and "emptied: it is empty" in told.err and "is cut" not in caplog.text

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "the query is empty"),
            (["Hund^x"], "the weight 'x' of 'Hund'"),
            (["--like", "nothing"], "has no picture of key 'nothing'; check --like"),
            (["Hund", "--image", "nothing.png"], "there is no image file nothing.png; check the path"),
            (["--like", "p/1", "--explain", "sheets"], "explain shows where the words of a text are"),
            (["--like", "p/1", "--rerank", "3"], "a query has none; add one, or do not rerank"),
            (["Hund", "--where", "wide"], "wide"),
            (["Hund", "--where", ""], "condition: there is none"),
        ],
    )
    def test_refusals(self, folder: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["search", str(folder / "index"), *arguments])
        told = capsys.readouterr()
        assert ended.value.code == 2 and message in told.err.splitlines()[-1] and not told.out

    def test_pictures_that_have_moved(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        arguments = ["search", str(folder / "index"), "Hund", "-k", "2", "--rerank", "2"]
        main([*arguments, "--images", str(tmp_path), "--explain", str(tmp_path / "sheets")])
        told = capsys.readouterr()
        assert len(told.out.splitlines()) == 2 and not list((tmp_path / "sheets").iterdir())
        for what in ("reranked", "explained"):
            assert f"cclm: not {what}: 2 x picture's file missing or not readable" in told.err

    def test_a_folder_of_other_things_is_not_replaced(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "holiday.png").write_bytes(b"mine")
        with pytest.raises(SystemExit):
            main(["search", str(folder / "index"), "Hund", "--explain", str(tmp_path)])
        assert (tmp_path / "holiday.png").read_bytes() == b"mine"
