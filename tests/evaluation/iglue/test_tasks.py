"""Tasks read the benchmarks' own files, count as IGLUE does, and say in one line what is wrong with a file."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cclm.evaluation.items import Captions, Questions, Sentences
from cclm.evaluation.pictures import open_pictures
from cclm.evaluation.task import DataFolder, Task, find, names

# reference/iglue.md 1.1 and 1.6: items and images of the test, by protocol and language
XVNLI = dict.fromkeys(("en", "ar", "es", "fr", "ru"), (1164, 357))
XGQA = dict.fromkeys(("en", "bn", "de", "id", "ko", "pt", "ru", "zh"), (9666, 300))
MARVL = {"en": 6967, "id": 1128, "sw": 1108, "ta": 1242, "tr": 1180, "zh": 1012}
XFLICKRCO = dict.fromkeys(("en", "de", "es", "id", "ja", "ru", "tr", "zh"), (2000, 2000))
WIT = {
    "ar": (890, 792),
    "bg": (860, 806),
    "da": (891, 814),
    "el": (570, 541),
    "en": (1000, 685),
    "et": (874, 780),
    "id": (901, 854),
    "ja": (1000, 842),
    "ko": (931, 889),
    "tr": (721, 681),
    "vi": (946, 869),
}
WITHOUT_BLANK = {"de": (1999, 1999), "id": (1999, 1999)}
XTD = dict.fromkeys(("en", "de", "fr", "ja", "es", "it", "ko", "pl", "ru", "tr", "zh"), (1000, 1000))
FIVE, ONE = dict.fromkeys(("en", "de"), (5000, 1000)), dict.fromkeys(("fr", "cs"), (1000, 1000))
DEV = dict.fromkeys(("en", "de"), (5070, 1014)) | dict.fromkeys(("fr", "cs"), (1014, 1014))
THREE = ("en", "de", "fr")
TESTS = [
    ("xvnli", "official", XVNLI),
    ("xvnli", "labelled", dict.fromkeys(XVNLI, (1150, 357))),
    ("xgqa", "official", XGQA),
    ("xgqa", "contains", XGQA),
    ("xgqa", "testdev", dict.fromkeys(XGQA, (12578, 398))),
    ("xgqa", "avg8", dict.fromkeys(XGQA, (12578, 398))),
    ("marvl", "official", {language: (count, None) for language, count in MARVL.items()}),
    ("marvl", "contains", {language: (count, None) for language, count in MARVL.items()}),
    ("nlvr2", "official", {"en": (6967, 8082)}),
    ("nlvr2", "dev", {"en": (6982, 8102)}),
    ("xflickrco", "official", XFLICKRCO),
    ("xflickrco", "captioned", XFLICKRCO | WITHOUT_BLANK),
    ("wit", "official", WIT),
    ("wit", "captioned", WIT | {"el": (569, 540), "id": (900, 853)}),
    ("multi30k", "official", FIVE | ONE),
    ("multi30k", "task1", dict.fromkeys(FIVE | ONE, (1000, 1000))),
    ("multi30k", "dev", DEV),
    ("multi30k", "dev-task1", dict.fromkeys(DEV, (1014, 1014))),
    ("multi30k", "test2017", dict.fromkeys(THREE, (1000, 1000))),
    ("multi30k", "test2017-mscoco", dict.fromkeys(THREE, (461, 461))),
    ("multi30k", "test2018", dict.fromkeys(DEV, (1071, 1071))),
    ("xtd10", "official", XTD),
]
# reference/iglue.md 1.1, 2.1: items of the other splits
MT = {
    "xvnli": dict.fromkeys(("ar", "es", "fr", "ru"), 1164),
    "marvl": {language: count for language, count in MARVL.items() if language != "en"},
    "xflickrco": {language: 2000 for language in XFLICKRCO if language != "en"},
    "wit": {language: count for language, (count, _) in WIT.items() if language != "en"} | {"ar": 891},
}
OTHERS = [
    ("xgqa", "dev", dict.fromkeys(XGQA, 1422)),
    ("marvl", "dev", {"en": 6982}),
    ("marvl", "dev_translated", dict.fromkeys(("id", "sw", "tr", "zh"), 6982)),
    ("nlvr2", "dev_translated", dict.fromkeys(("id", "sw", "tr", "zh"), 6982)),
    ("xflickrco", "dev", {"en": 5 * 1014}),
    ("xflickrco", "dev_translated", dict.fromkeys(("bn", "de", "es", "id", "ja", "ko", "ru", "tr", "zh"), 5070)),
    ("wit", "dev", {"en": 4632}),
    ("multi30k", "train", {"en": 145000, "de": 145000, "fr": 29000, "cs": 29000}),
    ("multi30k", "train_task1", dict.fromkeys(DEV, 29000)),
    *((name, "test_translated", counts) for name, counts in MT.items()),
]
SHOTS = {
    "xvnli": {"1": 3, "5": 18, "10": 39, "20": 75, "25": 90, "48": 168},
    "xgqa": {"1": 27, "5": 155, "10": 317, "20": 594, "25": 704, "48": 1490},
    "marvl": {"1": 4, "2": 8, "4": 16, "10": 40, "10x2": 80},
    "xflickrco": {"1": 1, "5": 5, "10": 10, "25": 25, "50": 50, "100": 100},
}
MANY = {"200": 200, "500": 500, "1000": 1000, "1500": 1500, "100x5": 500, "200x5": 1000}
FEW = {
    "xvnli": set(XVNLI),
    "xgqa": set(XGQA),
    "marvl": {"id", "tr", "zh"},
    "xflickrco": set(XFLICKRCO) - {"en"},
}


class TestCounts:
    """Check 3 of reference/iglue.md 7: every file of the bundle is read whole, with as many items as stand there."""

    @pytest.mark.parametrize(("name", "protocol", "counts"), TESTS, ids=lambda value: value if len(value) < 20 else "")
    def test_of_tests(self, bundle: Path, name: str, protocol: str, counts: dict[str, tuple[int, int | None]]) -> None:
        task = find(name)
        chosen = task.protocol(protocol)
        assert set(task.tested(chosen)) == set(counts)
        for language, (items, images) in counts.items():
            test = task.test_set(DataFolder(bundle), language, chosen)
            assert (language, len(test)) == (language, items) and len(set(test.ids)) == items
            assert images in (None, len(test.images())), language

    @pytest.mark.parametrize(("name", "split", "counts"), OTHERS, ids=lambda value: value if len(value) < 20 else "")
    def test_of_other_splits(self, bundle: Path, name: str, split: str, counts: dict[str, int]) -> None:
        task = find(name)
        assert {language: len(task.items(DataFolder(bundle), language, split)) for language in counts} == counts

    @pytest.mark.parametrize("name", SHOTS)
    def test_of_few_shot_sets(self, bundle: Path, name: str) -> None:
        task = find(name)
        assert task.shots is not None
        assert (task.shots.examples, set(task.shots.languages)) == (SHOTS[name], FEW[name])
        for shots, examples in SHOTS[name].items():
            for language in FEW[name]:
                assert len(task.items(DataFolder(bundle), language, f"train_{shots}")) == examples

    def test_of_xflickrcos_many_shots(self, bundle: Path) -> None:
        task = find("xflickrco")
        for shots, examples in MANY.items():
            assert task.sizes[f"train_{shots}"] == examples
            for language in ("de", "ja"):
                assert len(task.items(DataFolder(bundle), language, f"train_{shots}")) == examples

    @pytest.mark.parametrize(("name", "protocol", "counts"), TESTS, ids=lambda value: value if len(value) < 20 else "")
    def test_images_are_declared_as_items_are(self, name: str, protocol: str, counts: dict[str, Any]) -> None:
        assert find(name).images[protocol].keys() == find(name).counts[protocol].keys() == counts.keys()

    def test_the_translations_of_wit_in_arabic_have_an_image_more(self, bundle: Path) -> None:
        task = find("wit")
        for protocol in task.protocols:
            test = task.test_set(DataFolder(bundle), "ar", protocol, translated=True)
            assert (len(test), len(test.images())) == (891, 793)

    def test_of_tatoeba(self, bundle: Path) -> None:
        task = find("tatoeba")
        tests = [task.test_set(DataFolder(bundle), language, task.protocol()) for language in task.languages]
        counts = [len(test) for test in tests]
        assert (len(counts), counts.count(1000), min(counts)) == (112, 72, 104)
        german = tests[task.languages.index("de")]
        assert isinstance(german, Sentences)
        assert german.sentences[0].text == "Maria sagte, sie wisse nicht, wo Tom sei."
        assert german.sentences[0].english == "Mary said she didn't know where Tom was."

    def test_every_file_of_the_bundle_is_some_tasks(self, bundle: Path) -> None:
        """None is left out by a misprint in a path. The sample of GQA's own testdev is not needed, nor Flickr30K's
        English test, whose first captions xFlickr&CO has.
        """
        read = {
            found
            for task in map(find, names())
            for source in task.splits.values()
            for language in source.languages
            for name in (*source.files(language), *source.wording(language))
            if (found := DataFolder(bundle).find(name)) is not None
        }
        folders = ("iglue", "multi30k", "tatoeba", "xtd10")
        there = {path for folder in folders for path in (bundle / folder).rglob("*") if path.is_file()}
        unread = {path.name for path in there - read if path.suffix not in (".md", ".pkl")}
        labels = {"trainval_label2ans.json", "trainval_ans2label.json"}  # the first is the list of labels
        rest = {"testdev_balanced_questions.json", "test_ann.jsonl", "pairs", "test_2017_images.txt"}
        assert unread == labels | rest


class TestXGQA:
    def test_answers_are_the_9666_of_gqa(self, bundle: Path) -> None:
        gold = json.loads((bundle / "derived" / "xgqa_test_answers_9666.json").read_bytes())
        test = xgqa(DataFolder(bundle), "bn")
        assert {question.id: question.label for question in test.questions} == gold
        assert len(test.labels) == 1842
        assert any("none of the 1,842" in note and ": 2, kept" in note for note in test.notes)  # "bottle cap"

    def test_a_damaged_answer_is_none(self, bundle: Path, tmp_path: Path) -> None:
        """Two of GQA's answers are no label of the task; no other one may be."""
        data = linked(bundle, tmp_path)
        path = tmp_path / "data/iglue/gqa/annotations/testdev.json"
        gold = xgqa(data, "bn").questions[0]
        rows = json.loads(path.read_bytes())
        for row in rows:
            if row["question_id"] == gold.id:
                row["label"] = {f"x{gold.label}": 1.0}
        path.write_text(json.dumps(rows), encoding="utf-8")
        told = (
            f"the answer of {gold.id} is 'x{gold.label}', which is no label of the task; fetch gqa/annotations/testdev"
        )
        with pytest.raises(ValueError, match=told):
            xgqa(data, "bn")

    def test_other_testdev_ids_are_spared(self, bundle: Path) -> None:
        test, every = xgqa(DataFolder(bundle), "de"), xgqa(DataFolder(bundle), "de", "testdev")
        assert len(test.spared) == 2912 and test.spared | set(test.ids) == set(every.ids)
        assert not every.spared

    def test_one_says_that_the_texts_are_not_there(self, bundle: Path) -> None:
        test, english = xgqa(DataFolder(bundle), "de"), xgqa(DataFolder(bundle), "en")
        assert test.textless and "no texts at hand: predictions can be scored, not made" in test.notes
        assert not english.textless and all(question.text for question in english.questions)

    @pytest.mark.parametrize("file", ["few_shot/de/test.json", "zero_shot/testdev_balanced_questions_de.json"])
    def test_texts_come_from_either_file(self, bundle: Path, tmp_path: Path, file: str) -> None:
        data = linked(bundle, tmp_path)
        test = xgqa(DataFolder(bundle), "de")
        written = test if "test.json" in file else xgqa(DataFolder(bundle), "de", "testdev")
        rows = {
            question.id: {"question": f"Frage {question.id}?", "imageId": question.images[0][:-4], "answer": "x"}
            for question in written.questions
        }
        write(tmp_path / "data/iglue/xGQA/annotations" / file, json.dumps(rows))
        found = xgqa(data, "de")
        assert not found.textless and found.fingerprint() == test.fingerprint()
        assert all(question.text == f"Frage {question.id}?" for question in found.questions)
        labels = [question.label for question in test.questions]
        assert [question.label for question in found.questions] == labels  # GQA's, whatever the file says

    def test_a_question_that_is_missing_is_named(self, bundle: Path, tmp_path: Path) -> None:
        data = linked(bundle, tmp_path)
        one = {"1": {"question": "Wer?", "imageId": "n1", "answer": "x"}}
        write(tmp_path / "data/iglue/xGQA/annotations/few_shot/de/test.json", json.dumps(one))
        with pytest.raises(ValueError, match=r"de/test\.json has no question \d+, which is of the test"):
            xgqa(data, "de")

    def test_an_answer_that_weighs_nothing_is_one(self, tmp_path: Path) -> None:
        row = {"img_id": "n1", "question_id": "7", "sent": "Who?", "label": {"man": 0, "boy": 0.0}}
        write(tmp_path / "xGQA/annotations/few_shot/en/train_1.json", json.dumps([row]))
        (found,) = find("xgqa").items(DataFolder(tmp_path), "en", "train_1")
        assert (found.id, found.label, found.images) == ("7", "man", ("n1.jpg",))


class TestMaRVL:
    @pytest.mark.parametrize("label", [True, "True", "true", 1, "1"])
    def test_labels_in_every_form(self, tmp_path: Path, label: Any) -> None:
        """Check 7: truth values, texts and numbers, also mixed in one file."""
        rows = [marvl_row(0, label), marvl_row(1, not label if isinstance(label, bool) else "False")]
        write(tmp_path / "marvl/zero_shot/annotations/marvl-tr.jsonl", lines(rows))
        found = find("marvl").items(DataFolder(tmp_path), "tr", "test")
        assert [question.label for question in found] == ["True", "False"]

    @pytest.mark.parametrize("label", ["yes", None, 2, "", [True]])
    def test_what_is_no_label_is_refused(self, tmp_path: Path, label: Any) -> None:
        write(tmp_path / "marvl/zero_shot/annotations/marvl-tr.jsonl", lines([marvl_row(0, True), marvl_row(1, label)]))
        with pytest.raises(ValueError, match=r"marvl-tr\.jsonl, line 2: label is neither true nor false; fetch"):
            find("marvl").items(DataFolder(tmp_path), "tr", "test")

    @pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
    def test_pictures_are_found_however_accents_are_written(self, bundle: Path, tmp_path: Path, form: str) -> None:
        """Check 7: real names of folders, with accents composed or not; mBLIP decomposes them for compatibility."""
        task = find("marvl")
        tests = [task.test_set(DataFolder(bundle), language, task.protocol()) for language in ("tr", "ta", "zh")]
        few = [task.items(DataFolder(bundle), language, "train_1") for language in ("tr", "zh")]
        images = [name for test in tests for name in test.images()[::15]]
        images += [name for items in few for question in items for name in question.images]
        accents = [name for name in images if unicodedata.normalize("NFC", name) != unicodedata.normalize("NFD", name)]
        assert len(accents) > 20
        for number, name in enumerate(images):
            path = tmp_path / unicodedata.normalize(form, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8 + number, 8)).save(path)
        with open_pictures(tmp_path) as pictures:
            assert all(name in pictures for name in images) and pictures.read(accents[0])

    def test_few_shot_names_hold_the_concept(self, bundle: Path) -> None:
        first = find("marvl").items(DataFolder(bundle), "id", "train_1")[0]
        assert first.images == ("id/images/39-Panci/39-n-5.jpg", "id/images/39-Panci/39-n-2.jpg")
        assert find("marvl").items(DataFolder(bundle), "id", "test")[0].images[0] == "id/images/39-Panci/39-0.jpg"

    def test_english_is_nlvr2(self, bundle: Path) -> None:
        task = find("marvl")
        english = task.test_set(DataFolder(bundle), "en", task.protocol())
        nlvr2 = find("nlvr2").test_set(DataFolder(bundle), "en", find("nlvr2").protocol())
        assert english.fingerprint() == nlvr2.fingerprint() and english.images()[0] == "test1-0-1-img0.png"


class TestWIT:
    def test_any_order_of_rows_is_the_same_test(self, bundle: Path, tmp_path: Path) -> None:
        """Check 6: several captions of one image, in whatever order."""
        path = bundle / "iglue/wit/annotations/test_ar.jsonl"
        shuffled = path.read_text(encoding="utf-8").splitlines()
        random.Random(3).shuffle(shuffled)
        write(tmp_path / "wit/annotations/test_ar.jsonl", "\n".join(shuffled))
        task = find("wit")
        plain, mixed = (task.test_set(DataFolder(root), "ar", task.protocol()) for root in (bundle, tmp_path))
        assert isinstance(plain, Captions) and isinstance(mixed, Captions)
        assert plain.fingerprint() == mixed.fingerprint() and plain.ids != mixed.ids
        assert set(plain.gallery) == set(mixed.gallery) and len(plain.gallery) == 792
        texts = [sorted((caption.image, caption.text) for caption in test.captions) for test in (plain, mixed)]
        assert texts[0] == texts[1]

    def test_blank_captions_are_told(self, bundle: Path) -> None:
        task = find("wit")
        notes = [task.test_set(DataFolder(bundle), "el", protocol).notes[0] for protocol in task.protocols]
        assert notes == ["captions without text: 1, kept", "captions without text: 1, left out"]


class TestXFlickrCO:
    def test_translate_train_is_in_two_languages_under_two_names(self, tmp_path: Path) -> None:
        for name, text in (("de/train_ann", "ein Hund"), ("ja/train", "犬")):
            row = {"sentences": [text, text], "id": "7", "img_path": "7.jpg"}
            write(tmp_path / f"xFlickrCO/annotations/{name}.jsonl", lines([row]))
        task, data = find("xflickrco"), DataFolder(tmp_path)
        assert task.splits["train_translated"].languages == ("de", "ja")
        found = [task.items(data, language, "train_translated") for language in ("de", "ja")]
        assert [[caption.text for caption in items] for items in found] == [["ein Hund"] * 2, ["犬"] * 2]


class TestMulti30k:
    def test_five_captions_and_one_are_two_protocols(self, bundle: Path) -> None:
        """Check 8: named differently, and the number of captions stands beside them."""
        task = find("multi30k")
        for language in ("en", "de"):
            five, one = (
                task.test_set(DataFolder(bundle), language, task.protocol(name)) for name in ("official", "task1")
            )
            assert five.protocol.name != one.protocol.name and five.fingerprint() != one.fingerprint()
            assert ("captions per image: 5" in five.notes, "captions per image: 1" in one.notes) == (True, True)
            assert five.images() == one.images()

    def test_caption_numbers_are_no_part_of_a_picture(self, bundle: Path) -> None:
        task = find("multi30k")
        test = task.test_set(DataFolder(bundle), "fr", task.protocol("test2017-mscoco"))
        assert test.images()[0] == "COCO_train2014_000000117071.jpg" and test.ids[0].endswith("#367178#0")

    def test_files_that_do_not_go_together_are_both_named(self, bundle: Path, tmp_path: Path) -> None:
        folder = tmp_path / "multi30k/task1"
        shutil.copytree(bundle / "multi30k/task1", folder)
        with gzip.open(folder / "raw/val.fr.gz", "wt", encoding="utf-8") as file:
            file.write("une phrase\n" * 1013)
        task = find("multi30k")
        with pytest.raises(ValueError, match=r"val\.fr\.gz has 1,013 lines and .*val\.txt 1,014.*fetch both again"):
            task.test_set(DataFolder(tmp_path), "fr", task.protocol("dev-task1"))


class TestCOCO:
    """Check 9, on files of the form that Karpathy, STAIR and COCO-CN ship; the real ones are not at hand."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> DataFolder:
        images = [
            {
                "filepath": "val2014",
                "filename": f"COCO_val2014_{number:012d}.jpg",
                "cocoid": number,
                "split": "test" if number % 5 else "train",
                "sentences": [{"tokens": ["a"], "raw": f"a {number} {n}", "sentid": 10 * number + n} for n in range(6)],
            }
            for number in range(1, 6251)
        ]
        write(tmp_path / "coco/dataset_coco.json", json.dumps({"images": images, "dataset": "coco"}))
        captions = [
            {"id": 7 * number + n, "image_id": number, "caption": f"絵 {number} {n}"}
            for number in range(1, 6251)
            for n in range(5)
        ]
        write(tmp_path / "coco/stair_captions_v1.2_val.json", json.dumps({"images": [], "annotations": captions}))
        folder = tmp_path / "coco/coco-cn-version1805v1.1"
        chosen = [f"COCO_train2014_{number:012d}" for number in range(1000)]
        write(folder / "coco-cn_test.txt", "\n".join(chosen))
        written = [f"{name}#{n}\t图 {name}" for name in [*chosen, "COCO_train2014_000000999999"] for n in range(1)]
        written += [f"{name}#1\t图 {name}" for name in chosen[:53]]
        write(folder / "imageid.human-written-caption.txt", "\n".join(written))
        return DataFolder(tmp_path)

    def test_three_protocols_are_three(self, data: DataFolder) -> None:
        task = find("coco")
        tests = {protocol.name: task.test_set(data, "en", protocol) for protocol in task.protocols}
        sizes = {name: (len(test), len(test.images()), test.protocol.folds) for name, test in tests.items()}
        assert sizes == {"1k": (5000, 1000, 1), "1k-5fold": (25000, 5000, 5), "5k": (25000, 5000, 1)}
        assert tests["1k"].images() == tests["5k"].images()[:1000]

    def test_languages(self, data: DataFolder) -> None:
        task = find("coco")
        english, japanese, chinese = (task.test_set(data, name, task.protocol()) for name in ("en", "ja", "zh"))
        assert isinstance(japanese, Captions) and isinstance(chinese, Captions)
        assert japanese.images() == english.images() and japanese.captions[0].text == "絵 1 0"
        assert (len(chinese), len(chinese.images()), chinese.images()[0]) == (
            1053,
            1000,
            "COCO_train2014_000000000000.jpg",
        )
        assert task.averaged(task.protocol()) == ("ja", "zh")
        with pytest.raises(ValueError, match="no test in language 'zh'"):
            task.test_set(data, "zh", task.protocol("5k"))

    def test_another_number_of_pictures_is_refused(self, data: DataFolder) -> None:
        path = data.path("coco/dataset_coco.json")
        found = json.loads(path.read_bytes())
        path.write_text(json.dumps({"images": found["images"][:5000]}))
        task = find("coco")
        with pytest.raises(ValueError, match="20,000 items where protocol 5k has 25,000"):
            task.test_set(data, "en", task.protocol("5k"))


class TestOthersByForm:
    """Sets whose files are not at hand, in the form that their authors ship."""

    def test_xm3600(self, tmp_path: Path) -> None:
        rows = [
            {"image/key": f"{number:016x}", "image/locale": "de"}
            | {language: {"caption": [f"{language} {number}", "second"]} for language in find("xm3600").languages}
            for number in range(3600)
        ]
        write(tmp_path / "xm3600/captions.jsonl", lines(rows))
        task = find("xm3600")
        every, one = (task.test_set(DataFolder(tmp_path), "quz", protocol) for protocol in task.protocols)
        assert [(len(test), len(test.images())) for test in (every, one)] == [(7200, 3600), (3600, 3600)]
        assert (len(task.languages), len(task.averaged(every.protocol)), len(task.averaged(one.protocol))) == (
            36,
            35,
            36,
        )
        write(tmp_path / "xm3600/captions.jsonl", lines(rows[:3500]))
        with pytest.raises(ValueError, match="quz: 3,500 images where protocol all-captions has 3,600"):
            task.test_set(DataFolder(tmp_path), "quz", task.protocol("all-captions"))
        del rows[1]["de"]
        write(tmp_path / "xm3600/captions.jsonl", lines(rows))
        with pytest.raises(ValueError, match=r"captions\.jsonl, line 2: no captions in de"):
            task.test_set(DataFolder(tmp_path), "de", task.protocol())

    @pytest.mark.parametrize(
        ("name", "language", "images", "texts"),
        [
            ("flickr30k_200", "en", "flickr30k-200/filenames.txt", "flickr30k-200/eng_captions.txt"),
            ("flickr30k_200", "zho_Hans", "flickr30k-200/filenames.txt", "flickr30k-200/zho_Hans.txt"),
            ("xtd_200", "deu_Latn", "xtd200/test_image_names.txt", "xtd200/deu_Latn.txt"),
        ],
    )
    def test_nllb_clip(self, tmp_path: Path, name: str, language: str, images: str, texts: str) -> None:
        write(tmp_path / images, "".join(f"{number}.jpg\n" for number in range(1000)))
        write(tmp_path / texts, "\n".join(f"caption {number}" for number in range(1000)))
        task = find(name)
        test = task.test_set(DataFolder(tmp_path), language, task.protocol())
        assert (len(test), test.images()[999]) == (1000, "999.jpg")
        assert "en" not in task.averaged(task.protocol()) and len(task.averaged(task.protocol())) == 200

    def test_babel_imagenet(self, tmp_path: Path) -> None:
        for name in ("n02", "n01", "n03"):
            write(tmp_path / f"imagenet/val/{name}/ILSVRC2012_val_{name}.JPEG", "")
        write(tmp_path / "babel_imagenet/babel_imagenet-298.json", json.dumps({"DE": [[0, 2], ["Schleie", "Hai"]]}))
        task, data = find("babel_imagenet"), DataFolder(tmp_path)
        with pytest.raises(ValueError, match="holds 3 classes, not ImageNet's 1,000.*LOC_synset_mapping"):
            task.test_set(data, "de", task.protocol())
        write(tmp_path / "imagenet/LOC_synset_mapping.txt", "n03 tench\nn01 goldfish\nn02 great white shark\n")
        test = task.test_set(data, "de", task.protocol())
        assert test.images() == ("n03/ILSVRC2012_val_n03.JPEG", "n02/ILSVRC2012_val_n02.JPEG")
        assert test.names == {"0": ("Schleie",), "2": ("Hai",)} and [p.label for p in test.pictures] == ["0", "2"]
        assert "1 pictures of others left out" in test.notes[0]
        with pytest.raises(ValueError, match=r"298\.json has no \[numbers of classes, their names\] in FR"):
            task.test_set(data, "fr", task.protocol())


class TestDamage:
    """One line: the file, the row, the cure."""

    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            (lambda text: text[: len(text) // 2], r"test\.jsonl, line \d+: .*; fetch the file again"),
            (lambda text: text.replace('"sentence2"', '"sentence3"', 1), r"line 1: no sentence2; fetch"),
            (
                lambda text: text.replace("759822302.jpg#2r1c", "759822302.jpg#2r1n", 1),
                "ids stand there more than once",
            ),
            (lambda text: "\n".join(text.splitlines()[:100]), "100 items where protocol official has 1,164.*--partial"),
            (lambda text: "[1, 2]\n" + text, "line 1: no JSON object"),
            (lambda text: text.replace('"neutral"', '"xneutral"', 1), r"line \d+: gold_label is 'xneutral', none of"),
            (
                lambda text: text.replace('"neutral"', '"--"', 1),
                r"line \d+: gold_label is '--', none of .* and -; fetch",
            ),
            (lambda text: "", "holds no item"),
        ],
    )
    def test_is_named(self, bundle: Path, tmp_path: Path, damage: Any, told: str) -> None:
        text = (bundle / "iglue/XVNLI/annotations/ar/test.jsonl").read_text(encoding="utf-8")
        write(tmp_path / "XVNLI/annotations/ar/test.jsonl", damage(text))
        task = find("xvnli")
        with pytest.raises(ValueError, match=told) as error:
            task.test_set(DataFolder(tmp_path), "ar", task.protocol())
        assert "\n" not in str(error.value)

    def test_as_many_captions_of_fewer_images(self, bundle: Path, tmp_path: Path) -> None:
        """A row that stands there twice in the place of another one."""
        rows = (bundle / "iglue/wit/annotations/test_ar.jsonl").read_text(encoding="utf-8").splitlines()
        write(tmp_path / "wit/annotations/test_ar.jsonl", "\n".join([rows[0], rows[0], *rows[2:]]))
        task, data = find("wit"), DataFolder(tmp_path)
        with pytest.raises(ValueError, match="wit in ar: 791 images where protocol official has 792; the file is cut"):
            task.test_set(data, "ar", task.protocol())
        partial = task.test_set(data, "ar", task.protocol(), whole=False)
        assert len(partial) == 890 and partial.notes[-1] == "partial: 791 images where there should be 792"

    def test_questions_about_another_image(self, bundle: Path, tmp_path: Path) -> None:
        text = (bundle / "iglue/XVNLI/annotations/ar/test.jsonl").read_text(encoding="utf-8")
        row = json.loads(text.splitlines()[0]) | {"Flikr30kID": "1"}
        write(tmp_path / "XVNLI/annotations/ar/test.jsonl", "\n".join([json.dumps(row), *text.splitlines()[1:]]))
        task = find("xvnli")
        with pytest.raises(ValueError, match="xvnli in ar: 358 images where protocol official has 357"):
            task.test_set(DataFolder(tmp_path), "ar", task.protocol())

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "XVNLI/annotations/ar/test.jsonl"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\xff\xfe\x00" * 100)
        with pytest.raises(ValueError, match=r"test\.jsonl is cut, damaged or no UTF-8"):
            find("xvnli").items(DataFolder(tmp_path), "ar", "test")

    def test_part_of_a_test_is_scored_when_that_is_asked_for(self, bundle: Path, tmp_path: Path) -> None:
        rows = (bundle / "iglue/XVNLI/annotations/ar/test.jsonl").read_text(encoding="utf-8").splitlines()
        write(tmp_path / "XVNLI/annotations/ar/test.jsonl", "\n".join(rows[:100]))
        task = find("xvnli")
        assert len(task.test_set(DataFolder(tmp_path), "ar", task.protocol(), whole=False)) == 100

    def test_unknown_fields_are_tolerated(self, tmp_path: Path) -> None:
        row = {"gold_label": "neutral", "sentence2": "x", "pairID": "1", "Flickr30kID": "7", "added": {"later": 1}}
        write(tmp_path / "XVNLI/annotations/ar/test.jsonl", lines([row]))
        (found,) = find("xvnli").items(DataFolder(tmp_path), "ar", "test")
        assert found.images == ("7.jpg",)  # also where the key is spelt as it should be

    def test_a_zip_is_read_as_it_ships(self, bundle: Path, tmp_path: Path) -> None:
        """Training sets are zipped: XVNLI's lines, GQA's list."""
        rows = (bundle / "iglue/XVNLI/annotations/en/train_48.jsonl").read_text(encoding="utf-8")
        asked = [{"img_id": "n1", "question_id": "7", "sent": "Who?", "label": {"man": 1.0}}]
        for name, inner, text in (
            ("XVNLI/annotations/en", "train.jsonl", rows),
            ("gqa/annotations", "train.json", json.dumps(asked)),
        ):
            (tmp_path / name).mkdir(parents=True)
            with zipfile.ZipFile(tmp_path / name / f"{inner}.zip", "w") as archive:
                archive.writestr(inner, text)
                archive.writestr(f"__MACOSX/._{inner}", "no text")
        data = DataFolder(tmp_path)
        assert len(find("xvnli").items(data, "en", "train")) == 168
        assert [question.label for question in find("xgqa").items(data, "en", "train")] == ["man"]
        path = tmp_path / "XVNLI/annotations/en/train.jsonl.zip"
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(ValueError, match=r"train\.jsonl\.zip is no whole zip file"):
            find("xvnli").items(data, "en", "train")

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"has no XVNLI/annotations/ar/test\.jsonl; `cclm iglue check"):
            find("xvnli").items(DataFolder(tmp_path), "ar", "test")


class TestNames:
    @pytest.mark.parametrize(
        ("ask", "told"),
        [
            (lambda task: find("xvnl"), "no task 'xvnl'; did you mean 'xvnli'"),
            (lambda task: find("nothing/of.py"), r"no task file nothing/of\.py"),
            (lambda task: task.protocol("offical"), "no protocol 'offical'; did you mean 'official'"),
            (lambda task: task.source("tset", "de"), "no split 'tset'; did you mean 'test'"),
            (lambda task: task.source("test", "art"), "no test in language 'art'; did you mean 'ar'"),
        ],
    )
    def test_unknown_ones_are_answered_with_the_nearest(self, ask: Any, told: str) -> None:
        with pytest.raises(ValueError, match=told):
            ask(find("xvnli"))

    @pytest.mark.parametrize("name", names())
    def test_every_task_is_whole(self, name: str) -> None:
        task = find(name)
        assert task.name == name and task.about and task.origin
        assert len({protocol.name for protocol in task.protocols}) == len(task.protocols)
        for protocol in task.protocols:
            assert set(task.tested(protocol)) <= set(task.languages)
            assert set(task.counts.get(protocol.name, ())) <= set(task.tested(protocol))
            assert ("en" in task.averaged(protocol)) == (protocol.average_english and "en" in task.tested(protocol))

    def test_averages(self) -> None:
        """Without English, but for PaliGemma's README; few-shot points of MaRVL are of three languages only."""
        xgqa, marvl = find("xgqa"), find("marvl")
        sizes = {protocol.name: len(xgqa.averaged(protocol)) for protocol in xgqa.protocols}
        assert sizes == {"official": 7, "testdev": 7, "avg8": 8, "contains": 7}
        assert marvl.averaged(marvl.protocol()) == ("id", "sw", "ta", "tr", "zh")
        assert marvl.averaged(marvl.protocol(), few_shot=True) == ("id", "tr", "zh")
        assert find("wit").averaged(find("wit").protocol(), few_shot=True) == ()

    def test_a_task_of_no_use_is_refused(self) -> None:
        xvnli = find("xvnli")
        fields = {name: getattr(xvnli, name) for name in ("name", "about", "languages")}
        with pytest.raises(ValueError, match="protocol official scores split 'test', which has no source"):
            type(xvnli)(**fields, splits={}, protocols=xvnli.protocols)
        with pytest.raises(ValueError, match="has no protocol"):
            type(xvnli)(**fields, splits=xvnli.splits, protocols=())


def xgqa(data: DataFolder, language: str, protocol: str = "official") -> Questions:
    task: Task = find("xgqa")
    test = task.test_set(data, language, task.protocol(protocol))
    assert isinstance(test, Questions)
    return test


def linked(bundle: Path, tmp_path: Path) -> DataFolder:
    """The bundle's xGQA, to which files can be added."""
    for name in ("xGQA", "gqa"):
        shutil.copytree(bundle / "iglue" / name, tmp_path / "data/iglue" / name)
    return DataFolder(tmp_path / "data")


def marvl_row(number: int, label: Any) -> dict[str, Any]:
    images = {"left_img": "1-0.jpg", "right_img": "1-1.jpg"}
    return {"id": f"tr-{number}", "concept": "1-A", "language": "tr", "caption": "x", "label": label} | images


def lines(rows: list[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
