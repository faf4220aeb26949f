"""Shards: written whole or not at all, read by us and by webdataset, damage named."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from cclm.data.check import check_dataset, check_shards
from cclm.data.shards import Manifest, ShardWriter, list_shards, read_records, write_shards
from cclm.storage import file_hash
from cclm.types import Record
from tests.data.conftest import full_disk, image_records, picture, text_records


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def cut_in_half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_image_records_round_trip(tmp_path: Path) -> None:
    records = [
        Record("a", picture(1), {"en": ["one"], "de": ["eins", "ein"]}, {"en": "one", "fr": "un"}),
        Record("folder/b", picture(2, kind="PNG"), {"pt-br": ["dois"]}),
        Record("k" * 150, picture(3, kind="WEBP"), {}, {"zh": "三"}),
    ]
    manifest = write_shards(records, tmp_path / "train", samples_per_shard=2)
    assert list(read_records(tmp_path / "train")) == records
    assert manifest == Manifest.load(tmp_path / "train")
    assert [entry.samples for entry in manifest.shards] == [2, 1]
    assert manifest.languages == {"de": 1, "en": 1, "fr": 1, "pt-br": 1, "zh": 1}
    assert manifest.shards[0].sha256 == file_hash(tmp_path / "train" / "000000.tar")
    assert check_shards(tmp_path / "train") == []


def test_text_rows_share_members(tmp_path: Path) -> None:
    manifest = write_shards(text_records(100), tmp_path / "t", samples_per_shard=40, rows_per_member=16)
    read = list(read_records(tmp_path / "t"))
    assert [record.parallel for record in read] == [record.parallel for record in text_records(100)]
    assert len({record.key for record in read}) == 100
    assert read[17].key == "00000001#1"
    assert manifest.kind == "text" and manifest.samples == 100
    with tarfile.open(tmp_path / "t" / "000000.tar") as tar:
        assert len(tar.getnames()) == 3


def test_equal_records_give_equal_checksums(tmp_path: Path) -> None:
    first, second = (write_shards(image_records(5), tmp_path / name) for name in "ab")
    assert first == second


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    import webdataset

    write_shards(image_records(7), tmp_path / "train")
    samples = list(webdataset.WebDataset(str(tmp_path / "train" / "000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [record.key for record in image_records(7)]
    assert samples[3]["jpg"] == picture(3)


def test_webdataset_writes_what_we_read(tmp_path: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "w.tar")) as writer:
        writer.write({"__key__": "x", "png": picture(1, kind="PNG"), "json": {"captions": {"en": ["one"]}}})
    assert list(read_records(tmp_path / "w.tar")) == [Record("x", picture(1, kind="PNG"), {"en": ["one"]})]


def test_img2dataset_shards_read_as_they_are(tmp_path: Path) -> None:
    fields = {"caption": "from the json", "url": "u", "key": "000000001", "status": "success", "width": 40}
    write_tar(
        tmp_path / "00000.tar",
        {
            "000000000.jpg": picture(0),
            "000000000.txt": b"  from the text\n",
            "000000000.json": json.dumps({**fields, "caption": None}).encode(),
            "000000001.jpg": picture(1),
            "000000001.json": json.dumps(fields).encode(),
            "000000001.txt": b"from the json",
            "000000002.jpg": picture(2),
            "000000002.txt": b"only text",
        },
    )
    (tmp_path / "00000_stats.json").write_text("{}")
    captions = [record.captions for record in read_records(tmp_path, language="id")]
    assert captions == [{"id": ["from the text"]}, {"id": ["from the json"]}, {"id": ["only text"]}]


def test_patterns_and_lists(tmp_path: Path) -> None:
    write_shards(image_records(30), tmp_path / "a", samples_per_shard=10)
    names = [str(tmp_path / "a" / f"00000{number}.tar") for number in range(3)]
    assert list_shards(str(tmp_path / "a")) == names
    assert list_shards(str(tmp_path / "a" / "{000001..000002}.tar")) == names[1:]
    assert list_shards(str(tmp_path / "{a,a}" / "00000{0,2}.tar")) == [names[0], names[2]] * 2
    assert list_shards(str(tmp_path / "a" / "*.tar")) == names
    assert list_shards([names[2], names[0]]) == [names[2], names[0]]


def test_missing_folder(tmp_path: Path) -> None:
    for call in (list_shards, check_shards, check_dataset):
        with pytest.raises(FileNotFoundError, match=r"nowhere.*give a folder"):
            call(tmp_path / "nowhere")


def test_empty_folder(tmp_path: Path) -> None:
    for call in (list_shards, check_shards, check_dataset):
        with pytest.raises(ValueError, match=r"no \.tar shard in .*cclm data build"):
            call(tmp_path)


def test_a_folder_of_splits_names_them(tmp_path: Path) -> None:
    write_shards(image_records(2), tmp_path / "train")
    with pytest.raises(ValueError, match="give one of its splits: train"):
        list_shards(tmp_path)


def test_pipe_only_with_the_flag(tmp_path: Path) -> None:
    write_shards(image_records(3), tmp_path / "a")
    source = f"pipe:cat {tmp_path}/a/000000.tar; touch {tmp_path}/ran"
    with pytest.raises(ValueError, match="would run a shell command; pass allow_pipe=true"):
        list(read_records(source))
    assert not (tmp_path / "ran").exists()
    assert list(read_records(source, allow_pipe=True)) == list(image_records(3))
    with pytest.raises(OSError, match="pipe:exit 3 ended with status 3"):
        list(read_records("pipe:exit 3", allow_pipe=True))


def test_foreign_members_never_run(tmp_path: Path) -> None:
    bomb = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()"
    pickle = b"cbuiltins\nexec\n(V" + bomb.encode() + b"\ntR."
    caption = b'{"captions": {"en": ["x"]}}'
    members = {"good.jpg": picture(1), "good.json": caption}
    for suffix, data in {"pkl": pickle, "pyd": pickle, "pth": pickle, "npy": b"\x93NUMPY", "PKL": pickle}.items():
        members |= {f"{suffix}.jpg": picture(2), f"{suffix}.{suffix}": data, f"{suffix}.json": caption}
    write_tar(tmp_path / "s" / "0.tar", members)
    skipped: Counter[str] = Counter()
    assert [record.key for record in read_records(tmp_path / "s", skipped=skipped)] == ["good"]
    reasons = {"unknown member .pkl": 2, "unknown member .pyd": 1, "unknown member .pth": 1, "unknown member .npy": 1}
    assert skipped == reasons
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match=r"0\.tar: unknown member \.npy \(1 samples\).*\.pkl \(2 samples\)"):
        check_dataset(tmp_path / "s")


def test_tar_cut_in_half_is_never_the_end(tmp_path: Path) -> None:
    write_shards(image_records(20), tmp_path / "train", samples_per_shard=10)
    cut_in_half(tmp_path / "train" / "000001.tar")
    with pytest.raises(ValueError, match=r"000001\.tar: shard truncated after \d samples"):
        list(read_records(tmp_path / "train"))


def test_tar_cut_between_two_members_is_seen(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {"a.jpg": bytes(512), "b.jpg": bytes(512)})
    path.write_bytes(path.read_bytes()[:2048])  # tarfile takes this for a whole tar
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 2
    with pytest.raises(ValueError, match="shard truncated"):
        list(read_records(path))


def test_compressed_and_foreign_files_are_named(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "z.tar").write_bytes(gzip.compress(bytes(2**20)))
    (tmp_path / "x.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ValueError, match=r"z\.tar: compressed: .* gunzip it"):
        list(read_records(tmp_path / "z.tar"))
    with pytest.raises(ValueError, match=r"x\.tar: not a tar header at byte 0"):
        list(read_records(tmp_path / "x.tar"))


def test_links_and_twins_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        link = tarfile.TarInfo("secret.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name in ("two.jpg", "two.png", "two.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(picture(1))
            tar.addfile(member, io.BytesIO(picture(1)))
    skipped: Counter[str] = Counter()
    assert list(read_records(tmp_path / "0.tar", skipped=skipped)) == []
    assert skipped == {"link or device member": 1, "two images under one key": 1}


def test_a_member_over_the_cap_is_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("bomb.json")
    header.size = 10 * 2**30
    path = tmp_path / "0.tar"
    with open(path, "wb") as handle:
        handle.write(header.tobuf(tarfile.GNU_FORMAT))
        handle.truncate(512 + header.size + 1024)  # sparse: no disk is used
    skipped: Counter[str] = Counter()
    assert list(read_records(path, skipped=skipped)) == []
    assert skipped == {"member over 16 MiB or sample over 96 MiB": 1}


def test_check_names_every_bad_shard(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "train"
    write_shards(image_records(50), folder, samples_per_shard=10)
    (folder / "000000.tar").unlink()
    cut_in_half(folder / "000001.tar")
    data = bytearray((folder / "000002.tar").read_bytes())
    data[600] ^= 1
    (folder / "000002.tar").write_bytes(data)
    write_tar(folder / "000009.tar", {"a.jpg": picture(1), "a.txt": b"one"})
    problems = {str(problem) for problem in check_shards(folder)}
    assert "000000.tar: missing" in problems
    assert "000001.tar: shard truncated" in problems
    assert "000002.tar: wrong checksum" in problems
    assert "000009.tar: not in the manifest" in problems
    assert not any(problem.startswith(("000003", "000004")) for problem in problems)
    with pytest.raises(ValueError, match=r"train/000000\.tar.*train/000001\.tar.*train/000002\.tar") as raised:
        check_dataset(tmp_path / "set")
    assert "\n" not in str(raised.value)


def test_check_finds_what_the_writer_would_have_refused(tmp_path: Path) -> None:
    english = json.dumps({"captions": {"English": ["one"]}}).encode()
    write_tar(
        tmp_path / "train" / "a.tar", {"a.jpg": picture(1), "a.txt": b"one", "b.jpg": picture(2), "b.json": english}
    )
    write_tar(tmp_path / "train" / "b.tar", {"a.jpg": picture(1), "a.txt": b"one"})
    assert {str(problem) for problem in check_shards(tmp_path / "train")} == {
        "a.tar: language that is no code like en or pt-br (1 samples)",
        "b.tar: key of a former image (1 samples)",
    }


def test_check_reports_what_is_whole(tmp_path: Path) -> None:
    write_shards(image_records(5), tmp_path / "train")
    write_shards(text_records(5), tmp_path / "test")
    report = check_dataset(tmp_path)
    assert "train: 1 shards, 5 image records, checksums right; de 5 en 5" in report
    assert "test: 1 shards, 5 text records" in report


def test_manifest_that_is_none(tmp_path: Path) -> None:
    write_shards(image_records(2), tmp_path / "train")
    path = tmp_path / "train" / "manifest.json"
    for text in ("{", "[]", '{"shards": [{"name": "../x", "samples": 1, "bytes": 1, "sha256": ""}]}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json is not a manifest"):
            list_shards(tmp_path / "train")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record("a.b", picture(1), {"en": ["x"]}), "record key 'a.b'"),
        (Record("../a", picture(1), {"en": ["x"]}), "record key '../a'"),
        (Record("a", picture(1)), "neither captions nor parallel"),
        (Record("a", picture(1), {"English": ["x"]}), "'English' is not a lower-case code"),
        (Record("a", b"GIF89a", {"en": ["x"]}), "neither jpeg, png nor webp"),
        (Record("a", parallel={"en": "x"}), "of kind text"),
        (Record("first", picture(1), {"en": ["x"]}), "comes twice"),
    ],
)
def test_a_wrong_record_leaves_the_old_shards(tmp_path: Path, record: Record, message: str) -> None:
    before = write_shards(image_records(2), tmp_path / "train")
    with pytest.raises(ValueError, match=message):
        write_shards([Record("first", picture(0), {"en": ["y"]}), record], tmp_path / "train")
    assert check_shards(tmp_path / "train") == [] and Manifest.load(tmp_path / "train") == before
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_no_record_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no record to write to .*train; check the recipe's source"):
        write_shards([], tmp_path / "train")
    assert list(tmp_path.iterdir()) == []


def test_two_writers_at_once(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a") as first, ShardWriter(tmp_path / "b") as second:
        for number, record in enumerate(image_records(10)):
            (first if number % 3 else second).write(record)
    assert (first.manifest.samples, second.manifest.samples) == (6, 4)


@pytest.mark.parametrize("limit", [700, 30_000])  # in the first tar's buffer; within a tar
@pytest.mark.parametrize("before", [False, True])
def test_full_disk_leaves_nothing_half_written(tmp_path: Path, limit: int, before: bool) -> None:
    if before:
        write_shards(image_records(3), tmp_path / "train")
    with full_disk(limit), pytest.raises(OSError, match="disk full while writing"):
        write_shards(image_records(40), tmp_path / "train", samples_per_shard=20)
    assert [path.name for path in tmp_path.iterdir()] == (["train"] if before else [])
    if before:
        assert check_shards(tmp_path / "train") == []
        assert len(list(read_records(tmp_path / "train"))) == 3
