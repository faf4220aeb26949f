"""Prompts of pairs: marks of pictures, languages, chat templates, what is learned of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from cclm.data.batches import BatchStream, StreamConfig
from cclm.data.pairs import ImageCaption, PairDrawer, Statements, Translation, UnwantedError
from cclm.data.readers import PixelReader
from cclm.data.shards import write_shards
from cclm.data.stream import Share
from cclm.data.tokenizer import train_tokenizer
from cclm.models.processor import ImageSettings, read_tokenizer
from cclm.pivot.processor import PivotProcessor, PivotProcessorSettings
from cclm.pivot.prompts import Frame, PromptMaker, Template, language_name
from cclm.types import VISUAL, PromptBatch, Record, Statement, VisualPromptBatch
from tests.data.conftest import WORDS, image_records, picture, sentence, text_records

CAPTION, TRANSLATION = "<image><2{code}>", "{text}<2{code}>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [sentence(language, number) for language in WORDS for number in range(200)]
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(texts, folder, 100, languages=sorted(WORDS))
    return folder


@pytest.fixture
def processor(folder: Path) -> PivotProcessor:
    return PivotProcessorSettings(str(folder), ImageSettings(image_size=32), max_tokens=40).build(visual_states=3)


def stream(processor: PivotProcessor, shards: Path, pairs: PairDrawer, prompt: str) -> BatchStream:
    config = StreamConfig(str(shards), pairs, 4, prompt=prompt)
    return BatchStream("own", config, processor, PixelReader(processor, train=False), 0, Share())


def test_captions_become_prompts_about_their_pictures(processor: PivotProcessor, tmp_path: Path) -> None:
    write_shards(image_records(20), tmp_path / "photos")
    batch = next(stream(processor, tmp_path / "photos", ImageCaption(["de"]), CAPTION))
    assert isinstance(batch, VisualPromptBatch)
    assert batch.images.pixel_values.shape == (4, 3, 32, 32)
    prompts = batch.prompts
    assert ((prompts.input_ids == VISUAL).sum(1) == 3).all()
    captions = {record.key: record.captions["de"] for record in image_records(20)}
    for key, ids, labels, mask in zip(
        batch.keys, prompts.input_ids, prompts.labels, prompts.attention_mask, strict=True
    ):
        answer = labels[labels != -100]
        assert torch.equal(ids[labels != -100], answer)
        assert answer[-1] == processor.tokenizer.eos_token_id
        assert processor.decode([answer.tolist()])[0] in captions[key]
        asked = ids[mask & (labels == -100) & (ids != VISUAL)].tolist()
        assert processor.tokenizer.convert_ids_to_tokens(asked) == ["<s>", "<2de>"]


def test_sentences_become_prompts_to_translate(processor: PivotProcessor, tmp_path: Path) -> None:
    write_shards(text_records(40), tmp_path / "texts")
    batch = next(stream(processor, tmp_path / "texts", Translation(), TRANSLATION))
    assert type(batch) is PromptBatch
    by_text = {text: record.parallel for record in text_records(40) for text in record.parallel.values()}
    for ids, labels in zip(batch.prompts.input_ids, batch.prompts.labels, strict=True):
        answered = processor.decode([labels[labels != -100].tolist()])[0]
        asked = ids[labels == -100].tolist()
        (tag,) = [t for t in processor.tokenizer.convert_ids_to_tokens(asked) if t.startswith("<2")]
        assert by_text[processor.decode([asked])[0]][tag[2:4]] == answered


def test_a_statement_is_asked_and_its_label_answered(processor: PivotProcessor, tmp_path: Path) -> None:
    said = (Statement({"en": "red houses"}, {"two": 0.3, "three": 1.0}),)
    records = (Record(f"k{n}", picture(n), statements=said, others=(picture(n + 1),)) for n in range(8))
    write_shards(records, tmp_path / "asked")
    batch = next(stream(processor, tmp_path / "asked", Statements(), "<image><image>{text}<2{code}>"))
    assert isinstance(batch, VisualPromptBatch)
    assert batch.images.pixel_values.shape == (8, 3, 32, 32)
    labels = batch.prompts.labels[0]
    assert processor.decode([labels[labels != -100].tolist()]) == ["three"]
    assert "red houses" in processor.decode([[i for i in batch.prompts.input_ids[0].tolist() if i != VISUAL]])[0]


@pytest.mark.parametrize("prompt, said", [("<2{code}>", "0 mark"), ("<image><image><2{code}>", "2 mark")])
def test_marks_and_pictures_must_agree(processor: PivotProcessor, tmp_path: Path, prompt: str, said: str) -> None:
    write_shards(image_records(8), tmp_path / "photos")
    with pytest.raises(ValueError, match=f"stream own: .*{said}.*1 picture.*give it one for each"):
        next(stream(processor, tmp_path / "photos", ImageCaption(["en"]), prompt))
    with pytest.raises(ValueError, match="for 0 picture"):
        processor.prompt("<image>{text}", "en", "ein Hund")


def test_what_is_wrong_with_a_prompt_is_told(processor: PivotProcessor) -> None:
    with pytest.raises(ValueError, match=r"has a field \{colour\}; there are \{text\}, \{language\}, \{code\}"):
        processor.form("a {colour} <image>")
    with pytest.raises(ValueError, match="prompt is empty"):
        processor.form("  ")
    with pytest.raises(ValueError, match="language 'sw' is unknown to this model; it has tags for de, en, fr"):
        processor.prompt(TRANSLATION, "sw", "Hund")
    with pytest.raises(ValueError, match="language 'qqq' is unknown"):
        processor.prompt("{text} in {language}", "qqq", "Hund")


def test_texts_are_cut_where_a_character_is_many_tokens(tmp_path: Path) -> None:
    """A byte-level tokenizer, as of Qwen and Llama 3, that has merged nothing: a Thai letter is three tokens."""
    inner = Tokenizer(BPE({letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer, inner.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    whole = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<e>", pad_token="<p>")
    maker = PromptMaker(whole, "plain", 0, max_tokens=12)
    thai = "แมวตัวใหญ่"
    assert len(whole(thai).input_ids) == 30 and len(thai) <= 12
    cut, kept = maker.prompts_of(Template("{text}"), [thai, "a cat"], ["th", "en"])
    assert whole.decode(cut).strip() == thai[:4] and whole.decode(kept).strip() == "a cat"


def test_languages_are_named_in_english() -> None:
    assert [language_name(code) for code in ("de", "zh", "tr")] == ["German", "Chinese", "Turkish"]


def test_a_text_with_braces_is_left_alone(processor: PivotProcessor) -> None:
    plain = processor.prompt(TRANSLATION, "de", "dog {language} {0}")
    assert plain.count(processor.tokenizer.unk_token_id) == processor.prompt(TRANSLATION, "de", "dog {code} {0}").count(
        processor.tokenizer.unk_token_id
    )
    assert "German" not in processor.decode([plain])[0]


def test_long_texts_are_cut_and_their_prompts_stay_whole(processor: PivotProcessor) -> None:
    short = processor.form(TRANSLATION, 5)
    long = next(record for record in text_records(24) if len(record.parallel["en"].split()) > 10)
    (pair,) = Translation(["de"], anchor="en", swap=0).draw(long, random.Random(0))
    (tokens,) = short.tokens([pair])
    names = processor.tokenizer.convert_ids_to_tokens(tokens.first)
    assert len(names) == 7 and names[0] == "<s>" and names[-1] == "<2de>"
    assert len(tokens.second) == 6 and tokens.second[-1] == processor.tokenizer.eos_token_id


def test_padding_on_the_left_ends_every_prompt_at_the_same_place(processor: PivotProcessor) -> None:
    rows = [processor.prompt(TRANSLATION, "de", text) for text in ("dog", "a dog runs over green grass")]
    batch = processor.prompts(rows, left=True)
    assert (batch.labels == -100).all()
    for row, ids, mask in zip(rows, batch.input_ids, batch.attention_mask, strict=True):
        assert ids[mask].tolist() == row and mask[-1]


def test_a_tokenizer_without_chat_template_has_a_clear_rule(folder: Path) -> None:
    tokenizer = read_tokenizer(str(folder))
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template.*processor.chat_template to plain"):
        Frame.of(tokenizer, "own")
    assert Frame.of(tokenizer, "plain") == Frame("<s>", "\n", "</s>")
    tokenizer.chat_template = "{{ bos_token }}nothing"
    with pytest.raises(ValueError, match="leaves out what is said"):
        Frame.of(tokenizer, "own")
    with pytest.raises(ValueError, match="allowed: own, plain"):
        Frame.of(tokenizer, "chatml")


def test_a_chat_template_frames_what_is_said(folder: Path) -> None:
    tokenizer = read_tokenizer(str(folder))
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert Frame.of(tokenizer, "own") == Frame("[user]", "[end]\n[assistant]", "[end]")


def test_the_saved_processor_prompts_alike(processor: PivotProcessor, tmp_path: Path) -> None:
    processor.template = CAPTION
    processor.save_pretrained(tmp_path)
    loaded = PivotProcessor.from_pretrained(tmp_path)
    assert loaded.template == CAPTION and loaded.visual_states == 3
    assert loaded.prompt(CAPTION, "fr", pictures=1) == processor.prompt(CAPTION, "fr", pictures=1)
    (tmp_path / "pivot_processor.json").write_text('{"image": 3}')
    with pytest.raises(ValueError, match="damaged"):
        PivotProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no pivot_processor.json"):
        PivotProcessor.from_pretrained(tmp_path / "none")


def test_only_a_share_of_the_records_is_read_and_always_the_same() -> None:
    records = list(image_records(400))

    def read(seed: int) -> set[str]:
        drawer, found = ImageCaption(["en"], share=0.25), set()
        for record in records:
            try:
                found |= {pair.key for pair in drawer.draw(record, random.Random(seed))}
            except UnwantedError as error:
                assert "share" in error.reason
        return found

    assert read(0) == read(1)
    assert 70 < len(read(0)) < 130
    with pytest.raises(ValueError, match="share=0"):
        ImageCaption(share=0)


def test_translations_can_stand_for_captions() -> None:
    record = Record("k", b"", captions={"en": ["a dog"]}, parallel={"en": "a dog", "cs": "pes"})
    (pair,) = ImageCaption(["cs"], texts="parallel").draw(record, random.Random(0))
    assert (pair.target, pair.languages) == ("pes", (None, "cs"))
