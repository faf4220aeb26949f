"""What people write, as terms; and what of it is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from cclm.retrieval.query import (
    MAX_CHARACTERS,
    MAX_TERMS,
    MAX_WEIGHT,
    MINUS_WEIGHT,
    ImageTerm,
    IndexedTerm,
    Query,
    TextTerm,
    VectorTerm,
)

M = -MINUS_WEIGHT


def parsed(text: str) -> list[tuple[str, float]]:
    return [(term.text, term.weight) for term in Query.parse(text).texts]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("beach -people", [("beach", 1), ("people", M)]),
        ('"red car"^2 -"blue car"', [("red car", 2), ("blue car", M)]),
        ("beach -people at sunset", [("beach at sunset", 1), ("people", M)]),  # words without a sign stay together
        ("dog^0.5 cat -bird^3", [("cat", 1), ("dog", 0.5), ("bird", -3)]),
        ('"red car"-"blue car" dog', [("dog", 1), ("red car", 1), ("blue car", M)]),
        ("  two\n dogs \t", [("two dogs", 1)]),
        ("well-known t-shirt", [("well-known t-shirt", 1)]),
        ("Paris - Texas", [("Paris - Texas", 1)]),
        ("go --fast ---", [("go --fast ---", 1)]),
        ("don't l’été 5\" screen", [("don't l’été 5\" screen", 1)]),
        ("-_- ^_^ dog", [("-_- ^_^ dog", 1)]),
        ("黑狗在雪地里", [("黑狗在雪地里", 1)]),
        ("犬\u3000－雪", [("犬", 1), ("雪", M)]),
        ("＂赤い車＂＾２ 犬", [("犬", 1), ("赤い車", 2)]),
        ("ラーメン −ビール", [("ラーメン", 1), ("ビール", M)]),
        ("สุนัข -หิมะ", [("สุนัข", 1), ("หิมะ", M)]),
        ("كلب -ثلج", [("كلب", 1), ("ثلج", M)]),
        ("كلب^٢", [("كلب", 2)]),
        ("\u200f-שלג כלב\u200e", [("כלב", 1), ("שלג", M)]),
        ('צה"ל -"חיל צה"ל"', [('צה"ל', 1), ('חיל צה"ל', M)]),
        ("می\u200cروم", [("می\u200cروم", 1)]),
        ("👩🏽\u200d🌾 -🐕", [("👩🏽\u200d🌾", 1), ("🐕", M)]),
        ("“red car” „rotes Auto“ „auto”", [("red car", 1), ("rotes Auto", 1), ("auto", 1)]),
        ('"dog^x -cat"', [("dog^x -cat", 1)]),
    ],
)
def test_what_people_write(text: str, terms: list[tuple[str, float]]) -> None:
    assert parsed(text) == terms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the query is empty; give a text, or the path"),
        (" \u200f ", "the query is empty"),
        ("-people -snow", "minus terms only; add a term without a minus"),
        ('dog "red car', "is not closed; close it, or leave it out"),
        ('dog -"', "is not closed"),
        ('dog "" ', "encloses nothing"),
        ("dog^much", "the weight 'much' of 'dog' in the query is no number; write a number from"),
        ("dog^1_0", "the weight '1_0' of 'dog' .* is no number"),
        ("dog^", "the weight '' of 'dog' .* is no number"),
        ("dog^0", "the weight of 'dog' in the query is 0; write"),
        ("dog^1e-320", "the weight of 'dog' in the query is 1e-320; write"),
        ("dog^-1", "the weight of 'dog' in the query is -1"),
        ("dog^nan", "the weight of 'dog' in the query is nan"),
        ("dog^1e9", "the weight of 'dog' in the query is 1e9"),
        (" ".join(f"w^{n + 1}" for n in range(MAX_TERMS + 1)), f"has {MAX_TERMS + 1} terms; give at most {MAX_TERMS}"),
        ("x" * (MAX_CHARACTERS + 1), f"has {MAX_CHARACTERS + 1} characters; give at most {MAX_CHARACTERS}"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Query.parse(text)
    assert "\n" not in str(caught.value)


signs = st.text(alphabet=list("ab -−－^＾\"＂“”„'12.\u3000\u200f\nא犬🐕_"), max_size=40)


@given(st.one_of(st.text(), signs))
@example('-"')
@example("^")
@example("-")
@example('"^')
def test_any_text_is_a_query_or_a_value_error(text: str) -> None:
    try:
        query = Query.parse(text)
    except ValueError as error:
        assert "\n" not in str(error).strip()
        return
    for term in query.texts:
        assert term.text.strip() == term.text != "" and 0 < abs(term.weight) <= MAX_WEIGHT
    assert Query.parse(text) == query


words = st.text(alphabet="abcé犬א'-", min_size=1, max_size=8).filter(
    lambda word: word[0] not in "-'" and not set(word) <= set("-'")
)


@given(st.lists(words, min_size=1, max_size=10))
def test_plain_words_are_one_text(given_words: list[str]) -> None:
    assert parsed(" ".join(given_words)) == [(" ".join(given_words), 1)]


@given(
    st.lists(words, min_size=1, max_size=4),
    st.lists(st.tuples(st.lists(words, min_size=1, max_size=3), st.booleans(), st.integers(1, 99)), max_size=5),
)
def test_terms_come_back_as_written(plain: list[str], others: list[tuple[list[str], bool, int]]) -> None:
    text = " ".join([*plain, *(f'{"-" * minus}"{" ".join(own)}"^{weight}' for own, minus, weight in others)])
    wanted = [(" ".join(own), -weight if minus else weight) for own, minus, weight in others]
    assert parsed(text) == [(" ".join(plain), 1), *wanted]


def test_terms_beside_a_text() -> None:
    image = ImageTerm(Image.new("RGB", (2, 2)))
    assert Query.parse("-people", [image]).terms == (TextTerm("people", M), image)
    assert Query.parse("", [IndexedTerm(3)]).terms == (IndexedTerm(3),)
    assert Query.of('-a ^0 "').terms == (TextTerm('-a ^0 "'),)
    assert Query.parse('a "b c"^2 -d^9').subject == "b c" and Query.parse("", [image]).subject is None


def test_an_embedding_is_the_weighted_sum_of_unit_ones() -> None:
    x, y = np.array([3.0, 0, 0]), np.array([0, 0.1, 0])
    found = Query((VectorTerm(x), VectorTerm(y, -0.5))).combined(np.stack([x, y]))
    assert np.allclose(found, np.array([1, -0.5, 0]) / np.sqrt(1.25)) and found.dtype == np.float32
    both = Query((VectorTerm(x), VectorTerm(x, -1.0)))
    with pytest.raises(ValueError, match="cancel each other out"):
        both.combined(np.stack([x, x]))
    for wrong in (np.zeros(3), np.array([np.nan, 0, 0])):
        with pytest.raises(ValueError, match="NaN, infinity or only zeros"):
            both.combined(np.stack([x, wrong]))


@pytest.mark.parametrize("weight", [0.0, 1e-320, -1e-7, float("nan"), float("inf"), -float("inf"), 1e9])
def test_weights_out_of_range(weight: float) -> None:
    with pytest.raises(ValueError, match=r"a weight is .*; give one from 1e-06 to 100"):
        Query((TextTerm("a"), TextTerm("b", weight)))
