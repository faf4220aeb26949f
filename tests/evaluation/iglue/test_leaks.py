"""The leaks that the benchmarks really have, found in shards of the real lists and captions."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cclm.cli import main
from cclm.data.image_ids import ids_of_key, image_id, key_of
from cclm.data.shards import write_shards
from cclm.evaluation.items import Question, Questions, Sentence, Sentences
from cclm.evaluation.leaks import find_leaks, normalised
from cclm.evaluation.pictures import open_pictures
from cclm.evaluation.protocol import ClassificationProtocol, Protocol
from cclm.evaluation.task import DataFolder, find
from cclm.types import Record, Statement


def picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(buffer, "png")
    return buffer.getvalue()


RED = picture("red")


def lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


@pytest.fixture(scope="module")
def multi30k(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Multi30K's train split as shards: its real pictures by name, its real English captions of task 1."""
    folder = tmp_path_factory.mktemp("multi30k")
    task1 = bundle / "multi30k/task1"
    names = (task1 / "image_splits/train.txt").read_text().split()
    texts = lines(task1 / "raw/train.en.gz")
    pairs = zip(names, texts, strict=True)
    write_shards((Record(name.removesuffix(".jpg"), RED, {"en": [text]}) for name, text in pairs), folder / "train")
    return folder / "train"


def leaks(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict]:
    main(["data", "leaks", *map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def test_most_pictures_of_xvnli_are_in_multi30k(
    multi30k: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = leaks(capsys, multi30k, "--task", "xvnli", "--data", bundle)
    assert [leak["language"] for leak in found] == ["en", "ar", "es", "fr", "ru"]
    assert {(leak["images"]["leaked"], leak["images"]["total"]) for leak in found} == {(324, 357)}
    assert found[0]["items"] == 1164 and found[0]["protocol"] == "official"
    assert found[0]["images"]["percent"] == pytest.approx(100 * 324 / 357)
    example = found[0]["images"]["examples"][0]
    assert example["what"] == f"{example['key']}.jpg" and example["how"] == "name"
    main(["data", "leaks", str(multi30k), "--task", "xvnli", "--data", str(bundle), "--languages", "ar"])
    assert capsys.readouterr().out.startswith("xvnli test in ar: 324 of 357 images (90.8 %), 0 of 1,164 texts (0.0 %)")
    with pytest.raises(SystemExit) as stopped:
        leaks(capsys, multi30k, "--task", "xvnli", "--data", bundle, "--strict")
    assert stopped.value.code == 1


def test_few_shots_of_xflickrco_are_in_multi30k_and_its_test_is_not(
    multi30k: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = leaks(capsys, multi30k, "--task", "xflickrco", "--data", bundle, "--split", "train_100")
    assert {leak["language"]: leak["images"]["leaked"] for leak in found} == dict.fromkeys(
        ("de", "es", "id", "ja", "ru", "tr", "zh"), 100
    )
    assert {leak["split"] for leak in found} == {"train_100"}
    test = leaks(capsys, multi30k, "--task", "xflickrco", "--data", bundle, "--languages", "de,en", "--strict")
    assert [leak["images"]["leaked"] for leak in test] == [0, 0]


def test_german_captions_of_xflickrco_are_multi30k_s(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As sentence pairs, so that no name of a picture gives them away."""
    raw = bundle / "multi30k/task2/raw"

    def pairs() -> Iterator[Record]:
        for number in range(1, 6):
            languages = [lines(raw / f"test_2016.{number}.{language}.gz") for language in ("en", "de")]
            for row, (english, german) in enumerate(zip(*languages, strict=True)):
                yield Record(f"{number}-{row}", parallel={"en": english.upper(), "de": f" {german} !"})

    write_shards(pairs(), tmp_path / "train")
    (found,) = leaks(capsys, tmp_path / "train", "--task", "xflickrco", "--data", bundle, "--languages", "de")
    assert found["images"]["leaked"] == 0
    test = find("xflickrco").items(DataFolder(bundle), "de", "test")
    assert found["texts"]["total"] == sum(bool(normalised(caption.text)) for caption in test) == 1999
    assert found["texts"]["leaked"] == 1000
    assert found["texts"]["examples"][0]["language"] == "de"


def test_texts_that_are_not_at_hand_are_not_said_to_be_clean(
    multi30k: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    german, english = leaks(capsys, multi30k, "--task", "xgqa", "--data", bundle, "--languages", "de, en")
    assert (german["images"]["at_hand"], german["images"]["total"]) == (True, 300)
    assert (german["texts"]["at_hand"], german["texts"]["leaked"], german["texts"]["total"]) == (False, None, None)
    assert (english["texts"]["at_hand"], english["texts"]["total"]) == (True, 9666)
    main(["data", "leaks", str(multi30k), "--task", "xgqa", "--data", str(bundle), "--languages", "de"])
    told = "xgqa test in de: 0 of 300 images (0.0 %) are in the training data; texts: not at hand\n"
    assert capsys.readouterr().out == told


def questions(*images: tuple[str, ...]) -> Questions:
    protocol = ClassificationProtocol(name="official", about="")
    asked = tuple(Question(f"q{n}", names, f"Is number {n} here?", "yes") for n, names in enumerate(images))
    return Questions(task="t", language="en", protocol=protocol, split="test", questions=asked, labels=("yes", "no"))


def test_pictures_are_known_by_their_bytes_too(tmp_path: Path) -> None:
    for name, colour in (("n1.png", "red"), ("n2.png", "blue")):
        (tmp_path / name).write_bytes(picture(colour))
    test = questions(("n1.png",), ("n2.png",), ("n3.png",))
    training = [
        Record("other", picture("white"), {"de": ["IS NUMBER 2, here"]}, others=(RED,)),
        Record("again", RED, {"de": ["x"]}),
    ]
    with open_pictures(tmp_path) as pictures:
        (leak,) = find_leaks(training, [test], pictures)
    assert [(seen.what, seen.key, seen.how) for seen in leak.images.seen] == [("n1.png", "other", "bytes")]
    assert [(seen.what, seen.key, seen.language) for seen in leak.texts.seen] == [("Is number 2 here?", "other", "de")]
    assert (leak.images.total, leak.texts.total) == (3, 3)
    (blind,) = find_leaks(training, [test])
    assert not blind.images.seen


def test_both_pictures_of_a_statement_are_known_by_the_record_s_key() -> None:
    test = questions(
        ("dev-850-0-img0.png", "dev-850-0-img1.png"),
        ("id/images/39-Panci/39-0.jpg", "id/images/39-Panci/39-11.jpg"),
        ("sw/images/39-X/39-0.jpg", "tr/images/80-Tükenmez/80-n-3.jpg"),
    )
    said = (Statement({"en": "x"}, {"True": 1.0}),)
    training = [Record(key, RED, others=(RED,), statements=said) for key in ("dev-850-0", "id-39-11-39-4")]
    (leak,) = find_leaks(training, [test])
    assert [seen.what for seen in leak.images.seen] == [
        "dev-850-0-img0.png",
        "dev-850-0-img1.png",
        "id/images/39-Panci/39-11.jpg",
    ]
    assert ids_of_key("tr-80-n-3-80-n-4") == ("tr/80-n-3", "tr/80-n-4")


def test_sentence_pairs_count_both_sides() -> None:
    pairs = (Sentence("1", "Hallo, Welt!", "Hello world."), Sentence("2", "…", "Good-bye"))
    protocol = Protocol(name="official", about="")
    test = Sentences(task="t", language="de", protocol=protocol, split="test", sentences=pairs)
    training = [Record("a", parallel={"en": "hello   WORLD", "fr": "salut"}), Record("b", RED, {"nl": ["hallo welt"]})]
    (leak,) = find_leaks(training, [test])
    assert [(seen.what, seen.key) for seen in leak.texts.seen] == [("Hallo, Welt!", "b"), ("Hello world.", "a")]
    assert leak.texts.total == 3 and not leak.images.total
    (none,) = find_leaks([Record("c", parallel={"en": "another", "de": "andere"})], [test])
    assert leak and not none


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1007129816.jpg", "1007129816_e794419615"),
        ("flickr30k-images/1007129816.jpg", "flickr30k-images_1007129816"),
        ("COCO_val2014_000000391895.jpg", "coco-000000391895"),
        ("val2014/COCO_val2014_000000391895.jpg", "val2014_COCO_val2014_000000391895"),
        ("wit-test_3.jpg", "wit-test_3"),
        ("n161313.jpg", "n161313"),
        ("Some Name v1.0.JPG", "some_name_v1_0"),
    ],
)
def test_a_file_and_a_record_of_one_image_have_one_id(one: str, other: str) -> None:
    assert (image_id(one),) == ids_of_key(other)


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("dev-850-0-img0.png", "dev-850-0-img1.png"), "dev-850-0"),
        (("id/images/39-Panci/39-0.jpg", "id/images/39-Panci/39-n-11.jpg"), "id-39-0-39-n-11"),
        (("COCO_val2014_000000391895.jpg",), "coco-391895"),
        (("pictures/1007129816.jpg",), "1007129816"),
    ],
)
def test_shards_of_a_run_are_known_by_their_keys(names: tuple[str, ...], key: str) -> None:
    assert key_of(names) == key
    assert set(ids_of_key(key)) == set(map(image_id, names))


def test_normalised_texts() -> None:
    assert normalised("  Ein  JUNGE, im „Boot“… ") == normalised("ein junge im boot")
    assert normalised("ＡＢＣ１２３") == "abc123"
    assert normalised("Straße") == normalised("STRASSE")
    assert normalised("两只狗。") == "两只狗"
    assert normalised(" …! ") == ""


def test_what_cannot_be_checked_is_named(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards([Record("a", RED, {"en": ["x"]})], tmp_path / "train")
    for arguments, message in (
        (["nowhere", "--task", "xvnli"], "no shard at nowhere"),
        ([tmp_path / "train", "--task", "xvni"], "no task 'xvni'; did you mean 'xvnli'?"),
        ([tmp_path / "train", "--task", "xvnli", "--languages", "de"], "xvnli has no test in language 'de'"),
        ([tmp_path / "train", "--task", "xvnli", "--split", "tset"], "xvnli has no split 'tset'; did you mean 'test'?"),
        ([tmp_path / "train", "--task", "xvnli", "--images", "nowhere"], "--images nowhere is no folder"),
        ([tmp_path / "train", "--task", "xvnli", "--data", tmp_path], "has no XVNLI/annotations/en/test.jsonl"),
    ):
        data = () if "--data" in arguments else ("--data", bundle)
        with pytest.raises(SystemExit) as stopped:
            main(["data", "leaks", *map(str, (*arguments, *data))])
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert message in error and error.count("\n") == 1
