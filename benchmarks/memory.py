"""Does the loader's memory stay flat? RSS of the training process and its workers at the end of three epochs.

python benchmarks/memory.py    # about half a minute; writes benchmarks/results/memory.json
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from machine import facts, write
from PIL import Image

from cclm.data.batches import StreamConfig
from cclm.data.loader import LoaderProgress, PairLoader, make_loader
from cclm.data.pairs import ImageCaption, Translation
from cclm.data.readers import PixelReader
from cclm.data.shards import write_shards
from cclm.data.tokenizer import train_tokenizer
from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.types import Record

IMAGES, ROWS, BATCH, WORKERS, EPOCHS = 2048, 16384, 32, 2, 4  # the first epoch fills pools and caches


def rss_mib(process: int) -> float:
    fields = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in fields if line.startswith("VmRSS"))


def sentence(number: int) -> str:
    return " ".join(f"word{(number * 31 + i * 7) % 300}" for i in range(3 + number % 20))


def images() -> Iterator[Record]:
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        out = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(out, "JPEG")
        yield Record(f"p{number:06d}", out.getvalue(), {"en": [sentence(number)]})


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(images(), folder / "images", samples_per_shard=128)
        rows = (Record("", parallel={"en": sentence(n), "de": sentence(n + 1)}) for n in range(ROWS))
        write_shards(rows, folder / "texts", samples_per_shard=1024)
        tokenizer = train_tokenizer((sentence(n) for n in range(2000)), folder / "tokenizer", 150)
        processor = CCLMProcessor(tokenizer, ImageSettings(image_size=96))
        streams = {
            "images": StreamConfig(str(folder / "images"), ImageCaption(), BATCH),
            "texts": StreamConfig(str(folder / "texts"), Translation(), 8 * BATCH),
        }
        dataset = PairLoader(streams, processor, PixelReader(processor, train=True))
        loader = make_loader(dataset, steps_per_epoch=IMAGES // BATCH, num_workers=WORKERS)
        progress = LoaderProgress()
        epochs = []
        for _ in range(EPOCHS):
            for step in loader:
                progress.update(step)
            workers = [child.pid for child in multiprocessing.active_children()]
            epochs.append({"main": rss_mib(os.getpid()), "workers": [rss_mib(pid) for pid in sorted(workers)]})
        loader.close()
    totals = [epoch["main"] + sum(epoch["workers"]) for epoch in epochs[1:]]
    result = {
        "question": "RSS over three epochs with living workers, after one that fills the caches (bar: within 5 %)",
        "rss_mib": [
            {"main": round(epoch["main"], 1), "workers": [round(value, 1) for value in epoch["workers"]]}
            for epoch in epochs
        ],
        "growth_over_three_epochs": round(max(totals) / totals[0] - 1, 4),
        **facts(torch=torch.__version__),
    }
    write("memory", result)


if __name__ == "__main__":
    main()
