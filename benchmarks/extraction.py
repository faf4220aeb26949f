"""What embedding costs beside decoding and the model: the verb's work (read, decode, model, write) / decode + model.

python benchmarks/extraction.py --source data/photos/train --model runs/photos/pretrained
                                       # about ten minutes; writes benchmarks/results/extraction.json
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from machine import facts, seconds, write

from cclm.cli import _keep_freed_memory
from cclm.data.shards import list_shards, read_records
from cclm.evaluation.embedding import EmbedOptions
from cclm.evaluation.extraction import Extraction
from cclm.images import open_image
from cclm.models.encoding import EncodingOptions, image_batches
from cclm.retrieval.engines import EngineOptions
from cclm.types import View
from cclm.verbs.inputs import load

OPTIONS = EmbedOptions(encoding=EncodingOptions())


class Compared:
    """The same pictures embedded in two ways by one loaded model with the same threads."""

    def __init__(self, model: Path, shards: list[str], folder: Path) -> None:
        self.model, self.processor = load(model, "cpu")
        self.shards, self.folder, self.rounds = shards, folder, 0
        self.extraction = Extraction(folder, model, shards, OPTIONS, lambda *_: (self.model, self.processor))
        self.pictures = [record.image for record in read_records(shards)]

    def whole(self) -> None:
        """All that `cclm embed` does once the model is there, into a new folder."""
        self.rounds += 1
        job = replace(self.extraction, folder=self.folder / str(self.rounds))
        assert job.run(EngineOptions(), str, lambda receipts, _: receipts).rows == len(self.pictures)

    def alone(self) -> None:
        """Decode and model of bytes that are in memory, batch after batch; nothing is kept."""

        def views(images: tuple[bytes, ...]) -> View:
            size = self.processor.image_size
            return self.model.encode_image(self.processor.images([open_image(image, size) for image in images]))

        for _, view in image_batches(self.model, self.pictures, views, OPTIONS.encoding):
            assert view.embedding.isfinite().all()


def peak_and_resume(model: Path, source: str, folder: Path) -> dict[str, float]:
    """The verb in a process of its own, as a user runs it: its time, its memory, and both of a second run."""
    command = [sys.executable, "-c", "from cclm.cli import main; main()", "embed"]
    arguments = ["--model", str(model), "--source", source, "--output", str(folder)]
    first = seconds(lambda: subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    second = seconds(lambda: subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL))
    return {"verb_s": round(first, 1), "verb_peak_mb": round(peak / 1024), "resume_of_all_parts_s": round(second, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("runs/photos/pretrained"))
    parser.add_argument("--source", default="data/photos/train")
    parser.add_argument("--shards", type=int, default=2, help="of the source, for the comparison")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    _keep_freed_memory()  # as every command does: without it both sides are slower by half
    with tempfile.TemporaryDirectory() as folder:
        compared = Compared(given.model, list_shards(given.source)[: given.shards], Path(folder))
        compared.whole(), compared.alone()
        times = [(seconds(compared.whole), seconds(compared.alone)) for _ in range(given.rounds)]
        verb = peak_and_resume(given.model, given.source, Path(folder) / "verb")
    pictures = len(compared.pictures)
    write(
        "extraction",
        {
            "question": "read, decode, model and write of `cclm embed` against decode and model alone",
            "pictures": pictures,
            "threads": torch.get_num_threads(),
            "rounds": given.rounds,
            "ratio": round(statistics.median(alone / whole for whole, alone in times), 3),
            "ratio_each": [round(alone / whole, 3) for whole, alone in times],
            "pictures_per_s": round(pictures / statistics.median(whole for whole, _ in times), 1),
            "decode_and_model_pictures_per_s": round(pictures / statistics.median(alone for _, alone in times), 1),
            **verb,
            **facts(torch=torch.__version__),
        },
    )


if __name__ == "__main__":
    main()
