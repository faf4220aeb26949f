"""A model's captions of the pictures of a test, scored."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cclm.evaluation.captioning import score_captions
from cclm.evaluation.embedder import System, texts_given
from cclm.evaluation.items import Descriptions
from cclm.evaluation.pictures import PictureFiles, opened, whole
from cclm.evaluation.scoring import Scored
from cclm.models.encoding import batches

if TYPE_CHECKING:
    from cclm.evaluation.runner import RunOptions

logger = logging.getLogger(__name__)


def describe(
    system: System, tests: Sequence[Descriptions], pictures: PictureFiles, options: RunOptions
) -> Iterator[Scored]:
    """Language after language: writing takes far longer than opening pictures anew, and each one done can be kept.

    Errors: ValueError for damaged pictures that are not to be left out, and for what breaks the captioner's contract.
    """
    for test in tests:
        captions: dict[str, str] = {}
        damaged: dict[str, str] = {}
        for done, items in enumerate(batches(test.described, options.image_batch)):
            logger.info("%s in %s: images %d of %d", test.task, test.language, done * options.image_batch, len(test))
            found = [(item.id, opened(pictures, (item.image,), system.image_size, damaged)) for item in items]
            there = [(name, images[0]) for name, images in found if images is not None]
            if there:
                given = system.captioner.describe([image for _, image in there], options.language(test))
                texts = texts_given(system, given, len(there), "describe")
                captions |= {name: text for (name, _), text in zip(there, texts, strict=True)}
        (kept,) = whole([test], damaged, options.partial)
        yield score_captions(kept, captions, options.scoring)
