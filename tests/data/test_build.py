"""`cclm data build` and `cclm data tokenizer`: raw data to shards to vocabulary, and what they refuse."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cclm.data.build import TokenizerOptions, build, recipe_names, tokenizer
from cclm.data.check import check_dataset
from cclm.data.shards import Manifest, read_records

WORDS = "one two three four five six seven eight nine ten".split()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "raw" / "numbers.tsv"
    path.parent.mkdir()
    rows = [f"the {a} and the {b}\tdie {b} und die {a}\n" for a in WORDS for b in WORDS]
    path.write_text("en\tde\n" + "".join(rows))
    return path


def test_records_come_back_from_the_shards(table: Path, tmp_path: Path) -> None:
    built = build("parallel_text", table, tmp_path / "out")
    assert built.splits["train"] == Manifest.load(tmp_path / "out" / "train")
    assert built.splits["train"].languages == {"de": 100, "en": 100}
    assert "100 text records, 1 shards; de 100 en 100" in str(built)
    sentences = [record.parallel["en"] for record in read_records(tmp_path / "out" / "train")]
    assert sentences[:2] == ["the one and the one", "the one and the two"]
    assert check_dataset(tmp_path / "out")


def test_equal_sources_give_equal_shards(table: Path, tmp_path: Path) -> None:
    first, second = (build("parallel_text", table, tmp_path / name).splits["train"] for name in ("a", "b"))
    assert first == second


def test_options_reach_the_recipe(table: Path, tmp_path: Path) -> None:
    built = build("parallel_text", table, tmp_path / "out", options={"split": "dev"})
    assert list(built.splits) == ["dev"]


def test_recipes_are_those_of_the_folder() -> None:
    assert {"folder", "parallel_text", "emoji", "conceptual_captions", "coco_sbu_vg", "wikimatrix"} <= set(
        recipe_names()
    )


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("paralel_text", {}, r"no recipe 'paralel_text'; did you mean 'parallel_text'\? allowed: "),
        ("parallel_text", {"spilt": "x"}, r"has no option 'spilt'; did you mean 'split'\? allowed: split"),
        ("folder", {"split": "x"}, r"has no option 'split'; allowed: none"),
        ("parallel_text", {"split": 3}, r"option split=3 of recipe parallel_text must be of type str"),
        ("emoji", {"size": True}, r"option size=True of recipe emoji must be of type int"),
    ],
)
def test_unknown_names_are_refused(
    table: Path, tmp_path: Path, recipe: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(recipe, table, tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_a_dataset_is_replaced_only_when_told_to(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    build("parallel_text", table, output)
    with pytest.raises(ValueError, match=r"holds a dataset already: --overwrite true replaces it"):
        build("parallel_text", table, output)
    build("parallel_text", table, output, options={"split": "dev"}, overwrite=True)
    assert [path.name for path in output.iterdir()] == ["dev"]


def test_what_is_no_dataset_is_never_replaced(table: Path, tmp_path: Path) -> None:
    index = tmp_path / "runs" / "index"
    index.mkdir(parents=True)
    for name in ("manifest.json", "index.faiss"):
        (index / name).write_text("{}")
    for occupied, message in (
        (table.parent, "holds numbers.tsv, which is not replaced"),
        (table, "is a file"),
        (index.parent, "holds index/index.faiss, which is not replaced"),
    ):
        with pytest.raises(ValueError, match=message):
            build("parallel_text", table, occupied, overwrite=True)
    assert table.exists() and (index / "index.faiss").exists()


@pytest.mark.parametrize("split", ["", ".", "../victim", "a/b"])
def test_a_split_never_leaves_the_output(table: Path, tmp_path: Path, split: str) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is no name; use letters, digits, - and _"):
        build("parallel_text", table, tmp_path / "out", {"split": split})
    assert (tmp_path / "victim" / "thesis.txt").is_file() and not (tmp_path / "out").exists()


def test_a_failed_build_leaves_what_stood(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    build("parallel_text", table, output)
    before = sorted((path, path.read_bytes()) for path in output.rglob("*") if path.is_file())
    table.write_bytes(table.read_bytes() + b"bad\t\xff\n")
    with pytest.raises(ValueError, match=r"numbers\.tsv is cut, damaged or no UTF-8 text"):
        build("parallel_text", table, output, overwrite=True)
    assert before == sorted((path, path.read_bytes()) for path in output.rglob("*") if path.is_file())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_a_source_without_records_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.tsv").write_text("en\tde\n")
    with pytest.raises(ValueError, match=r"recipe parallel_text found no record in .*empty\.tsv"):
        build("parallel_text", tmp_path / "empty.tsv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_half_written(table: Path, tmp_path: Path) -> None:
    """A real write failure: the kernel refuses files above 2 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        with pytest.raises(OSError, match="disk full while writing"):
            build("parallel_text", table, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_tokenizer_learns_the_languages_asked_for(table: Path, tmp_path: Path) -> None:
    build("parallel_text", table, tmp_path / "data")
    train = tmp_path / "data" / "train"
    said = tokenizer(TokenizerOptions([f"{train}:de"], tmp_path / "de", vocab_size=30))
    assert said.endswith("30 pieces from 100 sentences in de")
    assert AutoTokenizer.from_pretrained(tmp_path / "de")("die")["input_ids"].count(3) == 0
    assert 3 in AutoTokenizer.from_pretrained(tmp_path / "de")("a")["input_ids"]  # no `a` in German numbers
    assert "from 200 sentences in de en" in tokenizer(TokenizerOptions([str(train)], tmp_path / "both", vocab_size=30))
    tokenizer(TokenizerOptions([str(train)], tmp_path / "tagged", vocab_size=32, language_model=True))
    assert AutoTokenizer.from_pretrained(tmp_path / "tagged").convert_ids_to_tokens([29, 30]) == ["<2de>", "<2en>"]
    assert "from 40 sentences in de en" in tokenizer(
        TokenizerOptions([str(train)], tmp_path / "few", vocab_size=28, max_sentences=20)
    )


def test_tokenizer_names_missing_text(table: Path, tmp_path: Path) -> None:
    build("parallel_text", table, tmp_path / "data")
    with pytest.raises(ValueError, match=r"has no text in fr, xx; it has de, en"):
        tokenizer(TokenizerOptions([f"{tmp_path / 'data' / 'train'}:en+xx+fr"], tmp_path / "t"))
    with pytest.raises(ValueError, match=r"no text in no data: give split folders"):
        tokenizer(TokenizerOptions([], tmp_path / "t"))
    with pytest.raises(ValueError, match=r"give one of its splits: train"):
        tokenizer(TokenizerOptions([str(tmp_path / "data")], tmp_path / "t"))
