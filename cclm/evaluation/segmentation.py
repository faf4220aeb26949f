"""Captions -> words, in one documented way for every language: what CIDEr and BLEU count.

Lower case, composed characters (NFC), invisible joiners, punctuation and symbols off: whatever else is neither letter,
mark nor digit becomes a blank. Chinese, Japanese and Thai, which set no blanks between words, are segmented first. No
PTB tokenizer, no Java: numbers compare with those of other programs only where these count words alike.
"""

from __future__ import annotations

import importlib
import os
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from types import ModuleType

Cut = Callable[[str], Iterable[str]]

BLANKLESS = ("bo", "dz", "km", "lo", "my")  # scripts without blanks that nothing here can segment


def needed(module: str, package: str, what: str) -> ModuleType:
    """A module of the extra `pivot`. Errors: ValueError, one line, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{what} needs the package {package}, which is not here; pip install 'cclm[pivot]'") from None


def _chinese() -> Cut:
    jieba = needed("jieba", "jieba", "segmenting Chinese")
    made = jieba.Tokenizer()
    # Else it would leave its dictionary in the folder of temporary files, and believe what anyone has put there.
    made.FREQ, made.total = made.gen_pfdict(made.get_dict_file())
    made.initialized = True
    return made.cut


def _japanese() -> Cut:
    mecab = needed("MeCab", "mecab-python3", "segmenting Japanese")
    ipadic = needed("ipadic", "ipadic", "segmenting Japanese")
    tagger = mecab.Tagger(f"{ipadic.MECAB_ARGS} -Owakati")
    return lambda text: tagger.parse(text).split()


def _thai() -> Cut:
    if "PYTHAINLP_READ_MODE" not in os.environ:  # its older name; both at once it refuses
        os.environ.setdefault("PYTHAINLP_READ_ONLY", "1")  # else it makes a folder in the user's home
    return needed("pythainlp.tokenize.newmm", "pythainlp", "segmenting Thai").segment


SEGMENTERS: dict[str, tuple[str, Callable[[], Cut]]] = {  # language -> package, and what makes its segmenter
    "zh": ("jieba", _chinese),
    "ja": ("ipadic", _japanese),
    "th": ("pythainlp", _thai),
}


@cache
def _segmenter(language: str) -> Cut | None:
    return SEGMENTERS[language][1]() if language in SEGMENTERS else None


def _base(language: str) -> str:
    """zh of zh-hans. Errors: ValueError for a language whose words nothing here can tell apart."""
    base = language.lower().replace("_", "-").partition("-")[0]
    if base in BLANKLESS:
        raise ValueError(
            f"captions in {language} set no blanks between words, and nothing here segments them; there are segmenters "
            f"for {', '.join(SEGMENTERS)}; leave {language} out"
        )
    return base


def words(text: str, language: str) -> list[str]:
    """The words of a caption. Errors: ValueError for a language that cannot be segmented, or a package that lacks."""
    cut = _segmenter(_base(language))
    text = unicodedata.normalize("NFC", text.lower())
    parts = [text] if cut is None else cut(text)
    bare = (c for c in " ".join(parts) if unicodedata.category(c) != "Cf")  # joiners stand within words
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in bare)
    return kept.split()


def description(language: str) -> str:
    """How `words` reads a language, in words: to stand beside every number that it decides."""
    package, _ = SEGMENTERS.get(_base(language), ("", None))
    segmented = f"segmented by {package} {version(package)}, " if package and _segmenter(_base(language)) else ""
    return f"{segmented}lower case, punctuation off, words between blanks"
