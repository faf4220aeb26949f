"""Folders of embeddings: what is in them, how they are gone on with, and what is refused when they are read."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cclm.data.shards import write_shards
from cclm.models.model import CCLMModel
from cclm.retrieval.embeddings import Embeddings
from cclm.retrieval.parts import FILES, locked
from tests.data.conftest import image_records, picture
from tests.retrieval.extracting import contents, embed, receipts, write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """30 pictures in 3 shards, with captions."""
    write_shards(image_records(30), tmp_path / "train", samples_per_shard=10)
    return tmp_path / "train"


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def entries(embeddings: Embeddings) -> list[dict]:
    return [entry for rows in embeddings for entry in rows.entries.to_pylist()]


class TestRows:
    def test_a_shards_pictures_are_where_the_metadata_says(self, tiny: Path, shards: Path, tmp_path: Path) -> None:
        found = embed(shards, tmp_path / "out", tiny)
        records, known = list(image_records(30)), entries(found)
        assert [entry["key"] for entry in known] == [record.key for record in records] and len(found) == 3
        for record, entry in zip(records, known, strict=True):
            with open(found.root / entry["path"], "rb") as shard:
                shard.seek(entry["offset"])
                assert shard.read(entry["size"]) == record.image
            assert dict(entry["captions"]) == record.captions
            assert (entry["width"], entry["height"], entry["date"]) == (40, 40, None) and len(entry["sha256"]) == 64
        vectors = np.concatenate([rows.vectors for rows in found])
        assert isinstance(found[0].vectors, np.memmap) and found.manifest.model_sha256
        pictures = [Image.open(io.BytesIO(record.image)) for record in records]
        assert np.allclose(vectors, CCLMModel.from_pretrained(tiny).embed_images(pictures), atol=1e-5)

    def test_a_folders_pictures_have_their_size_and_date(self, tiny: Path, tmp_path: Path) -> None:
        photos = tmp_path / "photos"
        (photos / "trip").mkdir(parents=True)
        (photos / "trip" / "old.png").write_bytes(picture(1, 50, "PNG"))
        os.utime(photos / "trip" / "old.png", (1_000_000_000, 1_000_000_000))
        image, exif = Image.open(io.BytesIO(picture(2, 640))), Image.Exif()
        exif.get_ifd(0x8769)[0x9003] = "2004:08:15 12:30:01"
        image.resize((640, 320)).save(photos / "a.jpg", exif=exif)  # decoded at an eighth
        (photos / "a.txt").write_text("a house")
        old, new = sorted(entries(embed(photos, tmp_path / "out", tiny)), key=lambda entry: entry["key"], reverse=True)
        assert old["key"] == old["path"] == "trip/old.png" and old["offset"] is None
        assert old["date"] == datetime.fromtimestamp(1_000_000_000) and (old["width"], old["height"]) == (50, 50)
        assert new["date"] == datetime(2004, 8, 15, 12, 30, 1) and (new["width"], new["height"]) == (640, 320)
        assert new["captions"] == [("en", ["a house"])] and new["size"] == (photos / "a.jpg").stat().st_size

    def test_a_row_for_each_caption_is_one_picture_of_an_index(self, tiny: Path, shards: Path, tmp_path: Path) -> None:
        found = embed(shards, tmp_path / "out", tiny, text=True)
        assert found.rows == 90 and found.manifest.pictures == 30
        assert pq.read_table(tmp_path / "out" / "metadata" / "metadata_0.parquet").num_rows == 30
        assert [len(rows) for rows in found] == [10, 10, 10]
        alone = embed(shards, tmp_path / "alone", tiny)
        for one, other in zip(found, alone, strict=True):
            assert one.entries == other.entries and np.array_equal(one.vectors, other.vectors)

    def test_several_sources_have_one_root(self, tiny: Path, shards: Path, tmp_path: Path) -> None:
        photos = tmp_path / "photos"
        photos.mkdir()
        for number in range(5):
            (photos / f"{number}.jpg").write_bytes(picture(number))
        sources = [str(photos), f"{shards}/00000[01].tar", str(photos / "3.jpg")]
        found = embed(sources, tmp_path / "out", tiny, pictures_per_part=2)
        assert found.root == tmp_path and [len(rows) for rows in found] == [10, 10, 2, 2, 1]
        paths = {entry["path"] for entry in entries(found)}
        assert paths == {"train/000000.tar", "train/000001.tar", *(f"photos/{number}.jpg" for number in range(5))}

    def test_keys_that_come_twice_are_told_apart_by_their_shards(self, tiny: Path, tmp_path: Path) -> None:
        for shard in "ab":
            write_tar(tmp_path / "s" / f"{shard}.tar", {"0.jpg": picture(ord(shard)), "1.jpg": picture(1)})
        write_tar(tmp_path / "s" / "c.tar", {"7.jpg": picture(2), "8.txt": b"x", "7.png": picture(3, kind="PNG")})
        found = embed(tmp_path / "s", tmp_path / "out", tiny)
        assert [entry["key"] for entry in entries(found)] == ["a/0", "a/1", "b/0", "b/1", "c/7"]
        assert found.manifest.skipped == {
            "sample without a picture": 1,
            "another picture of the shard has this key": 1,
        }
        only = embed(tmp_path / "s" / "a.tar", tmp_path / "only", tiny)
        assert [entry["key"] for entry in entries(only)] == ["0", "1"]

    def test_what_img2dataset_writes(self, tiny: Path, tmp_path: Path) -> None:
        for shard in range(2):
            members, known = {}, []
            for number in range(4):
                key = f"{shard:05d}{number:04d}"
                caption = None if number == 3 else f"a picture {number}"
                fields = {"key": key, "caption": caption, "url": "http://x/y.jpg", "status": "success", "width": 40}
                members |= {f"{key}.jpg": picture(number), f"{key}.json": json.dumps(fields).encode()}
                if caption:
                    members[f"{key}.txt"] = caption.encode()
                known.append(fields)
            write_tar(tmp_path / "data" / f"{shard:05d}.tar", members)
            pq.write_table(pa.Table.from_pylist(known), tmp_path / "data" / f"{shard:05d}.parquet")
            (tmp_path / "data" / f"{shard:05d}_stats.json").write_text("{}")
        found = entries(embed(tmp_path / "data", tmp_path / "out", tiny))
        assert [entry["key"] for entry in found] == [f"{s:05d}{n:04d}" for s in range(2) for n in range(4)]
        assert [len(entry["captions"]) for entry in found] == [1, 1, 1, 0] * 2

    def test_readers_of_the_layout_find_rows_by_number(self, tiny: Path, shards: Path, tmp_path: Path) -> None:
        """As embedding-reader takes a folder: vectors and metadata in the order of their names, row beside row."""
        write_shards(image_records(11), shards, samples_per_shard=1)
        embed(shards, tmp_path / "out", tiny, text=True, dtype="float16")
        names = [sorted(path.name for path in (tmp_path / "out" / kind).iterdir()) for kind in ("img_emb", "metadata")]
        assert names[0] == [f"img_emb_{number:02d}.npy" for number in range(11)]
        assert names[1] == [f"metadata_{number:02d}.parquet" for number in range(11)]
        for image, metadata in zip(*names, strict=True):
            vectors = np.load(tmp_path / "out" / "img_emb" / image)
            rows = pq.read_table(tmp_path / "out" / "metadata" / metadata)
            assert vectors.dtype == np.float16 and len(vectors) == rows.num_rows == 3
            assert rows.column_names[:3] == ["image_path", "caption", "language"]


class TestGoingOn:
    def test_a_killed_run_goes_on_without_doing_a_part_again(self, tiny: Path, tmp_path: Path) -> None:
        write_shards(image_records(1000), tmp_path / "train", samples_per_shard=20)
        out = tmp_path / "out"
        command = ["embed", "--model", str(tiny), "--source", str(tmp_path / "train"), "--output", str(out)]
        options = [*command, "--dtype", "float32", "--encoding.image_batch", "8"]
        program = f"from cclm.cli import main; main({options!r})"
        with subprocess.Popen([sys.executable, "-c", program]) as process:
            while len(receipts(out)) < 3:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        before = receipts(out)
        assert 3 <= len(before) < 50
        with pytest.raises(ValueError, match="not finished; run the same `cclm embed` again"):
            Embeddings.open(out)
        told: list[str] = []
        found = embed(tmp_path / "train", out, tiny, told=told)
        assert told == [f"{out}: {len(before)} of 50 parts are there already"]
        after = receipts(out)
        assert before.items() <= after.items() and len(after) == 50 and found.manifest.rows == 1000
        embed(tmp_path / "train", tmp_path / "fresh", tiny)
        assert contents(out) == contents(tmp_path / "fresh")

    def test_only_parts_whose_files_changed_are_made_again(
        self, tiny: Path, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        out = tmp_path / "out"
        embed(shards, out, tiny)
        before = receipts(out)
        write_tar(shards / "000001.tar", {"new.jpg": picture(77)})
        assert embed(shards, out, tiny).manifest.pictures == 21
        assert {part for part, when in receipts(out).items() if when != before[part]} == {"1"}
        assert "1 part(s) are made again, their files have changed since" in caplog.text

        for number in range(3, 11):  # from 3 parts to 11: numbers become wider
            write_tar(shards / f"{number:06d}.tar", {f"n{number}.jpg": picture(number)})
        (shards / "manifest.json").unlink()
        before = receipts(out)
        assert len(embed(shards, out, tiny)) == 11
        assert {f"0{part}": when for part, when in before.items()}.items() <= receipts(out).items()
        for number in range(2, 11):
            (shards / f"{number:06d}.tar").unlink()
        found = embed(shards, out, tiny)
        assert receipts(out) == {part: when for part, when in before.items() if part in "01"}
        assert len(found) == 2 and len(contents(out)) == 4

    @pytest.mark.parametrize("damaged", ["img_emb/img_emb_1.npy", "metadata/metadata_1.parquet", "parts/1.json"])
    @pytest.mark.parametrize("missing", [True, False])
    def test_damaged_parts_are_made_again(
        self, tiny: Path, shards: Path, tmp_path: Path, damaged: str, missing: bool
    ) -> None:
        out = tmp_path / "out"
        embed(shards, out, tiny)
        whole, before = contents(out), receipts(out)
        if missing:
            (out / damaged).unlink()
        else:
            data = bytearray((out / damaged).read_bytes())
            data[len(data) // 2] ^= 255
            (out / damaged).write_bytes(data)
        embed(shards, out, tiny)
        assert contents(out) == whole
        assert {part for part, when in receipts(out).items() if when != before.get(part)} == {"1"}

    def test_a_changed_setting_is_refused_and_nothing_is_lost(self, tiny: Path, shards: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        embed(shards, out, tiny)
        before = contents(out)
        other = write_tiny_model(tmp_path / "other", seed=1)
        for model, changed, message in (
            (other, {}, "model '[0-9a-f]{64}', now '"),
            (tiny, {"dtype": "float16"}, "dtype 'float32', now 'float16'"),
            (tiny, {"text": True, "languages": ("de",)}, r"languages None, now \['de'\]; text False, now True"),
            (tiny, {"pictures_per_part": 7}, "pictures_per_part 1000, now 7"),
        ):
            with pytest.raises(ValueError, match=f"{out} were begun with {message}.*choose another folder"):
                embed(shards, out, model, **changed)
        with pytest.raises(ValueError, match="root '../train', now '../train2'"):
            shards.rename(tmp_path / "train2")
            embed(tmp_path / "train2", out, tiny)
        assert contents(out) == before and Embeddings.open(out).rows == 30

    def test_one_run_at_a_time(self, tiny: Path, shards: Path, tmp_path: Path) -> None:
        with locked(tmp_path / "out"), pytest.raises(ValueError, match="another `cclm embed` writes to"):
            embed(shards, tmp_path / "out", tiny)

    def test_folders_of_others_are_not_written_to(self, tiny: Path, shards: Path, tmp_path: Path) -> None:
        write_foreign(tmp_path / "theirs")
        with pytest.raises(ValueError, match="holds embeddings of another program or version"):
            embed(shards, tmp_path / "theirs", tiny)
        with pytest.raises(ValueError, match="holds 000000.tar, which is not replaced"):
            embed(shards, shards, tiny)
        with pytest.raises(ValueError, match="dtype is 'int8'; choose float16 or float32"):
            embed(shards, tmp_path / "out", tiny, dtype="int8")
        assert "manifest.json" in FILES and not (tmp_path / "out").exists()


class TestHostileSources:
    def test_what_is_no_picture_is_counted(self, tiny: Path, tmp_path: Path) -> None:
        photos = tmp_path / "photos"
        photos.mkdir()
        (photos / "good.jpg").write_bytes(picture(1))
        (photos / "cut.jpg").write_bytes(picture(2)[:300])
        (photos / "bomb.png").write_bytes(png_header(30_000, 30_000))
        (photos / "larger.png").write_bytes(png_header(2_000_000_000, 2_000_000_000))
        os.mkfifo(photos / "pipe.png")
        (photos / "gone.png").symlink_to(tmp_path / "nowhere")
        Path(os.fsdecode(bytes(photos) + b"/\xff\xfe.png")).write_bytes(picture(3))
        told: list[str] = []
        found = embed(photos, tmp_path / "out", tiny, told=told)
        assert [entry["key"] for entry in entries(found)] == ["good.jpg"]
        assert sorted(told) == [
            "left out: 1 x file name is no Unicode",
            "left out: 1 x file not readable",
            "left out: 1 x image not readable",
            "left out: 1 x no regular file",
            "left out: 2 x image over 64 megapixels",
        ]
        assert found.manifest.skipped["image over 64 megapixels"] == 2

    def test_a_part_may_be_empty_but_not_all(self, tiny: Path, tmp_path: Path) -> None:
        write_tar(tmp_path / "s" / "0.tar", {"a.jpg": b"nothing"})
        with pytest.raises(ValueError, match="nothing to embed; left out: 1 x image not readable"):
            embed(tmp_path / "s", tmp_path / "none", tiny)
        write_tar(tmp_path / "s" / "1.tar", {"a.jpg": picture(1)})
        found = embed(tmp_path / "s", tmp_path / "out", tiny)
        assert [len(rows) for rows in found] == [0, 1] and found.manifest.skipped == {"image not readable": 1}

    def test_a_cut_tar_gives_what_is_whole(self, tiny: Path, shards: Path, tmp_path: Path) -> None:
        data = (shards / "000001.tar").read_bytes()
        (shards / "000001.tar").write_bytes(data[: len(data) // 2])
        found = embed(shards, tmp_path / "out", tiny)
        assert found.manifest.skipped == {"shard truncated": 1} and 20 < found.rows < 30

    def test_names_in_a_tar_lead_nowhere(self, tiny: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret.jpg"
        secret.write_bytes(picture(5))
        names = ["../../escape.jpg", "/etc/absolute.jpg", "..jpg", "a/../../../b.jpg"]
        write_tar(tmp_path / "s" / "0.tar", {name: picture(n) for n, name in enumerate(names)})
        with tarfile.open(tmp_path / "s" / "0.tar", "a") as tar:
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, str(secret)
            tar.addfile(link)
        before = sorted(tmp_path.rglob("*"))
        found = embed(tmp_path / "s", tmp_path / "out", tiny)
        assert {entry["path"] for entry in entries(found)} == {"0.tar"}
        assert {path for path in tmp_path.rglob("*") if (tmp_path / "out") not in (path, *path.parents)} == set(before)
        assert found.manifest.skipped["link or device member"] == 1

    def test_a_records_url_is_never_fetched(self, tiny: Path, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            url = f"http://127.0.0.1:{server.getsockname()[1]}/redirect"
            fields = {"url": url, "image_path": url, "caption": url, "key": url, "captions": {"en": [url]}}
            write_tar(tmp_path / "s" / "0.tar", {"a.jpg": picture(1), "a.json": json.dumps(fields).encode()})
            (found,) = entries(embed(tmp_path / "s", tmp_path / "out", tiny, text=True))
            with pytest.raises(BlockingIOError):
                server.accept()
        assert found["key"] == "a" and found["captions"] == [("en", [url])]


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def write_foreign(folder: Path, rows: int = 3, columns: dict[str, list] | None = None) -> np.ndarray:
    """A folder as clip-retrieval writes it."""
    for kind in ("img_emb", "metadata"):
        (folder / kind).mkdir(parents=True)
    vectors = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float16)
    np.save(folder / "img_emb" / "img_emb_0.npy", vectors)
    known = columns or {"image_path": [f"/photos/{n}.jpg" for n in range(rows)], "caption": ["x", None, "y"][:rows]}
    pq.write_table(pa.table(known), folder / "metadata" / "metadata_0.parquet")
    return vectors


class Bad:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


class TestReading:
    def test_clip_retrievals_folder(self, tmp_path: Path) -> None:
        vectors = write_foreign(tmp_path / "a")
        found = Embeddings.open(tmp_path / "a")
        assert found.manifest is None and (found.rows, found.dim, len(found)) == (3, 4, 1)
        assert np.array_equal(found[0].vectors, vectors)
        known = found[0].entries.to_pylist()
        assert [entry["key"] for entry in known] == ["/photos/0.jpg", "/photos/1.jpg", "/photos/2.jpg"]
        assert [entry["captions"] for entry in known] == [[("en", ["x"])], [], [("en", ["y"])]]
        assert {entry["path"] for entry in known} == {None}
        known = entries(Embeddings.open(tmp_path / "a", root="/photos"))
        assert [entry["path"] for entry in known] == ["0.jpg", "1.jpg", "2.jpg"]
        assert {entry["path"] for entry in entries(Embeddings.open(tmp_path / "a", root="/photos/deeper"))} == {None}

        write_foreign(tmp_path / "b", 2, {"url": ["u", "v"], "width": [640, 480], "height": [480, 640]})
        known = entries(Embeddings.open(tmp_path / "b"))
        assert [(entry["key"], entry["width"]) for entry in known] == [("img_emb_0/0", 640), ("img_emb_0/1", 480)]

    def test_arrays_that_are_refused(self, tmp_path: Path) -> None:
        vectors = write_foreign(tmp_path / "a")
        path, touched = tmp_path / "a" / "img_emb" / "img_emb_0.npy", tmp_path / "touched"

        def header(shape: str, dtype: str = "<f2", order: str = "False") -> bytes:
            text = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117) + "\n"
            return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()

        body = vectors.tobytes()
        for data, message in (
            (header("(3,)", "|O") + pickle.dumps([Bad(touched)] * 3), "holds object, expected float16 or float32"),
            (header("(1000000000000, 1000000000)") + body, "claims 1000000000000 x 1000000000 float16, but has"),
            (header("(4, 4)") + body, "claims 4 x 4 float16, but has"),
            (header("(2, 4)") + body, "claims 2 x 4 float16, but has"),
            (header("(-3, -4)") + body, r"has shape \(-3, -4\), expected \(rows, width\)"),
            (header("(3, 4, 1)") + body, r"has shape \(3, 4, 1\)"),
            (header("(3, 4)", order="True") + body, "in C order"),
            (header("(3, 4)", "<i2") + body, "holds int16"),
            (header("(3, __import__)") + body, "no readable npy file"),
            (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + body, "no readable npy file"),
            (header("(" * 500), "no readable npy file"),
            (pickle.dumps(Bad(touched)), "no readable npy file"),
            (b"", "no readable npy file"),
            (header("(2, 6)") + body, "metadata_0.parquet has 3 rows, img_emb_0.npy has 2"),
        ):
            path.write_bytes(data)
            with pytest.raises(ValueError, match=message) as error:
                Embeddings.open(tmp_path / "a")
            assert "\n" not in str(error.value) and "cclm embed" in str(error.value)
        assert not touched.exists()
        vectors[1, 2] = np.nan
        np.save(path, vectors)
        with pytest.raises(ValueError, match="img_emb_0.npy: NaN or infinity from row 0 on"):
            Embeddings.open(tmp_path / "a")[0]

    def test_files_of_another_part_are_refused_when_they_are_used(
        self, tiny: Path, shards: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        embed(shards, out, tiny)
        for kind, suffix in (("metadata", "parquet"), ("img_emb", "npy")):
            first, second = (out / kind / f"{kind}_{number}.{suffix}" for number in (0, 1))
            before = first.read_bytes()
            first.write_bytes(second.read_bytes())
            found = Embeddings.open(out)
            assert len(found[1]) == 10
            with pytest.raises(ValueError, match=f"{kind}_0.{suffix} was changed after it was written, or is of"):
                found[0]
            first.write_bytes(before)
        (out / "parts" / "2.json").unlink()
        with pytest.raises(ValueError, match="2.json, which tells what part 2 consists of, is missing"):
            Embeddings.open(out)[2]

    def test_metadata_that_is_refused(self, tiny: Path, shards: Path, tmp_path: Path) -> None:
        write_foreign(tmp_path / "a")
        path = tmp_path / "a" / "metadata" / "metadata_0.parquet"
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(ValueError, match="no readable parquet file"):
            Embeddings.open(tmp_path / "a")
        path.unlink()
        with pytest.raises(FileNotFoundError, match="metadata_0.parquet is missing"):
            Embeddings.open(tmp_path / "a")
        pq.write_table(pa.table({"image_path": ["a", "b", "c"], "width": ["wide"] * 3}), path)
        with pytest.raises(ValueError, match="no metadata of pictures"):
            Embeddings.open(tmp_path / "a")[0]

        out = tmp_path / "out"
        embed(shards, out, tiny)
        metadata = out / "metadata" / "metadata_0.parquet"
        pq.write_table(pq.read_table(metadata).drop_columns(["sha256"]), metadata)
        with pytest.raises(ValueError, match="metadata_0.parquet was changed after it was written"):
            Embeddings.open(out)[0]
        manifest = json.loads((out / "manifest.json").read_text())
        for changed, message in (
            (manifest | {"rows": 31}, "3 parts of 30 rows are there, manifest.json says 3 of 31"),
            (manifest | {"more": 1}, "fields missing or unknown: more"),
            (manifest | {"schema_version": 9}, "has schema_version 9"),
            ([], "fields missing or unknown"),
        ):
            (out / "manifest.json").write_text(json.dumps(changed))
            with pytest.raises(ValueError, match=message):
                Embeddings.open(out)
        with pytest.raises(FileNotFoundError, match="no img_emb/img_emb_.*npy in"):
            Embeddings.open(tmp_path / "nowhere")
