"""What the loader costs beside decoding: full pipeline / decode+resize alone; scaled / plain jpeg decoding.

python benchmarks/loader.py --photos ../shared/photos    # about a minute; writes benchmarks/results/loader.json
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import statistics
import tempfile
import time
import zipfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import torch
from machine import facts, seconds, write
from PIL import Image, features

from cclm.data.batches import StreamConfig
from cclm.data.loader import PairLoader, make_loader
from cclm.data.pairs import ImageCaption, Translation
from cclm.data.readers import PixelReader
from cclm.data.shards import read_records, write_shards
from cclm.data.stream import RecordStream
from cclm.data.tokenizer import train_tokenizer
from cclm.images import open_image
from cclm.models.processor import CCLMProcessor, ImageSettings
from cclm.types import Record

PHOTOS, LARGE, SIZE, BATCH, POOL, TURNS = 512, 640, 224, 32, 8, 5


def photos(folder: Path, count: int) -> list[Record]:
    with (
        zipfile.ZipFile(folder / "images_128.zip") as images,
        gzip.open(folder / "captions.jsonl.gz", "rt", encoding="utf-8") as lines,
    ):
        names = {Path(name).name: name for name in images.namelist()}
        rows = map(json.loads, islice(lines, count))
        return [Record(r["key"], images.read(names[r["image"]]), r["captions"], r["parallel"]) for r in rows]


def as_large_jpeg(record: Record) -> Record:
    image = Image.open(io.BytesIO(record.image)).convert("RGB")
    scale = LARGE / max(image.size)
    out = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS).save(
        out, "JPEG", quality=92
    )
    return Record(record.key, out.getvalue(), record.captions, record.parallel)


def efficiency(records: list[Record], processor: CCLMProcessor, train: bool, folder: Path) -> dict[str, object]:
    """Samples/s of the loader, and of decode+resize alone: the same bytes, already in memory, to the same batches.

    Turn by turn in one process with one thread, so that a busy moment of the machine meets both.
    """
    write_shards(records, folder)
    reader = PixelReader(processor, train=train)
    stream = StreamConfig(str(folder), ImageCaption(), batch_size=BATCH)
    steps = iter(make_loader(PairLoader({"photos": stream}, processor, reader), steps_per_epoch=None))
    data = cycle([record.image for record in records])
    generator = torch.Generator().manual_seed(0)

    def alone() -> None:
        images = [open_image(image, SIZE) for image in islice(data, BATCH)]
        processor.images(images, train=train, generator=generator)

    def pipeline() -> None:
        for _ in range(POOL):  # a whole pool: its batches are drawn at once, so single steps differ by design
            next(steps)

    def decoding() -> None:
        for _ in range(POOL):
            alone()

    pipeline(), decoding()
    walls, cpus = [], []
    for _ in range(TURNS):
        cpu = time.process_time()
        wall = seconds(pipeline)
        middle = time.process_time()
        walls.append((wall, seconds(decoding)))
        cpus.append((middle - cpu, time.process_time() - middle))
    return {
        "pipeline_samples_per_s": round(POOL * BATCH / statistics.median(whole for whole, _ in walls), 1),
        "decode_resize_samples_per_s": round(POOL * BATCH / statistics.median(decode for _, decode in walls), 1),
        "efficiency": round(statistics.median(decode / whole for whole, decode in walls), 3),
        "efficiency_each": [round(decode / whole, 3) for whole, decode in walls],
        "efficiency_cpu_time": round(statistics.median(decode / whole for whole, decode in cpus), 3),
    }


def scaled_decode(images: list[bytes]) -> dict[str, object]:
    """Decode + resize to 224 of large jpegs: plain Pillow against the scaled decode."""

    def plain() -> None:
        for data in images:
            Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)

    def scaled() -> None:
        for data in images:
            open_image(data, SIZE).resize((SIZE, SIZE), Image.Resampling.BICUBIC)

    plain(), scaled()
    times = [(seconds(plain), seconds(scaled)) for _ in range(7)]
    return {
        "plain_samples_per_s": round(len(images) / statistics.median(p for p, _ in times), 1),
        "scaled_samples_per_s": round(len(images) / statistics.median(s for _, s in times), 1),
        "speedup": round(statistics.median(p / s for p, s in times), 2),
    }


def text_rates(sentences: list[dict[str, str]], processor: CCLMProcessor, folder: Path) -> dict[str, float]:
    """Rows/s: read in order, shuffled as a stream, drawn and tokenised as pairs."""
    rows = len(sentences) * 8
    write_shards((Record("", parallel=row) for _ in range(8) for row in sentences), folder)
    stream = RecordStream(folder)
    config = StreamConfig(str(folder), Translation(), batch_size=512)
    steps = iter(make_loader(PairLoader({"texts": config}, processor), steps_per_epoch=None))
    return {
        "read_rows_per_s": round(rows / seconds(lambda: sum(1 for _ in read_records(folder)))),
        "stream_rows_per_s": round(rows / seconds(lambda: sum(1 for _ in islice(stream, rows)))),
        "pairs_per_s": round(24 * 512 / seconds(lambda: [next(steps) for _ in range(24)])),
    }


def captions(records: list[Record]) -> Iterator[str]:
    for record in records:
        for texts in record.captions.values():
            yield from texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder with images_128.zip and captions.jsonl.gz")
    source = parser.parse_args().photos
    torch.set_num_threads(1)
    small = photos(source, PHOTOS)
    large = [as_large_jpeg(record) for record in small[:256]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_tokenizer(captions(small), folder / "tokenizer", 4000, character_coverage=0.999)
        processor = CCLMProcessor(tokenizer, ImageSettings(image_size=SIZE))
        result = {
            "question": "loader / decode+resize alone (bar 0.95); scaled / plain jpeg decoding (bar 1.5); one core",
            "webp_128": efficiency(small, processor, False, folder / "small"),
            "webp_128_augmented": efficiency(small, processor, True, folder / "small_train"),
            "jpeg_640": efficiency(large, processor, False, folder / "large"),
            "jpeg_640_augmented": efficiency(large, processor, True, folder / "large_train"),
            "jpeg_640_scaled_decode": scaled_decode([record.image for record in large[:64]]),
            "texts": text_rates([record.parallel for record in small if record.parallel], processor, folder / "texts"),
            **facts(torch=torch.__version__, pillow=Image.__version__, jpeg=str(features.version("jpg"))),
        }
    write("loader", result)


if __name__ == "__main__":
    main()
