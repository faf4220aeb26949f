"""A folder of downloaded pictures is listed, and compared with its list later."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from cclm.cli import main


def picture(kind: str, size: tuple[int, int] = (32, 24)) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    below = tmp_path / "pictures"
    (below / "deep").mkdir(parents=True)
    (below / "a.jpg").write_bytes(picture("jpeg"))
    (below / "deep" / "ü b.PNG").write_bytes(picture("png", (5, 7)))
    (below / "deep" / "a.jpg").write_bytes(picture("webp"))  # misnamed
    (below / "half.jpg").write_bytes(picture("jpeg", (64, 64))[:900])
    (below / "page.jpg").write_bytes(b"<html>404</html>")
    (below / "notes.txt").write_text("x")
    with zipfile.ZipFile(below / "deep" / "more.zip", "w") as archive:
        archive.writestr("a.jpg", picture("jpeg"))
    return below


def test_every_picture_is_listed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "index", str(folder), "--output", str(tmp_path / "index.json")])
    told = capsys.readouterr().out
    assert told == (
        f"{folder}: 4 pictures: 2 jpg, 1 png, 1 webp\n2 damaged:\n  half.jpg: image not readable\n"
        "  page.jpg: image neither jpeg, png nor webp\nother files: 1 .txt, 1 .zip\n"
    )
    stored = json.loads((tmp_path / "index.json").read_text())
    assert stored["kinds"] == {"jpg": 2, "png": 1, "webp": 1}
    listed = {each["name"]: each for each in stored["pictures"]}
    assert set(listed) == {"a.jpg", "deep/a.jpg", "deep/more.zip/a.jpg", "deep/ü b.PNG"}
    data = (folder / "deep" / "ü b.PNG").read_bytes()
    assert listed["deep/ü b.PNG"] == {
        "name": "deep/ü b.PNG", "kind": "png", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
        "width": 5, "height": 7,
    }  # fmt: skip


def test_what_has_changed_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = str(tmp_path / "index.json")
    main(["data", "index", str(folder), "--output", index])
    main(["data", "index", str(folder), "--check", index])
    assert "damaged" in capsys.readouterr().out
    (folder / "a.jpg").write_bytes(picture("jpeg", (9, 9)))
    (folder / "deep" / "a.jpg").unlink()
    (folder / "new.png").write_bytes(picture("png"))
    with pytest.raises(SystemExit) as stopped:
        main(["data", "index", str(folder), "--check", index])
    assert stopped.value.code == 2
    assert "1 missing: deep/a.jpg; 1 changed: a.jpg; 1 new: new.png; fetch these again" in capsys.readouterr().err


def test_what_cannot_be_listed_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.json").write_text('{"pictures": [{"name": 1}]}')
    for arguments, message in (
        ([folder], "give --output index.json to write, or --check index.json"),
        ([folder, "--output", "x.json", "--check", "y.json"], "give --output index.json to write, or --check"),
        ([tmp_path / "gone", "--output", tmp_path / "i.json"], "gone is no folder"),
        ([tmp_path / "empty", "--output", tmp_path / "i.json"], "no jpg, png or webp file below"),
        ([folder, "--check", tmp_path / "wrong.json"], "wrong.json is no index of `cclm data index`"),
        ([folder, "--check", tmp_path / "gone.json"], "gone.json"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["data", "index", *map(str, arguments)])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "i.json").exists()
