"""What a model is asked for most: embeddings of pictures and texts, and how well a picture and a text match.

Shapes: N images or texts, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from PIL import Image

from cclm.errors import SampleError, first_line
from cclm.images import opaque, open_image
from cclm.models.config import CCLMConfig
from cclm.models.encoding import EncodingOptions, batches, encode_images, encode_texts, match_scores
from cclm.models.explanation import explain
from cclm.models.processor import CCLMProcessor, check_texts
from cclm.types import Explanation, View

if TYPE_CHECKING:
    from rich.progress import Progress

Picture: TypeAlias = Image.Image | str | Path
Placed: TypeAlias = tuple[int, Picture]  # where it stands in the list that was given


class Inference:
    """Mixin of the model: raw pictures and texts in, numpy out.

    Pictures are PIL images or paths of jpg, png or webp files. Everything is computed in batches on the model's device,
    without dropout or gradients, equal inputs once; results stand in the order of the inputs. A bar is drawn where
    someone sees it; `progress` false or true forbids or demands it.
    """

    config: CCLMConfig
    _processor: CCLMProcessor | None = None
    _hub: Mapping[str, str] = MappingProxyType({})  # which revision on the hub it was loaded from, where it was

    @property
    def processor(self) -> CCLMProcessor:
        """The one beside the weights that the model was loaded from, here or on the hub, unless another was set.

        Errors: ValueError where there is none, or one of another model.
        """
        if self._processor is None:
            folder = self.config.name_or_path
            if not folder:
                raise ValueError(
                    "this model was not loaded from a folder, so it knows no processor; give one: "
                    "processor=CCLMProcessor.from_pretrained(FOLDER)"
                )
            processor = CCLMProcessor.from_pretrained(folder, **self._hub)
            try:
                self.processor = processor
            except ValueError as error:
                raise ValueError(f"{folder}: {error}") from None
        return self._processor

    @processor.setter
    def processor(self, processor: CCLMProcessor) -> None:
        processor.check_fits(self.config)
        self._processor = processor

    def embed_images(
        self,
        images: Picture | Iterable[Picture],
        processor: CCLMProcessor | None = None,
        encoding: EncodingOptions | None = None,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Unit-norm embeddings (N, E) float32 of pictures.

        Errors: ValueError naming a picture that is missing or not readable, for none at all, and for a model without
        projections.
        """
        self.check_projections()
        processor = self._checked(processor)
        pictures, views = _pictures(images), self._views_of_pictures(processor)
        with progress_bar(len(pictures), progress) as bar:
            shown = bar.track(pictures, description="embedding images")
            return encode_images(self, shown, views, _identity, encoding or EncodingOptions()).embeddings.numpy()

    def embed_texts(
        self,
        texts: str | Iterable[str],
        processor: CCLMProcessor | None = None,
        encoding: EncodingOptions | None = None,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Unit-norm embeddings (N, E) float32 of texts in any language, cut at the processor's `max_tokens`.

        Errors: ValueError naming a text that is blank, or so once the model's text cleaning is done, for none at all,
        and for a model without projections.
        """
        self.check_projections()
        processor, encoding = self._checked(processor), encoding or EncodingOptions()
        sentences = _texts(texts, processor)
        with progress_bar(len(sentences), progress) as bar:
            shown = partial(bar.track, description="embedding texts")
            return encode_texts(self, processor, sentences, encoding, shown=shown).embeddings.numpy()

    def score(
        self,
        images: Picture | Iterable[Picture],
        texts: str | Iterable[str],
        processor: CCLMProcessor | None = None,
        encoding: EncodingOptions | None = None,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Probability (N,) float32, by the match head, that the picture and the text at the same place belong together.

        A single picture stands beside every text, a single text beside every picture. Each distinct picture is encoded,
        and its keys and values projected, once; an `image_batch` of them is in memory at a time.

        Errors: ValueError as of `embed_images` and `embed_texts`, for lists of different length, and for a model
        without a match head.
        """
        self.check_match()
        processor, encoding = self._checked(processor), encoding or EncodingOptions()
        pictures, sentences = _pictures(images), _texts(texts, processor)
        if isinstance(images, Picture):
            pictures *= len(sentences)
        elif isinstance(texts, str):
            sentences *= len(pictures)
        if len(pictures) != len(sentences):
            raise ValueError(f"{len(pictures)} images, {len(sentences)} texts: no pairs; give as many of both, or one")
        places_of: dict[Hashable, list[int]] = {}  # picture -> where it stands
        for place, picture in enumerate(pictures):
            places_of.setdefault(_identity(picture), []).append(place)
        groups = list(batches(places_of.values(), encoding.image_batch))
        views, scores = self._views_of_pictures(processor), torch.empty(len(pictures))
        with progress_bar(len(groups), progress) as bar:
            for group in bar.track(groups, description="matching"):
                places = [place for own in group for place in own]
                seen = encode_images(self, [pictures[place] for place in places], views, _identity, encoding, True)
                read = encode_texts(self, processor, [sentences[place] for place in places], encoding, True)
                pairs = torch.arange(len(places)).unsqueeze(1).expand(-1, 2)  # (P, 2)
                scores[places] = match_scores(self, seen, read, pairs, encoding).sigmoid()
        return scores.numpy()

    def explain(self, image: Picture, text: str, processor: CCLMProcessor | None = None) -> Explanation:
        """Where in the picture the model finds each word of the text: patches that speak for a match, the more so the
        more the word counts (cclm/models/explanation.py). A model's view, and no proof that the word is there.

        Errors: ValueError as of `score`, for a model of several images per text, and for a tokenizer that does not
        tell where its tokens stand.
        """
        self.check_match()
        self.check_images(1)
        processor = self._checked(processor)
        (sentence,), (placed,) = _texts([text], processor), _pictures([image])
        return explain(self, processor, _opened(placed, processor.image_size), sentence)

    def check_match(self) -> None:
        """Errors: ValueError for a model that cannot judge pairs."""
        if "match" not in self.config.heads:
            raise ValueError(
                f"this model has no match head (its heads: {', '.join(self.config.heads) or 'none'}); compare "
                "embed_images with embed_texts, or use a model trained with the matching objective"
            )

    def _checked(self, processor: CCLMProcessor | None) -> CCLMProcessor:
        if processor is None:
            return self.processor
        processor.check_fits(self.config)
        return processor

    def check_projections(self) -> None:
        """Errors: ValueError for a model whose pictures and texts have no embeddings."""
        if not self.config.embedding_size:
            raise ValueError(
                "this model has no projections (config.embedding_size is 0), so its pictures and texts have no "
                "embeddings; use a model trained with the contrastive objective"
            )

    def _views_of_pictures(self, processor: CCLMProcessor) -> Callable[[tuple[Placed, ...]], View]:
        def views(pictures: tuple[Placed, ...]) -> View:
            opened = [_opened(placed, processor.image_size) for placed in pictures]
            return self.encode_image(processor.images(opened).to(self.device))

        return views


def _identity(placed: Placed) -> Hashable:
    picture = placed[1]
    return id(picture) if isinstance(picture, Image.Image) else str(picture)


def _opened(placed: Placed, size: int) -> Image.Image:
    place, picture = placed
    try:
        return opaque(picture) if isinstance(picture, Image.Image) else open_image(Path(picture).read_bytes(), size)
    except (SampleError, OSError) as error:
        where = f"images[{place}]" if isinstance(picture, Image.Image) else f"images[{place}], {picture}"
        raise ValueError(f"{where}: {first_line(error)}; give another or leave it out") from None


def _pictures(given: Picture | Iterable[Picture]) -> list[Placed]:
    """All at once before the work: a path that is wrong must not end it after an hour."""
    pictures = [given] if isinstance(given, Picture) else list(given)
    if not pictures:
        raise ValueError("no images given; give at least one PIL image or path")
    for place, picture in enumerate(pictures):
        if not isinstance(picture, Picture):
            raise ValueError(f"images[{place}] is of type {type(picture).__name__}; give PIL images or paths")
        if not isinstance(picture, Image.Image) and not Path(picture).is_file():
            raise ValueError(f"images[{place}]: there is no file {str(picture)!r}; check the path")
    return list(enumerate(pictures))


def _texts(given: str | Iterable[str], processor: CCLMProcessor) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    if not texts:
        raise ValueError("no texts given; give at least one")
    check_texts(texts)
    for place, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"texts[{place}] is blank, which says nothing; leave it out")
        if not processor.cleaned(text).strip():
            raise ValueError(
                f"texts[{place}] is {text!r}, of which the model's text cleaning ({processor.text_cleaning}) leaves "
                "nothing; leave it out"
            )
    return texts


def progress_bar(steps: int | None, wanted: bool | None = None) -> Progress:
    """A bar on standard error that leaves nothing behind; by default where there is more than one step to see.

    `steps` may be unknown: then the bar counts.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True, force_terminal=wanted)
    drawn = (steps is None or steps > 1) if wanted is None else wanted
    columns = ("{task.description}", progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeElapsedColumn())
    shown = drawn and (console.is_terminal or console.is_jupyter)
    # `auto_refresh` starts a thread for every bar, the hidden ones too.
    return progress.Progress(*columns, console=console, transient=True, disable=not shown, auto_refresh=shown)
