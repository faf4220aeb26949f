"""The published caption corpora in their published forms: Conceptual Captions, COCO, SBU, Visual Genome."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from data_recipes import coco_sbu_vg, conceptual_captions


def picture(kind: str = "jpeg") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, kind)
    return buffer.getvalue()


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def fetched(number: int, caption: str) -> dict[str, bytes]:
    """One sample as img2dataset writes it."""
    fields = {"url": f"http://host/{number}.jpg", "caption": caption, "key": f"{number:09d}", "status": "success"}
    return {"jpg": picture(), "txt": caption.encode(), "json": json.dumps(fields).encode()}


def test_translations_join_pictures_by_url(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shard(
        tmp_path / "00000.tar", {f"{n:09d}": fetched(n, f"caption {n}") for n in range(3)} | {"9": {"jpg": b"x"}}
    )
    uc2 = [
        "0_1\thttp://host/0.jpg\tBild null\tsuccess",
        '0_2\thttp://host/1.jpg\t"mit ""Zeichen"""\tsuccess',
        "0_3\thttp://host/2.jpg\t\tfail",
        "0_4\thttp://host/other.jpg\tnirgends\tsuccess",
        "short\tline",
    ]
    (tmp_path / "translations").mkdir()
    (tmp_path / "translations" / "train_imageId2Ann_de.tsv").write_text("\n".join(uc2) + "\n")
    more = [{"url": "http://host/0.jpg", "captions": {"fr": "image zéro", "en": "caption 0"}}, {"url": 3}]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    found = list(conceptual_captions.records(tmp_path))
    assert [(split, record.key, record.captions) for split, record in found] == [
        ("train", "00000-000000000", {"en": ["caption 0"], "de": ["Bild null"], "fr": ["image zéro"]}),
        ("train", "00000-000000001", {"en": ["caption 1"], "de": ['mit "Zeichen"']}),
        ("train", "00000-000000002", {"en": ["caption 2"]}),
    ]
    assert "1 left out, first line 5: not 4 cells" in caplog.text
    assert "1 left out, first line 3: picture or translation failed" in caplog.text
    assert "not of the form {url, captions: {language: text}}" in caplog.text
    assert "1 left out, first 9: image without captions" in caplog.text


def test_conceptual_captions_names_bad_downloads(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.tar below .*img2dataset --output_format webdataset"):
        list(conceptual_captions.records(tmp_path))
    write_shard(tmp_path / "a" / "00000.tar", {f"{n:09d}": fetched(n, "x") for n in range(3)})
    path = tmp_path / "a" / "00000.tar"
    path.write_bytes(path.read_bytes()[: 3 * 512])
    with pytest.raises(ValueError, match=r"00000\.tar: .*fetch this shard again"):
        list(conceptual_captions.records(tmp_path))


def write_coco_sbu_vg(folder: Path) -> None:
    (folder / "train2017").mkdir()
    for name in ("000000000001.jpg", "000000000002.jpg"):
        (folder / "train2017" / name).write_bytes(picture())
    with zipfile.ZipFile(folder / "VG_100K.zip", "w") as archive:
        archive.writestr("VG_100K/7.jpg", picture())
    (folder / "123_abc.jpg").write_bytes(picture())
    images = [{"id": n, "file_name": f"{n:012d}.jpg"} for n in (1, 2, 3)]
    said = [{"image_id": n, "caption": text} for n, text in ((1, "a cat "), (1, "a pet"), (3, "gone"))]
    coco = {"images": images, "annotations": said}
    (folder / "captions_train2017.json").write_text(json.dumps(coco))
    (folder / "captions_val2017.json").write_text(
        json.dumps({"images": images[1:2], "annotations": [{"image_id": 2, "caption": "a dog"}]})
    )
    sbu = {
        "image_urls": ["http://static.flickr.com/1/123_abc.jpg", "http://x/gone.jpg"],
        "captions": ["a boat", "lost"],
    }
    (folder / "sbu-captions-all.json").write_text(json.dumps(sbu))
    sizes = (("tail", 2), ("whole room", 90), ("table", 20), ("table", 19))
    regions = [{"image_id": 7, "width": side, "height": side, "phrase": phrase} for phrase, side in sizes]
    (folder / "region_descriptions.json").write_text(
        json.dumps([{"id": 7, "regions": regions}, {"id": 8, "regions": []}])
    )


def test_the_three_corpora(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_coco_sbu_vg(tmp_path)
    found = [(split, record.key, record.captions["en"]) for split, record in coco_sbu_vg.records(tmp_path, regions=3)]
    assert found == [
        ("train", "coco-000000000001", ["a cat", "a pet"]),
        ("dev", "coco-000000000002", ["a dog"]),
        ("train", "sbu-123_abc", ["a boat"]),
        ("train", "vg-7", ["whole room", "table"]),
    ]
    assert "1 left out, first 000000000002.jpg: no captions" in caplog.text
    assert "1 left out, first 000000000003.jpg: image missing" in caplog.text
    assert "1 left out, first gone.jpg: image missing" in caplog.text


def test_karpathy_split_goes_first(tmp_path: Path) -> None:
    write_coco_sbu_vg(tmp_path)
    rows = [("000000000001.jpg", "restval"), ("000000000002.jpg", "test")]
    images = [{"filename": name, "split": split, "sentences": [{"raw": "a thing"}]} for name, split in rows]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    found = [(split, record.key) for split, record in coco_sbu_vg.records(tmp_path) if record.key.startswith("coco")]
    assert found == [("train", "coco-000000000001"), ("test", "coco-000000000002")]


def test_coco_sbu_vg_names_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has none of captions_\*\.json, dataset_coco\.json"):
        list(coco_sbu_vg.records(tmp_path))
    path = tmp_path / "region_descriptions.json"
    path.write_text('[{"regions": [{"phrase": "x"')
    with pytest.raises(ValueError, match=r"region_descriptions\.json is cut or no JSON"):
        list(coco_sbu_vg.records(tmp_path))
    path.write_text('[{"regions": [{"phrase": "x"}]}]')
    with pytest.raises(ValueError, match=r"not of its dataset's published form \(no 'width'\)"):
        list(coco_sbu_vg.records(tmp_path))
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"is no JSON list"):
        list(coco_sbu_vg.records(tmp_path))
