"""Tests translated to English by a translation model of transformers: Marian, M2M100, NLLB, mBART.

Languages are told as each family was trained to hear them; a language that a model does not have is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from cclm.errors import first_line
from cclm.evaluation.adapters.open import model_hash
from cclm.evaluation.items import Captions, Questions, TestSet
from cclm.models.encoding import batches
from cclm.models.names import is_here, quiet
from cclm.storage import whole_file

FAMILIES = ("marian", "m2m_100", "mbart")  # NLLB is of type m2m_100 too
FOLDER = "translations"  # of a run's folder
ALIASES = {"jp": "ja", "fil": "tl", "in": "id"}
# How NLLB (FLORES-200) names a language and its script; the part before the script is what newer Marian models say.
FLORES = dict(
    entry.split("=")
    for entry in """
    af=afr_Latn ar=arb_Arab bg=bul_Cyrl bn=ben_Beng cs=ces_Latn da=dan_Latn de=deu_Latn el=ell_Grek en=eng_Latn
    es=spa_Latn et=est_Latn fa=pes_Arab fi=fin_Latn fr=fra_Latn he=heb_Hebr hi=hin_Deva hr=hrv_Latn hu=hun_Latn
    id=ind_Latn it=ita_Latn ja=jpn_Jpan ka=kat_Geor ko=kor_Hang mi=mri_Latn nl=nld_Latn no=nob_Latn pl=pol_Latn
    pt=por_Latn ro=ron_Latn ru=rus_Cyrl sv=swe_Latn sw=swh_Latn ta=tam_Taml te=tel_Telu th=tha_Thai tl=tgl_Latn
    tr=tur_Latn uk=ukr_Cyrl ur=urd_Arab vi=vie_Latn zh=zho_Hans
    """.split()
)
THREE_LETTERS = {"ar": "ara", "fa": "fas", "no": "nor", "sw": "swa"}  # where FLORES means a part of the language
# Marian's names of several languages at once: whether it has a certain one is for the user to know.
GROUPS = frozenset(
    """
    afa bat bnt cel dra fiu gem gmq gmw iir inc ine itc map mul poz roa romance sem sla tai trk urj zle zls zlw
    """.split()
)


@dataclass(frozen=True)
class TranslationOptions:
    """`beams`: 1 decodes greedily. `max_tokens`: of a translation. Nothing is drawn: it is the same every time."""

    beams: int = 4
    batch: int = 32
    max_tokens: int = 128

    def __post_init__(self) -> None:
        for name in ("beams", "batch", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"translation {name} is {getattr(self, name)}; give 1 or more")


class Translator:
    """A translation model. `folder`: of a run, where translations are kept by what they depend on; None for nowhere."""

    def __init__(self, name: str, model: Any, tokenizer: Any, options: TranslationOptions, sha256: str) -> None:
        self.name, self.model, self.tokenizer, self.options, self.sha256 = name, model, tokenizer, options, sha256
        self.folder: Path | None = None

    @classmethod
    def open(
        cls, name: str, device: torch.device, folder: Path | None = None, options: TranslationOptions | None = None
    ) -> Self:
        """Of a folder or a hub name. Errors: ValueError, one line, where it is none or translates to no English."""
        from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        if is_here(name) and not Path(name).is_dir():
            raise ValueError(f"no translation model at {name}; check the path")
        try:
            with quiet():
                kind = AutoConfig.from_pretrained(name).model_type
                if kind in FAMILIES:
                    model = AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32)
                    tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # damaged files raise whatever the reading of them does
            raise ValueError(f"translation model {name} cannot be loaded ({first_line(error)}); check it") from None
        if kind not in FAMILIES:
            raise ValueError(f"{name} is a model of type {kind}; give a Marian, M2M100, NLLB or mBART, or shipped")
        made = cls(name, model.eval().to(device), tokenizer, options or TranslationOptions(), model_hash(name))
        made.folder = folder
        made._target()
        return made

    def _code(self, language: str) -> str | None:
        """The model's own name of a language, as a token that it has."""
        known = ALIASES.get(language, language)
        candidates = (FLORES.get(known, language), f"__{known}__")
        there = self.tokenizer.get_vocab() | getattr(self.tokenizer, "lang_token_to_id", {})  # M2M100 keeps them apart
        if found := next((code for code in candidates if code in there), None):
            return found
        return next((token for token in there if re.fullmatch(rf"{re.escape(known)}_[A-Z]{{2}}", token)), None)

    def _target(self) -> dict[str, int]:
        """What has the model write English. Errors: ValueError where it does not."""
        if self.model.config.model_type == "marian":
            language = self.tokenizer.target_lang
            if language not in (None, "en", "eng"):
                raise ValueError(f"{self.name} translates to {language}; give a model that translates to English")
            return {}
        code = self._code("en")
        if code is None:
            raise ValueError(f"{self.name} has no token for English; give a Marian, M2M100, NLLB or mBART model")
        return {"forced_bos_token_id": self.tokenizer.convert_tokens_to_ids(code)}

    def _source(self, language: str) -> str | None:
        """What the tokenizer is told of the language; None where it need not. Errors: ValueError."""
        if self.model.config.model_type == "marian":
            source = self.tokenizer.source_lang
            known = ALIASES.get(language, language)
            names = {known, THREE_LETTERS.get(known, FLORES.get(known, known).partition("_")[0])}
            if source is not None and source not in names and source.lower() not in GROUPS:
                raise ValueError(f"{self.name} translates from {source}, not from {language}; give another model")
            return None
        code = self._code(language)
        if code is None:
            raise ValueError(f"{self.name} does not translate from {language}; give another model or leave it out")
        return code.strip("_") if code.startswith("__") else code

    def check(self, test: TestSet) -> None:
        """Errors: ValueError where a test cannot be translated."""
        if not isinstance(test, (Questions, Captions)):
            raise ValueError(f"task {test.task} is not read in English, so there is nothing to translate; leave it out")
        self._source(test.language)

    def translated(self, test: TestSet) -> TestSet:
        """The test with all its texts in English. Errors: ValueError, as of `check`."""
        self.check(test)
        if isinstance(test, Questions):
            texts = self.translate([item.text for item in test.questions], test.language)
            items = (replace(item, text=text) for item, text in zip(test.questions, texts, strict=True))
            return replace(test, questions=tuple(items))
        assert isinstance(test, Captions)
        texts = self.translate([item.text for item in test.captions], test.language)
        rows = (replace(item, text=text) for item, text in zip(test.captions, texts, strict=True))
        return replace(test, captions=tuple(rows))

    def translate(self, texts: Sequence[str], language: str) -> list[str]:
        """English for each text; blank ones stay. What the folder holds is not translated again. Errors: ValueError."""
        source = self._source(language)
        wanted = sorted({text for text in texts if text.strip()}, key=lambda text: (len(text), text))
        english = self._kept(language, wanted, lambda: self._generate(wanted, source))
        return [english.get(text, text) for text in texts]

    def _kept(self, language: str, texts: list[str], make: Callable[[], list[str]]) -> dict[str, str]:
        if self.folder is None:
            return dict(zip(texts, make(), strict=True))
        content = [self.sha256, language, {**asdict(self.options), "batch": None}, texts]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        path = self.folder / FOLDER / f"{language}-{digest}.json"
        if not path.is_file():
            made = dict(zip(texts, make(), strict=True))
            with whole_file(path) as partial:
                partial.write_text(json.dumps(made, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {text: found[text] for text in texts}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); remove it, and it is made again") from None

    def _generate(self, texts: list[str], source: str | None) -> list[str]:
        if source is not None:
            self.tokenizer.src_lang = source
        device, made = self.model.device, []
        for batch in batches(texts, self.options.batch):
            tokens = self.tokenizer(list(batch), padding=True, truncation=True, return_tensors="pt").to(device)
            with torch.inference_mode(), quiet():
                found = self.model.generate(
                    input_ids=tokens["input_ids"],
                    attention_mask=tokens["attention_mask"],
                    num_beams=self.options.beams,
                    do_sample=False,
                    max_new_tokens=self.options.max_tokens,
                    **self._target(),
                )
            made += [text.strip() for text in self.tokenizer.batch_decode(found, skip_special_tokens=True)]
        return made
