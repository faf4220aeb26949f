"""Real photos through the real parts: shards, model folder, report, index, search by text and by image."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from cclm.data.shards import read_records, write_shards
from cclm.evaluation.encoding import pixel_views
from cclm.evaluation.report import Provenance, Report
from cclm.evaluation.retrieval import RetrievalOptions, evaluate_retrieval
from cclm.images import open_image
from cclm.models.encoding import EncodingOptions, encode_texts, image_batches
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.retrieval.index import ImageIndex, build_index
from cclm.retrieval.manifest import ModelSource
from cclm.retrieval.metadata import Entry, Rows
from cclm.retrieval.query import query_kind
from cclm.storage import file_hash
from cclm.types import Record


@pytest.fixture(scope="module")
def shards(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 dev photos as shards."""
    with gzip.open(shared / "photos" / "captions.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["split"] == "dev"][:50]
    with zipfile.ZipFile(shared / "photos" / "images_128.zip") as photos:
        names = {Path(name).name: name for name in photos.namelist()}
        found = [Record(r["key"], photos.read(names[r["image"]]), r["captions"], r["parallel"]) for r in rows]
    folder = tmp_path_factory.mktemp("photos") / "dev"
    write_shards(found, folder, samples_per_shard=20)
    return folder


@pytest.fixture(scope="module")
def pretrained(model: CCLMModel, processor: CCLMProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_report_from_shards(shards: Path, pretrained: Path, tmp_path: Path) -> None:
    model, processor = CCLMModel.from_pretrained(pretrained), CCLMProcessor.from_pretrained(pretrained)
    source = ModelSource.of(pretrained)
    provenance = Provenance(source.path, source.sha256, str(shards), file_hash(shards / "manifest.json"), "2026-01-02")
    skipped: Counter[str] = Counter()
    options = RetrievalOptions(languages=("en", "zh", "fr"), rerank=4, draws=200)
    records, views = read_records(shards, skipped=skipped), pixel_views(model, processor, open_image)
    report = evaluate_retrieval(model, processor, records, views, provenance, options)
    replace(report, skipped=dict(skipped)).write(tmp_path / "report.json")
    read = Report.read(tmp_path / "report.json")
    assert read.skipped == {} and read.texts["fr"]["source"] == "parallel"
    english = read.languages["en"]
    assert english["text_to_image"]["gallery"] == 50 and english["text_to_image"]["queries"] > 240
    for way in ("text_to_image", "image_to_text"):  # random weights know nothing
        assert abs(english[way]["R@10"] - english[way]["chance"]["R@10"]) < 15
    # About five captions each: chance is well above that of a single one.
    assert english["image_to_text"]["chance"]["R@10"] > 4 * 100 * 10 / english["image_to_text"]["gallery"]


def test_index_from_shards_finds_its_own_photos(shards: Path, pretrained: Path, tmp_path: Path) -> None:
    model, processor = CCLMModel.from_pretrained(pretrained), CCLMProcessor.from_pretrained(pretrained)
    options = EncodingOptions(image_batch=16)
    encoded = image_batches(model, read_records(shards), pixel_views(model, processor, open_image), options)
    parts = [
        Rows.of([Entry(record.key, record.captions) for record in some], view.embedding.numpy())
        for some, view in encoded
    ]
    build_index(parts, tmp_path / "index", ModelSource.of(pretrained), data=str(shards))

    index = ImageIndex.open(tmp_path / "index")
    folder = index.model()
    model, processor = CCLMModel.from_pretrained(folder), CCLMProcessor.from_pretrained(folder)
    for record in list(read_records(shards))[:5]:
        path = tmp_path / f"{record.key}.webp"
        path.write_bytes(record.image)
        assert query_kind(str(path)) == "image"
        with torch.inference_mode():
            view = model.eval().encode_image(processor.images([open_image(path.read_bytes())]))
        hits = index.search(view.embedding.numpy(), 3)[0]
        assert hits[0].entry.key == record.key and hits[0].score == pytest.approx(1, abs=1e-4)
        assert hits[0].entry.captions == record.captions
    queries = encode_texts(model, processor, ["two dogs", "zwei Hunde"], options).embeddings.numpy()
    for hits in index.search(queries, 10):
        assert len(hits) == 10 and all(a.score >= b.score for a, b in pairwise(hits))
