"""Pictures are read from declared folders and from nowhere else, whatever an entry claims."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cclm.errors import SampleError
from cclm.retrieval.metadata import Entry
from cclm.retrieval.pictures import Pictures, media_type


def encoded(kind: str = "JPEG", colour: tuple[int, int, int] = (200, 10, 10)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, kind)
    return file.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    (tmp_path / "root" / "a" / "b" / "red.jpg").write_bytes(encoded())
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.jpg").write_bytes(encoded())
    return tmp_path / "root"


def refused(folder: Path, path: str | None, match: str, **place: int) -> None:
    with pytest.raises(SampleError, match=match) as caught:
        Pictures([folder]).read(Entry("k", path=path, **place))
    assert "\n" not in str(caught.value) and str(folder) not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_whole_files(root: Path, kind: str) -> None:
    data = encoded(kind)
    (root / "a" / "ж 1.img").write_bytes(data)
    pictures, entry = Pictures([root / "none", root]), Entry("k", root=1, path="a/ж 1.img")
    assert pictures.read(entry) == data and media_type(data) == f"image/{kind.lower()}"
    image = pictures.open(entry)
    assert image.size == (40, 30) and image.mode == "RGB" and image.getpixel((20, 15))[0] > 150


def test_a_picture_that_has_changed_is_not_shown_for_the_one_indexed(root: Path) -> None:
    pictures, file = Pictures([root]), root / "a" / "b" / "red.jpg"
    entry = Entry("k", path="a/b/red.jpg", sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    assert pictures.read(entry) == file.read_bytes()
    file.write_bytes(encoded(colour=(10, 10, 200)))
    with pytest.raises(SampleError, match="picture is another one than was indexed"):
        pictures.open(entry)


def test_members_of_a_tar_and_places_beyond_its_end(root: Path) -> None:
    data = [encoded(colour=(255, 0, 0)), encoded(colour=(0, 0, 255))]
    with tarfile.open(root / "shard.tar", "w") as tar:
        for number, content in enumerate(data):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with tarfile.open(root / "shard.tar") as tar:
        places = [(member.offset_data, member.size) for member in tar.getmembers()]
    pictures = Pictures([root])
    assert [pictures.read(Entry("k", path="shard.tar", offset=at, size=size)) for at, size in places] == data
    end = (root / "shard.tar").stat().st_size
    for offset, size in ((end, 10), (end - 5, 10), (-1, 10), (0, 0), (0, -1), (2**62, 2**20), (2**70, 1)):
        refused(root, "shard.tar", "beyond its file", offset=offset, size=size)
    refused(root, "shard.tar", "over 64 MiB", offset=0, size=2**40)
    refused(root, "shard.tar", "beyond its file", offset=0)
    refused(root, "shard.tar", "no jpeg", offset=0, size=100)  # a tar's header


@pytest.mark.parametrize(
    "path",
    ["../outside/secret.jpg", "a/../../outside/secret.jpg", "a/b/../b/red.jpg", "..", "a\\..\\x.jpg", "x\0.jpg"],
)
def test_traversal(root: Path, path: str) -> None:
    refused(root, path, "leads out")


def test_absolute_paths(root: Path, tmp_path: Path) -> None:
    refused(root, str(tmp_path / "outside" / "secret.jpg"), "leads out")
    refused(root, str(root / "a" / "b" / "red.jpg"), "leads out")  # even where it leads in


def test_links_that_lead_out(root: Path, tmp_path: Path) -> None:
    (root / "file.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    (root / "a" / "folder").symlink_to(tmp_path / "outside")
    (root / "up").symlink_to("..")
    (root / "chain").symlink_to("up")
    (root / "loop.jpg").symlink_to("loop.jpg")
    for path in ("file.jpg", "a/folder/secret.jpg", "up/outside/secret.jpg", "chain/outside/secret.jpg"):
        refused(root, path, "leads out")
    refused(root, "loop.jpg", "not readable")


def test_links_that_stay_inside_and_a_root_that_is_one(root: Path, tmp_path: Path) -> None:
    (root / "shown.jpg").symlink_to("a/b/red.jpg")
    (root / "short").symlink_to(root / "a" / "b")
    (tmp_path / "linked").symlink_to(root)
    for path in ("shown.jpg", "short/red.jpg"):
        assert Pictures([tmp_path / "linked"]).read(Entry("k", path=path)) == encoded()


def test_a_folder_that_becomes_a_link_after_it_was_checked(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, opened = Entry("k", path="a/b/red.jpg"), os.open
    (tmp_path / "outside" / "red.jpg").write_bytes(encoded("PNG"))

    def swapping(path: str | Path, *rest: int, **named: int) -> int:
        if path == "b":
            (root / "a" / "b").rename(root / "a" / "former")
            (root / "a" / "b").symlink_to(tmp_path / "outside")
        return opened(path, *rest, **named)

    monkeypatch.setattr(os, "open", swapping)
    with pytest.raises(SampleError, match="not readable"):
        Pictures([root]).read(entry)


def test_only_regular_files(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")  # would wait for a writer
    refused(root, "pipe.jpg", "no regular file")
    refused(root, "a", "no regular file")
    refused(root, "", "no regular file")
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(str(root / "s"))
        except OSError:
            return  # the folder's name is too long for one
        refused(root, "s", "not readable|no regular")


def test_what_is_missing_or_no_picture(root: Path) -> None:
    (root / "page.jpg").write_text("<html>")
    (root / "sound.webp").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    (root / "empty.jpg").touch()
    with open(root / "huge.jpg", "wb") as handle:
        handle.truncate(64 * 2**20 + 1)
    refused(root, "none.jpg", "missing")
    refused(root, "a/b/red.jpg/x", "missing")
    refused(root, "x" * 5000, "missing")
    refused(root, "\udce9.jpg", "missing")
    refused(root, None, "not known")
    refused(root, "page.jpg", "no jpeg")
    refused(root, "sound.webp", "no jpeg")
    refused(root, "empty.jpg", "beyond its file")
    refused(root, "huge.jpg", "over 64 MiB")
    for number in (-1, 1):
        refused(root, "a/b/red.jpg", "no declared folder", root=number)
    with pytest.raises(SampleError, match="no declared folder"):
        Pictures([]).read(Entry("k", path="a/b/red.jpg"))


def test_no_descriptor_stays_open(root: Path) -> None:
    pictures, entry = Pictures([root]), Entry("k", path="a/b/red.jpg")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        pictures.read(entry)
        for wrong in ("a/b", "a/b/none.jpg"):
            with pytest.raises(SampleError):
                pictures.read(replace(entry, path=wrong))
    assert len(os.listdir("/proc/self/fd")) == before
