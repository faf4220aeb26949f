"""XM3600 (Crossmodal-3600) as a test of captioning: a caption in each of 36 languages, against all that people wrote.

The files of task xm3600; reference/mpm.md 5 has the literature's figures.
"""

from __future__ import annotations

from cclm.evaluation.protocol import CaptioningProtocol
from cclm.evaluation.sources import Grouped
from cclm.evaluation.task import CaptioningTask
from cclm.evaluation.tasks import xm3600

TASK = CaptioningTask(
    name="xm3600_captions",
    about="a caption in 36 languages of pictures from where they are spoken",
    languages=xm3600.LANGUAGES,
    pictures=xm3600.TASK.pictures,
    origin=xm3600.TASK.origin,
    splits={"test": Grouped(xm3600.TASK.splits["test"])},
    protocols=(
        CaptioningProtocol(
            name="all-references",
            about="PaLI, SigLIP 2, Centurio: against all captions of the language; their words are cut otherwise",
        ),
    ),
    counts={"all-references": dict.fromkeys(xm3600.LANGUAGES, xm3600.PICTURES)},
)
