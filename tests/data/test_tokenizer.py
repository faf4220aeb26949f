"""A trained tokenizer: XLM-R's ids, sentencepiece's own pieces, the same through save and load."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cclm.data.tokenizer import balance, normalizer, train_tokenizer, train_unigram, wrap

SENTENCES = [
    "A brown dog runs through the tall grass.",
    "Ein Mädchen mit rotem Kleid steigt die Treppe hinauf.",
    "Un homme  lit le journal dans l’autobus.",
    "Девочка играет с кошкой на кухне.",
    "طفلة صغيرة تتسلق الدرج إلى منزلها",
    "गुलाबी पोशाक में बच्चा सीढ़ियाँ चढ़ रहा है।",
    "穿着粉红色连衣裙的小女孩走上楼梯。",
    "ﾋﾟﾝｸのドレスを着た女の子が階段を上る。",
    "분홍색 드레스를 입은 아이가 계단을 오른다.",
    "เด็กในชุดสีชมพูกำลังขึ้นบันได",
    "இளஞ்சிவப்பு உடையில் ஒரு குழந்தை",
    "গোলাপি পোশাকে একটি শিশু সিঁড়ি বেয়ে উঠছে",
]
UNSEEN = ["Zwei Hunde jagen ½ Ball", "ΑΒΓ unknown ☃☃ snow", "　full width　ｓｐａｃｅ ", "", "a" * 300, "x\ty\nz"]
SIZE = 212


@pytest.mark.parametrize("lowercase", [False, True])
def test_pieces_are_those_of_sentencepiece(lowercase: bool) -> None:
    unigram = train_unigram(SENTENCES * 3, SIZE, lowercase=lowercase, character_coverage=1.0)
    source, fast = sentencepiece.SentencePieceProcessor(model_proto=unigram), wrap(unigram, lowercase=lowercase)
    for sentence in SENTENCES + UNSEEN:
        expected = source.encode(normalizer(lowercase).normalize_str(sentence))
        assert fast(sentence)["input_ids"] == [0, *expected, 2], sentence


def test_pieces_are_those_of_sentencepiece_on_real_captions(shared: Path) -> None:
    from data_recipes import parallel_text

    table = parallel_text.records(shared / "parallel" / "captions_en-de-fr-cs-pt.tsv.gz")
    sentences = [text for _, (_, record) in zip(range(400), table, strict=False) for text in record.parallel.values()]
    unigram = train_unigram(sentences[:1500], 2000, lowercase=True, character_coverage=0.9995)
    source, fast = sentencepiece.SentencePieceProcessor(model_proto=unigram), wrap(unigram, lowercase=True)
    tidy = normalizer(True)
    expected = source.encode([tidy.normalize_str(sentence) for sentence in sentences])
    assert fast(sentences)["input_ids"] == [[0, *ids, 2] for ids in expected]


def test_special_ids_are_those_of_xlm_r_after_a_round_trip(tmp_path: Path) -> None:
    trained = train_tokenizer(SENTENCES, tmp_path / "t", SIZE)
    for loaded in (
        AutoTokenizer.from_pretrained(tmp_path / "t"),
        PreTrainedTokenizerFast.from_pretrained(tmp_path / "t"),
    ):
        assert loaded.is_fast and len(loaded) == SIZE
        assert loaded.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, SIZE - 1]
        names = ("cls", "bos", "pad", "sep", "eos", "unk", "mask")
        assert [getattr(loaded, f"{name}_token_id") for name in names] == [0, 0, 1, 2, 2, 3, SIZE - 1]
        assert loaded(SENTENCES)["input_ids"] == trained(SENTENCES)["input_ids"]
        assert loaded.decode(loaded(SENTENCES[0])["input_ids"], skip_special_tokens=True) == SENTENCES[0]
        assert loaded("the <mask> runs")["input_ids"].count(SIZE - 1) == 1
        pair = loaded(SENTENCES[0], SENTENCES[1])["input_ids"]
        assert [pair[0], pair[-1], pair.count(2)] == [0, 2, 3]
        padded = loaded(SENTENCES[:4], padding=True)
        assert set(padded) == {"input_ids", "attention_mask"}
        assert all(row[0] == 0 and 2 in row for row in padded["input_ids"])


def test_every_character_is_spelled_and_case_is_kept_or_not(tmp_path: Path) -> None:
    kept = train_tokenizer(SENTENCES, tmp_path / "kept", SIZE)
    assert all(3 not in ids for ids in kept(SENTENCES)["input_ids"])
    folded = train_tokenizer(SENTENCES, tmp_path / "folded", SIZE, lowercase=True)
    assert folded("A DOG")["input_ids"] == folded("a dog")["input_ids"]
    assert kept("A DOG")["input_ids"] != kept("a dog")["input_ids"]


def test_a_language_model_s_tokenizer_has_tags_and_a_chat_template(tmp_path: Path) -> None:
    languages = ["de", "en", "ja", "th", "zh"]
    size = SIZE + len(languages)
    train_tokenizer(SENTENCES, tmp_path / "t", size, languages=languages)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert len(loaded) == size
    tags = loaded.convert_tokens_to_ids([f"<2{language}>" for language in languages])
    assert [*tags, loaded.mask_token_id] == list(range(size - 6, size))
    for source, target, place in ((0, 6, 4), (6, 7, 2), (7, 9, 3), (9, 1, 0)):  # to zh, ja, th, de
        said = SENTENCES[source] + f"<2{languages[place]}>"
        ids = loaded.apply_chat_template([{"role": "user", "content": said}], return_dict=False)
        assert ids == [*loaded(SENTENCES[source])["input_ids"][:-1], tags[place]]  # <s> text <2de>
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": SENTENCES[target]}]
        answer = loaded.apply_chat_template(turns, return_dict=False)[len(ids) :]
        assert answer == loaded(SENTENCES[target])["input_ids"][1:]  # text </s>
        assert 3 not in answer and loaded.decode(answer, skip_special_tokens=True) == normalizer(False).normalize_str(
            SENTENCES[target]
        )
    assert len(loaded.tokenize("<image>")) > 1  # a mark that the processor sees before the tokenizer does
    # The default is what it was: no tags, no template.
    plain = train_tokenizer(SENTENCES, tmp_path / "plain", SIZE)
    assert plain.chat_template is None
    assert len(plain.tokenize("<2de>")) > 1


def test_the_same_text_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_tokenizer(balance({"all": SENTENCES}, 0.5), tmp_path / name, SIZE)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1] and "tokenizer.json" in files[0]


def test_small_languages_get_their_share() -> None:
    texts = {"en": [f"e{n}" for n in range(9000)], "sw": [f"s{n}" for n in range(90)], "xx": []}
    for temperature, share in ((1.0, 90 / 9090), (0.5, 1 / 11), (0.0, 0.5)):
        counts = Counter(text[0] for text in balance(texts, temperature))
        assert counts["s"] / counts.total() == pytest.approx(share, abs=1e-3)
        assert counts.total() == pytest.approx(9090, abs=2)
    assert list(balance(texts, 0.5)) == list(balance(dict(reversed(texts.items())), 0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"vocab_size": 100_000},
            r"no vocabulary of vocab_size=100000 comes out of this text \(it yields \d+ pieces at most\): choose",
        ),
        (
            {"vocab_size": 60},
            r"no vocabulary of vocab_size=60 comes out of this text \(its characters alone are \d+ pieces\)",
        ),
        ({"vocab_size": 3}, r"vocab_size=3 is too small"),
        ({"vocab_size": SIZE, "character_coverage": 1.5}, r"character_coverage=1\.5 is outside 0\.\.1"),
    ],
)
def test_wrong_settings_are_one_line_and_leave_nothing(
    tmp_path: Path, arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        train_tokenizer(SENTENCES, tmp_path / "t", **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "t").exists()


def test_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"comes out of this text \(it is empty\)"):
        train_tokenizer([], tmp_path / "t", SIZE)


def test_wrong_temperature_is_named() -> None:
    with pytest.raises(ValueError, match=r"temperature=2 is outside 0\.\.1"):
        list(balance({"en": ["a"]}, 2))
