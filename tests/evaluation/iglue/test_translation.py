"""Translation models of four families: each is told the languages as it was trained to hear them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from cclm.evaluation.items import Caption, Captions, Question, Questions, Sentence, Sentences
from cclm.evaluation.protocol import ClassificationProtocol, Protocol, RetrievalProtocol
from cclm.evaluation.translation import TranslationOptions, Translator
from tests.evaluation.iglue import models

TEXTS = ["ein roter Block", "zwei Blöcke", "", "ein sehr langer Text von einem grünen Block", "zwei Blöcke"]
CPU = torch.device("cpu")
# family -> first and last token of a German text, first token of English
TOLD = {
    "nllb": ("deu_Latn", "</s>", "eng_Latn"),
    "m2m100": ("__de__", "</s>", "__en__"),
    "mbart": ("de_DE", "</s>", "en_XX"),
    "marian": (None, "</s>", None),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in folders:
            extra = ("de",) if family == "marian" else ()
            folders[family] = getattr(models, family)(tmp_path_factory.mktemp(family), TEXTS, *extra)
        return folders[family]

    return make


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", TOLD)
def test_what_is_translated_equals_the_model_told_by_hand_one_by_one(
    made: Callable[[str], Path], family: str, beams: int
) -> None:
    folder = made(family)
    first, last, english = TOLD[family]
    options = TranslationOptions(beams=beams, batch=2, max_tokens=12)
    found = Translator.open(str(folder), CPU, options=options).translate(TEXTS, "de")
    model, words = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    forced = {"forced_bos_token_id": words.convert_tokens_to_ids(english)} if english else {}
    for text, translation in zip(TEXTS, found, strict=True):
        if not text:
            assert translation == ""
            continue
        tokens = [*([first] if first else []), *words.tokenize(text), last]
        ids = torch.tensor([words.convert_tokens_to_ids(tokens)])
        assert words.unk_token_id not in ids
        with torch.inference_mode():
            wanted = model.generate(ids, num_beams=beams, do_sample=False, max_new_tokens=12, **forced)
        assert translation == words.decode(wanted[0], skip_special_tokens=True).strip()
    assert len(set(found)) > 2 and found[1] == found[4]


def questions(language: str) -> Questions:
    return Questions(
        task="asked",
        language=language,
        protocol=ClassificationProtocol(name="official", about=""),
        split="test",
        questions=tuple(Question(f"q{row}", ("a.jpg",), text, "yes") for row, text in enumerate(TEXTS)),
        labels=("yes", "no"),
    )


def test_a_test_keeps_all_but_its_texts(made: Callable[[str], Path]) -> None:
    translator = Translator.open(str(made("nllb")), CPU, options=TranslationOptions(beams=1, max_tokens=8))
    test = questions("de")
    found = translator.translated(test)
    assert found.ids == test.ids and found.language == "de" and found.labels == test.labels
    assert [item.text for item in found.questions] == translator.translate(TEXTS, "de") != TEXTS
    captions = Captions(
        task="said",
        language="ru",
        protocol=RetrievalProtocol(name="official", about=""),
        split="test",
        captions=(Caption("1", "a.jpg", TEXTS[0]),),
        gallery=("a.jpg",),
    )
    assert translator.translated(captions).captions[0].text == translator.translate(TEXTS[:1], "ru")[0]


def test_translations_are_kept_by_what_they_depend_on(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TranslationOptions(beams=1, max_tokens=8)
    first = Translator.open(str(made("nllb")), CPU, tmp_path, options).translate(TEXTS, "de")
    again = Translator.open(str(made("nllb")), CPU, tmp_path, options)
    monkeypatch.setattr(again, "_generate", None)  # nothing is translated
    assert again.translate(TEXTS, "de") == first
    Translator.open(str(made("nllb")), CPU, tmp_path, options).translate(TEXTS, "ru")
    Translator.open(str(made("nllb")), CPU, tmp_path, TranslationOptions(beams=2, max_tokens=8)).translate(TEXTS, "de")
    Translator.open(str(made("mbart")), CPU, tmp_path, options).translate(TEXTS, "de")
    kept = sorted((tmp_path / "translations").iterdir())
    assert [path.name[:3] for path in kept] == ["de-", "de-", "de-", "ru-"]
    for path in kept:
        path.write_text("{}")
    with pytest.raises(ValueError, match="is damaged .* remove it"):
        again.translate(TEXTS, "de")


@pytest.mark.parametrize(
    ("family", "language"), [("nllb", "quz"), ("mbart", "sq"), ("m2m100", "quz"), ("marian", "ru")]
)
def test_a_language_that_a_model_has_not_is_refused(made: Callable[[str], Path], family: str, language: str) -> None:
    translator = Translator.open(str(made(family)), CPU)
    with pytest.raises(ValueError, match=f"from {language}; give another model"):
        translator.check(questions(language))


@pytest.mark.parametrize("source", ["deu", "mul", "gem", None])
def test_marian_models_of_the_language_or_a_group_are_taken(source: str | None, tmp_path: Path) -> None:
    Translator.open(str(models.marian(tmp_path, TEXTS, source)), CPU).check(questions("de"))


def test_what_is_no_translation_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="translates to fr; give a model that translates to English"):
        Translator.open(str(models.marian(tmp_path / "french", TEXTS, "de", "fr")), CPU)
    with pytest.raises(ValueError, match="is a model of type clip; give a Marian, M2M100, NLLB or mBART"):
        Translator.open(str(models.clip(tmp_path / "clip", TEXTS)), CPU)
    with pytest.raises(ValueError, match="no translation model at"):
        Translator.open(str(tmp_path / "absent"), CPU)
    with pytest.raises(ValueError, match="beams is 0"):
        TranslationOptions(beams=0)


def test_sentences_are_not_translated(made: Callable[[str], Path]) -> None:
    sentences = Sentences(
        task="pairs",
        language="de",
        protocol=Protocol(name="official", about=""),
        split="test",
        sentences=(Sentence("1", "ein", "a"),),
    )
    with pytest.raises(ValueError, match="there is nothing to translate"):
        Translator.open(str(made("mbart")), CPU).check(sentences)
