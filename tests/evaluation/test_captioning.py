"""Captions against references: CIDEr by hand and by its package, words, languages."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
from pycocoevalcap.cider.cider import Cider
from sacrebleu.metrics import BLEU, CHRF

from cclm.evaluation import segmentation
from cclm.evaluation.captioning import cider, score_captions
from cclm.evaluation.items import Described, Descriptions
from cclm.evaluation.language_fidelity import CANDIDATES, Lingua
from cclm.evaluation.protocol import CaptioningProtocol
from cclm.evaluation.scoring import ScoreOptions
from cclm.evaluation.segmentation import description, words

PLAIN = ScoreOptions(draws=0)
LINGUA = Lingua()


def described(language: str, references: dict[str, list[str]]) -> Descriptions:
    return Descriptions(
        task="photos",
        language=language,
        protocol=CaptioningProtocol(name="all", about="all captions"),
        split="dev",
        described=tuple(Described(name, f"{name}.jpg", tuple(texts)) for name, texts in references.items()),
    )


@pytest.fixture(scope="module")
def photos(shared: Path) -> list[dict]:
    with gzip.open(shared / "photos" / "captions.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["split"] == "dev"]


def test_cider_by_hand() -> None:
    # "a" stands in the references of both images, so it weighs log(2 / 2) = 0; "dog" and "a dog" weigh log 2.
    same, without_article, other = ("a dog", 5.0), ("dog", 2.5 * math.exp(-1 / 72)), ("a cat", 0.0)
    # same: cosine 1 of one word and of two, 0 of three and four: 10 * (1 + 1) / 4. Without the article only of one
    # word, and a pair shorter: the penalty exp(-1 / (2 * 6 ** 2)).
    for caption, wanted in (same, without_article, other):
        found = cider([["a dog"], ["a bird"]], [caption, "a bird"])
        assert found == pytest.approx([wanted, 5.0]), caption


def test_the_scores_are_those_of_the_packages(photos: list[dict]) -> None:
    rows = [row for row in photos if len(row["captions"].get("de", ())) == 5][:200]
    test = described("de", {row["key"]: row["captions"]["de"][1:] for row in rows})
    scores = score_captions(test, {row["key"]: row["captions"]["de"][0] for row in rows}, PLAIN).result.scores

    def plain(text: str) -> str:  # written another way than ours, for German
        return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())

    theirs = {row["key"]: [plain(text) for text in row["captions"]["de"][1:]] for row in rows}
    own = {row["key"]: [plain(row["captions"]["de"][0])] for row in rows}
    assert scores["CIDEr"] == pytest.approx(100 * Cider().compute_score(theirs, own)[0])
    streams = [[row["captions"]["de"][place].lower() for row in rows] for place in range(1, 5)]
    assert scores["chrF"] == pytest.approx(
        CHRF().corpus_score([r["captions"]["de"][0].lower() for r in rows], streams).score
    )
    streams = [[plain(text) for text in stream] for stream in streams]
    bleu = BLEU(tokenize="none", force=True).corpus_score([text for (text,) in own.values()], streams)
    assert scores["BLEU-4"] == pytest.approx(bleu.score)
    assert 30 < scores["CIDEr"] < 150 and scores["fidelity"] > 95


def test_intervals_hold_the_score_and_signatures_are_told(photos: list[dict]) -> None:
    rows = photos[:120]
    test = described("en", {row["key"]: row["captions"]["en"][1:] for row in rows})
    given = {row["key"]: row["captions"]["en"][0] for row in rows}
    scored = score_captions(test, given, ScoreOptions(draws=200))
    for name in ("CIDEr", "BLEU-4", "chrF", "fidelity"):
        low, high = scored.result.scores[f"{name}_interval"]
        assert low <= scored.result.scores[name] <= high and high - low < 40, name
    notes = "\n".join(scored.result.notes)
    assert "BLEU-4: nrefs:4|bs:200|seed:12345|case:lc|eff:no|tok:none|smooth:exp|version:" in notes
    assert "chrF: nrefs:4|" in notes and "lingua" in notes
    json.dumps(scored.result.to_dict(), allow_nan=False)
    again = score_captions(test, given, ScoreOptions(draws=200))
    assert again == scored


def test_images_may_have_other_numbers_of_references() -> None:
    test = described("en", {"1": ["a dog runs in the snow"], "2": ["a cat", "the cat sleeps on a sofa"]})
    given = {"1": "a dog runs in the snow", "2": "the cat sleeps on a sofa"}
    scores = score_captions(test, given, PLAIN).result.scores
    assert scores["BLEU-4"] == pytest.approx(100) and scores["chrF"] == pytest.approx(100)


def test_empty_captions_are_counted_and_cost() -> None:
    references = {str(number): [f"a dog of colour {number} runs in the snow"] for number in range(4)}
    full = {name: texts[0] for name, texts in references.items()}
    test = described("en", references)
    whole, lacking = (score_captions(test, given, PLAIN).result for given in (full, full | {"0": " "}))
    assert whole.scores["empty"] == 0 and lacking.scores["empty"] == 1
    assert "empty captions: 1" in lacking.notes
    assert lacking.scores["fidelity"] == pytest.approx(75)
    assert lacking.scores["CIDEr"] == pytest.approx(0.75 * whole.scores["CIDEr"])
    nothing = score_captions(test, dict.fromkeys(full, ""), ScoreOptions(draws=10)).result.scores
    assert [nothing[name] for name in ("CIDEr", "BLEU-4", "chrF", "fidelity")] == [0, 0, 0, 0]


def test_references_without_a_word_are_refused() -> None:
    test = described("en", {"1": ["?"], "2": ["!"]})
    with pytest.raises(
        ValueError, match=r"the references in en hold no word \('\?' \.\.\); score captions against texts"
    ):
        score_captions(test, {"1": "a", "2": "?"}, PLAIN)


def test_a_caption_for_each_image_and_no_other() -> None:
    test = described("en", {"1": ["a dog"], "2": ["a cat"]})
    with pytest.raises(ValueError, match="1 of 2 images have no prediction, first '2'"):
        score_captions(test, {"1": "a dog"})


def test_words() -> None:
    assert words("L'homme, « GRAND » et l’autre: vélo-cross!", "fr") == "l homme grand et l autre vélo cross".split()
    assert words("a man 's hat .", "en") == words("A man's hat", "en")
    assert words("घोड़े पर बैठा आदमी।", "hi") == [
        "घोड़े",
        "पर",
        "बैठा",
        "आदमी",
    ]  # vowel signs and nukta are marks, not punctuation
    assert (
        words("穿着连衣裙的小女孩。", "zh")
        == ["穿着", "连衣裙", "的", "小女孩"]
        == words("穿着连衣裙的小女孩。", "zh-hans")
    )
    assert words("小さな女の子が階段を上っている。", "ja")[:4] == ["小さな", "女の子", "が", "階段"]
    assert words("เด็กหญิงตัวเล็กกำลังปีนบันได", "th") == ["เด็กหญิง", "ตัวเล็ก", "กำลัง", "ปีน", "บันได"]
    assert words("می\u200cرود", "fa") == ["میرود"]  # a joiner stands within the word
    assert words("", "zh") == words("...", "ja") == words(" ", "th") == []
    assert "jieba 0." in description("zh") and "segmented" not in description("de")


def test_segmentation_decides_the_score_of_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    test = described("zh", {"1": ["穿着连衣裙的小女孩。"], "2": ["一只黑狗在雪地里奔跑。"]})
    given = {"1": "小女孩穿着红色连衣裙。", "2": "黑狗在雪地里。"}
    segmented = score_captions(test, given, PLAIN).result.scores
    monkeypatch.setattr(segmentation, "SEGMENTERS", {})  # as when tokens are joined without blanks: a caption is a word
    segmentation._segmenter.cache_clear()
    try:
        joined = score_captions(test, given, PLAIN).result.scores
    finally:
        segmentation._segmenter.cache_clear()
    assert segmented["CIDEr"] > 50 and joined["CIDEr"] == 0
    assert segmented["chrF"] == joined["chrF"]  # it counts characters


def test_what_cannot_be_segmented_is_refused() -> None:
    with pytest.raises(ValueError, match="km set no blanks between words, and nothing here segments them"):
        words("ឆ្កែ", "km")


def test_a_package_that_lacks_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    test = described("en", {"1": ["a dog"], "2": ["a cat"]})
    given = {"1": "a dog", "2": "a cat"}
    for module, package in (
        ("pycocoevalcap.cider.cider", "pycocoevalcap"),
        ("sacrebleu.metrics", "sacrebleu"),
        ("lingua", "lingua-language-detector"),
    ):
        with monkeypatch.context() as patched:
            patched.setitem(__import__("sys").modules, module, None)
            with pytest.raises(ValueError, match=rf"{package}, which is not here; pip install 'cclm\[pivot\]'"):
                score_captions(test, given, PLAIN)


def test_languages_of_human_captions_are_told(photos: list[dict]) -> None:
    """The ceiling of fidelity: what people wrote counts as their language."""
    for language, kind in (
        ("en", "captions"),
        ("de", "captions"),
        ("pt", "captions"),
        ("fr", "parallel"),
        ("cs", "parallel"),
    ):
        texts = [row[kind][language] for row in photos if language in row[kind]][:300]
        texts = [text[0] if isinstance(text, list) else text for text in texts]
        found = LINGUA.identify(texts)
        assert sum(name == language for name in found) / len(found) > 0.98, language
    assert LINGUA.identify(["", " ", "?!"]) == [None, None, None]


def test_a_captioner_that_answers_in_english_has_no_fidelity(photos: list[dict]) -> None:
    rows = [row for row in photos if "de" in row["captions"]][:300]
    test = described("de", {row["key"]: row["captions"]["de"] for row in rows})
    scored = score_captions(test, {row["key"]: row["captions"]["en"][0] for row in rows}, PLAIN, LINGUA)
    assert scored.result.scores["fidelity"] <= 1 and scored.result.scores["fidelity_ceiling"] > 98
    assert any(note.startswith("captions in others: 29") and " en" in note for note in scored.result.notes)
    assert sum(item["language"] == "en" for item in scored.items) > 290
    assert not any(item["faithful"] for item in scored.items if item["language"] == "en")


def test_near_languages_stay_apart() -> None:
    texts = {
        "no": "En liten jente klatrer opp trappene til lekehytta si, og en gutt ser på",
        "da": "En lille pige klatrer op ad trappen til sit legehus, mens en dreng kigger på",
        "sv": "En liten flicka klättrar uppför trappan till sin lekstuga medan en pojke tittar på",
        "fil": "Isang maliit na batang babae ang umaakyat sa hagdan ng kanyang bahay-bahayan",
    }
    assert LINGUA.identify(list(texts.values())) == list(texts)
    assert len(set(CANDIDATES)) == len(CANDIDATES) and "quz" not in CANDIDATES


def test_fidelity_of_a_language_that_nobody_tells_is_not_made_up() -> None:
    test = described("quz", {"1": ["Huk warmi sayachkan"], "2": ["Iskay allqu"]})
    scored = score_captions(test, {"1": "Huk warmi", "2": "Iskay allqu"}, PLAIN)
    assert "fidelity" not in scored.result.scores and scored.result.scores["CIDEr"] > 0
    assert any(note.startswith("fidelity: not measured, as quz is not told apart") for note in scored.result.notes)
