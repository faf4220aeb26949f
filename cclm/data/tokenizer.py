"""Trains a tokenizer: a sentencepiece unigram vocabulary with XLM-R's special ids, ready for transformers."""

from __future__ import annotations

import io
import logging
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.storage import check_replaceable, whole_folder

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

# Their place in this tuple is their id; <mask> takes the last id of the vocabulary.
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
MASK_TOKEN = "<mask>"
# A prompt is what the user says, an answer what follows up to </s>; the same text is read whatever came before it.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ bos_token + message['content'] }}{% endif %}"
    "{% endfor %}"
)
FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.jinja",
)
LONGEST_SENTENCE = 4096  # bytes; sentencepiece leaves out what is longer


def tag(language: str) -> str:
    """The token that asks for an answer in `language`."""
    return f"<2{language}>"


def normalizer(lowercase: bool) -> Normalizer:
    """What happens to a text before it is cut: NFKC, one space between words, lower case if asked for.

    Training and use share this very object, so that a text can never be normalised in two ways.
    """
    from tokenizers import Regex, normalizers

    steps = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    return normalizers.Sequence([*steps, normalizers.Lowercase()] if lowercase else steps)


def balance(sentences: Mapping[str, Sequence[str]], temperature: float, seed: int = 0) -> Iterator[str]:
    """As many sentences as given, a language's share being proportional to its count ** `temperature`.

    1 keeps the counts, 0 gives every language the same. Small languages repeat, large ones are sampled.
    """
    if not 0 <= temperature <= 1:
        raise ValueError(f"tokenizer: temperature={temperature} is outside 0..1: 1 keeps the languages' own shares")
    counts = {language: len(texts) for language, texts in sorted(sentences.items()) if texts}
    weights = {language: count**temperature for language, count in counts.items()}
    for language, weight in weights.items():
        texts = list(sentences[language])
        random.Random(f"{seed} {language}").shuffle(texts)
        wanted = max(1, round(sum(counts.values()) * weight / sum(weights.values())))
        log.info("%s: %d sentences, %d after balancing", language, len(texts), wanted)
        for index in range(wanted):
            yield texts[index % len(texts)]


def _reason(message: str, others: int) -> str:
    """Sentencepiece's complaint in the user's terms; its counts leave out the `others`."""
    if largest := re.search(r"value <= (\d+)", message):
        return f"it yields {int(largest[1]) + others} pieces at most"
    if smallest := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"its characters alone are {int(smallest[1]) + others} pieces"
    return "it is empty" if "sentences_.empty()" in message else message.strip().splitlines()[-1]


def train_unigram(
    sentences: Iterable[str], vocab_size: int, *, lowercase: bool, character_coverage: float, others: int = 1
) -> bytes:
    """A sentencepiece model that expects text from `normalizer`, serialised.

    It has `vocab_size` pieces but for the `others`, which `wrap` adds: the mask, and tags of languages.
    """
    import sentencepiece

    tidy = normalizer(lowercase)
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=(tidy.normalize_str(sentence) for sentence in sentences),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocab_size - others,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
            max_sentence_length=LONGEST_SENTENCE,
            num_threads=1,  # sums in another order would move scores, and with them the pieces, between runs
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = _reason(str(error), others)
        raise ValueError(
            f"tokenizer: no vocabulary of vocab_size={vocab_size} comes out of this text ({reason}): "
            "choose another vocab_size, a lower character_coverage or more text"
        ) from None
    return written.getvalue()


def wrap(unigram: bytes, *, lowercase: bool, languages: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """The model as a fast tokenizer that gives `<s> pieces </s>`, `<mask>` added as its last token.

    With `languages` it is one of a language model: their tags stand before the mask, and it has a chat template.
    """
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    source = sentencepiece.SentencePieceProcessor(model_proto=unigram)
    pieces = [(source.id_to_piece(index), source.get_score(index)) for index in range(source.get_piece_size())]
    assert tuple(piece for piece, _ in pieces[: len(SPECIAL_TOKENS)]) == SPECIAL_TOKENS
    tags = [tag(language) for language in languages]
    pieces += [(name, 0.0) for name in (*tags, MASK_TOKEN)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=source.unk_id(), byte_fallback=False))
    backend.normalizer = normalizer(lowercase)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        # Takes the space before it along, so that a masked word leaves no lone space behind.
        mask_token=AddedToken(MASK_TOKEN, lstrip=True, normalized=False, special=True),
        extra_special_tokens=[AddedToken(name, normalized=False, special=True) for name in tags],
        chat_template=CHAT_TEMPLATE if tags else None,
        model_input_names=["input_ids", "attention_mask"],
    )


def train_tokenizer(
    sentences: Iterable[str],
    output: Path,
    vocab_size: int,
    *,
    lowercase: bool = False,
    character_coverage: float = 1.0,
    languages: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Train on `sentences` and save into the folder `output`, for `AutoTokenizer.from_pretrained`.

    `vocab_size` counts everything, the special tokens included. `languages`: those that get a tag, for a tokenizer of
    a language model. The same sentences give the same files.
    Errors: ValueError where the text does not yield that many pieces or the folder holds anything but a tokenizer.
    """
    others = 1 + len(languages)
    if vocab_size < len(SPECIAL_TOKENS) + 1 + others:
        raise ValueError(
            f"tokenizer: vocab_size={vocab_size} is too small: the smallest vocabularies hold some hundred"
        )
    if not 0 < character_coverage <= 1:
        raise ValueError(f"tokenizer: character_coverage={character_coverage} is outside 0..1: 1 keeps every character")
    check_replaceable(output, FILES)
    unigram = train_unigram(
        sentences, vocab_size, lowercase=lowercase, character_coverage=character_coverage, others=others
    )
    tokenizer = wrap(unigram, lowercase=lowercase, languages=languages)
    assert len(tokenizer) == vocab_size
    with whole_folder(output) as folder:
        tokenizer.save_pretrained(folder)
    log.info("tokenizer of %d pieces written to %s", vocab_size, output)
    return tokenizer
