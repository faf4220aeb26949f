"""PIL images and strings -> tensors, exactly as the model beside it was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import PushToHubMixin, cached_file

from cclm.errors import SampleError, first_line
from cclm.images import opaque
from cclm.models.names import is_here, quiet
from cclm.models.text_cleaning import CLEANINGS, clean_text
from cclm.storage import whole_file
from cclm.types import TextInput

if TYPE_CHECKING:
    from cclm.models.model import CCLMConfig

FILE = "processor_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model", "vocab.txt")
# Both CCLM families normalise with CLIP's statistics, even for Swin and BEiT (reference/cclm.md 3.2).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImageSettings:
    """How pixels are prepared. Sizes in pixels."""

    image_size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    crop_scale: tuple[float, float] = (0.2, 1.0)  # share of the area a training crop keeps
    flip: float = 0.5
    augment: bool = False  # colour and geometry jitter after the crop (torchvision's RandAugment)

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; give 1 pixel or more")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std}: give three numbers each, std above 0")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is {self.crop_scale}; give a smallest and a largest share, from 0 to 1")


class CCLMProcessor(PushToHubMixin):
    """Tokenizer and image settings of one model.

    `processor(images=[PIL], text=[str])` returns a dictionary with `pixel_values` (B, 3, H, W), `input_ids` and
    `attention_mask` (B, L); `images` and `texts` are the two halves, for code that has only one.
    `text_cleaning`: what happens to a text before it is tokenised: "none", or the original code's rule for a "caption"
    (lower case, no punctuation, single blanks) or a "question" (blanks stay). `max_words` cuts it after so many words.
    A text that cleaning leaves empty is tokenised as an empty one, its first and last token; `embed_texts` and `score`
    of the model refuse it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: ImageSettings | None = None,
        max_tokens: int = 64,
        text_cleaning: str = "none",
        max_words: int | None = None,
    ) -> None:
        _check_length(max_tokens)
        if text_cleaning not in CLEANINGS:
            raise ValueError(f"text_cleaning is {text_cleaning!r}; allowed: {', '.join(CLEANINGS)}")
        if max_words is not None and max_words < 1:
            raise ValueError(f"max_words is {max_words}; give 1 or more, or null")
        self.tokenizer = tokenizer
        self.settings = settings or ImageSettings()
        self.max_tokens = max_tokens
        self.text_cleaning = text_cleaning
        self.max_words = max_words
        size = self.settings.image_size
        self._mean = 255 * torch.tensor(self.settings.mean).view(3, 1, 1)
        self._std = 255 * torch.tensor(self.settings.std).view(3, 1, 1)
        self._crop = v2.RandomResizedCrop(size, scale=self.settings.crop_scale, interpolation=_BICUBIC, antialias=True)
        self._jitter = v2.RandAugment(num_ops=2, magnitude=7, fill=128)

    @property
    def image_size(self) -> int:
        return self.settings.image_size

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    def check_fits(self, config: CCLMConfig) -> None:
        """Errors: ValueError where the model was made for another tokenizer, or for shorter texts."""
        ours = (len(self.tokenizer), self.tokenizer.mask_token_id)
        if ours[0] > config.vocab_size or ours[1] not in (None, config.mask_token_id):
            raise ValueError(
                f"the tokenizer has {ours[0]} tokens, <mask> being {ours[1]}, the model {config.vocab_size} and "
                f"{config.mask_token_id}; use the tokenizer that the model was trained with"
            )
        if self.max_tokens + config.position_offset > config.max_positions:
            raise ValueError(
                f"max_tokens is {self.max_tokens}, the model holds {config.max_positions - config.position_offset} "
                "(max_positions - position_offset); lower the one or raise the other"
            )

    def texts(self, texts: list[str], max_tokens: int | None = None, clean: bool = True) -> TextInput:
        """Token ids (B, L), cleaned, truncated to `max_tokens` and padded to the longest of them.

        Without `clean` the texts stay as they are, as answers do in the original. Errors: ValueError for no text, for
        one that is none, and for fewer `max_tokens` than 3.
        """
        return self.padded(self.tokens(texts, max_tokens, clean))

    def tokens(self, texts: list[str], max_tokens: int | None = None, clean: bool = True) -> list[list[int]]:
        """Token ids of each text, as `texts` has them but for the padding."""
        if isinstance(texts, str) or not texts:
            raise ValueError(f"texts are {texts!r}; give a list of at least one, [text] for a single one")
        length = self.max_tokens if max_tokens is None else _check_length(max_tokens)
        try:
            return self._tokens([self.cleaned(text) for text in texts] if clean else texts, length)
        except (TypeError, AttributeError, UnicodeError):
            check_texts(texts)  # texts are the hot path, so they are looked at only where something failed
            raise

    def cleaned(self, text: str) -> str:
        """What of `text` is tokenised; it may be empty."""
        return clean_text(text, self.text_cleaning, self.max_words)

    def _tokens(self, texts: list[str], length: int) -> list[list[int]]:
        if not self.tokenizer.is_fast:
            return self.tokenizer(texts, truncation=True, max_length=length)["input_ids"]
        # The tokenizer's __call__ spends twice as long on Python lists as on tokenising.
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.enable_truncation(length)
        return [row.ids for row in backend.encode_batch_fast(texts)]

    def padded(self, rows: list[list[int]]) -> TextInput:
        """Texts of `tokens` as a batch (B, L), padded to the longest of them."""
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=bool)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = True
        return TextInput(torch.from_numpy(ids), torch.from_numpy(mask))

    def images(
        self,
        images: list[Image.Image],
        train: bool = False,
        generator: torch.Generator | None = None,
        cropped: bool = False,
    ) -> Tensor:
        """Pixels (B, 3, H, W); with `train` each gets a crop, a flip and perhaps jitter drawn from `generator`.

        `cropped`: crop and flip were drawn before, with the boxes in the image; only colours may change.
        Errors: ValueError for no image, and naming one that is none or not readable.
        """
        if isinstance(images, str) or not images:
            raise ValueError(f"images are {images!r}; give a list of at least one PIL image (texts go in text=)")
        prepare = (self._recolour if cropped else self._augment) if train else self._resize
        batch = torch.empty(len(images), 3, self.image_size, self.image_size)
        for place, image in enumerate(images):  # image by image, while its pixels are in the cache
            batch[place].copy_(prepare(_pixels(image, place), generator)).sub_(self._mean).div_(self._std)
        return batch

    def _resize(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        size = [self.image_size, self.image_size]
        return pixels if list(pixels.shape[-2:]) == size else VF.resize(pixels, size, _BICUBIC, antialias=True)

    def _augment(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        # torchvision's transforms draw from torch's global generator only: lend it our seed for the duration.
        seed = torch.randint(2**31, (), generator=generator).item()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a stack trace per device kind
            pixels = self._crop(pixels)
            if torch.rand(()) < self.settings.flip:
                pixels = VF.horizontal_flip(pixels)
            return self._jitter(pixels) if self.settings.augment else pixels

    def _recolour(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        """Two draws of the original's changes of colour, each made with even odds."""
        pixels = self._resize(pixels, generator)
        if self.settings.augment:
            chosen = torch.randint(len(_COLOURS), (2,), generator=generator).tolist()
            made = (torch.rand(2, generator=generator) < 0.5).tolist()
            for index, done in zip(chosen, made, strict=True):
                pixels = _COLOURS[index](pixels) if done else pixels
        return pixels

    def __call__(
        self, images: list[Image.Image] | Image.Image | None = None, text: list[str] | str | None = None
    ) -> dict[str, Tensor]:
        """Both halves in one dictionary; one image or one text makes a batch of one.

        Errors: ValueError as of `images` and `texts`, and where neither is given.
        """
        if images is None and text is None:
            raise ValueError("neither images nor text given; give at least one of them")
        out: dict[str, Tensor] = {}
        if images is not None:
            out["pixel_values"] = self.images([images] if isinstance(images, Image.Image) else images)
        if text is not None:
            tokens = self.texts([text] if isinstance(text, str) else text)
            out |= {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
        return out

    def save_pretrained(self, folder: str | Path) -> None:
        self.tokenizer.save_pretrained(str(folder))
        save_settings(folder, self.settings, self.max_tokens, self.text_cleaning, self.max_words)

    @classmethod
    def from_pretrained(cls, folder: str | Path, tokenizer: str | None = None, **hub: Any) -> Self:
        """Load from a pretrained folder, or a hub name: with `hub` its revision, token or cache_dir.

        `tokenizer`: a folder or hub name, where `folder` has none. Errors: ValueError where there is none at all.
        """
        path = _settings_file(folder, hub)
        try:
            stored = json.loads(path.read_text())
            settings = {name: tuple(v) if isinstance(v, list) else v for name, v in stored["image"].items()}
            image, max_tokens = ImageSettings(**settings), int(stored["max_tokens"])
            max_words = None if stored.get("max_words") is None else int(stored["max_words"])
            cleaning = str(stored.get("text_cleaning", "none"))  # folders of before have neither
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}); export the model again") from None
        if tokenizer is not None:
            return cls(load_tokenizer(tokenizer), image, max_tokens, cleaning, max_words)
        if Path(folder).is_dir() and not any((Path(folder) / name).is_file() for name in _TOKENIZER_FILES):
            raise ValueError(f"no tokenizer in {folder}; `cclm convert` it with --tokenizer, or pass tokenizer= here")
        return cls(load_tokenizer(str(folder), **hub), image, max_tokens, cleaning, max_words)


def _settings_file(folder: str | Path, hub: dict[str, Any]) -> Path:
    path = Path(folder) / FILE
    if path.is_file():
        return path
    if Path(folder).is_dir() or is_here(str(folder)):
        raise ValueError(f"no {FILE} in {folder}; a pretrained folder written by `cclm fit` has one")
    try:
        with quiet():
            return Path(cached_file(str(folder), FILE, **hub))
    except (OSError, ValueError) as error:
        raise ValueError(f"no {FILE} in {folder}, here or on the hub ({first_line(error)}); check the name") from None


def _check_length(max_tokens: int) -> int:
    if max_tokens < 3:
        raise ValueError(f"max_tokens is {max_tokens}; a text has at least 3, its first and last included")
    return max_tokens


def check_texts(texts: list[str]) -> None:
    """Errors: ValueError naming the first that is no string, or one that no file can hold."""
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{place}] is of type {type(text).__name__}; give strings")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start]
            raise ValueError(f"texts[{place}] holds half a character, {half!r}; decode it again or remove it") from None


def _pixels(image: Image.Image, place: int) -> Tensor:
    if not isinstance(image, Image.Image):
        raise ValueError(f"images[{place}] is of type {type(image).__name__}; give PIL images, Image.open(path)")
    try:
        return VF.pil_to_tensor(opaque(image))  # (3, H, W) uint8
    except SampleError as error:
        raise ValueError(f"images[{place}]: {error}; give another or leave it out") from None


def save_settings(
    folder: str | Path, image: ImageSettings, max_tokens: int, text_cleaning: str, max_words: int | None
) -> None:
    """Write all of a processor but its tokenizer."""
    texts = {"max_tokens": max_tokens, "text_cleaning": text_cleaning, "max_words": max_words}
    with whole_file(Path(folder) / FILE) as path:
        path.write_text(json.dumps(texts | {"image": asdict(image)}, indent=2) + "\n")


def load_tokenizer(name: str, **hub: Any) -> PreTrainedTokenizerBase:
    """As `read_tokenizer`. Errors: ValueError, too, where it cannot pad."""
    tokenizer = read_tokenizer(name, **hub)
    if tokenizer.pad_token_id is None:
        raise ValueError(f"the tokenizer at {name} has no padding token; train one with `cclm data tokenizer`")
    return tokenizer


def read_tokenizer(name: str, **hub: Any) -> PreTrainedTokenizerBase:
    """That of a folder, or a hub name with its revision, token or cache_dir. Errors: ValueError where there is none."""
    if is_here(name) and not Path(name).is_dir():
        raise ValueError(f"no tokenizer at {name}; train one with `cclm data tokenizer`")
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(name, **hub)
    except Exception as error:  # damaged files raise whatever the reading of them does
        reason = first_line(error)
        raise ValueError(f"no tokenizer at {name} ({reason}); train one with `cclm data tokenizer`") from None


_BICUBIC = v2.InterpolationMode.BICUBIC
_COLOURS: tuple[Callable[[Tensor], Tensor], ...] = (  # 1.36: the original's magnitude 7 of 10
    lambda pixels: pixels,
    VF.autocontrast,
    VF.equalize,
    lambda pixels: VF.adjust_brightness(pixels, 1.36),
    lambda pixels: VF.adjust_sharpness(pixels, 1.36),
)
