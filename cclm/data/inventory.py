"""What a folder of downloaded pictures holds: each one's checksum and size, what is damaged, what has changed since."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from cclm.data.raw import Place, open_images, read_place
from cclm.data.records import image_suffix
from cclm.errors import SampleError
from cclm.images import open_image
from cclm.storage import whole_file

SHOWN = 5


@dataclass(frozen=True)
class PictureFile:
    """`name`: the path below the folder, of a picture in a zip the zip's path and then its own. `kind`: jpg, png or
    webp, by its bytes.
    """

    name: str
    kind: str
    bytes: int
    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class Inventory:
    """`damaged`: name -> why it is no picture that shards can hold. `others`: ending -> number of other files."""

    pictures: tuple[PictureFile, ...]
    damaged: dict[str, str]
    others: dict[str, int]

    @property
    def kinds(self) -> dict[str, int]:
        return dict(sorted(Counter(picture.kind for picture in self.pictures).items()))

    def save(self, path: Path) -> None:
        about = {"kinds": self.kinds, "damaged": self.damaged, "others": self.others}
        with whole_file(path) as partial:
            text = json.dumps(about | {"pictures": [asdict(each) for each in self.pictures]}, ensure_ascii=False)
            partial.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Errors: OSError where it is missing, ValueError where it is no inventory."""
        try:
            stored = json.loads(path.read_bytes())
            pictures = tuple(PictureFile(**each) for each in stored["pictures"])
            return cls(pictures, dict(stored["damaged"]), dict(stored["others"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no index of `cclm data index` ({error}); make it anew") from None

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.items())
        lines = [f"{len(self.pictures):,} pictures" + (f": {kinds}" if kinds else "")]
        if self.damaged:
            lines.append(f"{len(self.damaged):,} damaged:")
            lines += [f"  {name}: {reason}" for name, reason in sorted(self.damaged.items())]
        if self.others:
            lines.append("other files: " + ", ".join(f"{count:,} {kind}" for kind, count in self.others.items()))
        return "\n".join(lines)

    def differences(self, now: Inventory) -> list[str]:
        """What has changed since, in words: pictures that are gone, are other ones, are new."""
        before, after = ({each.name: each for each in found.pictures} for found in (self, now))
        common = before.keys() & after.keys()
        changed = {
            "missing": before.keys() - after.keys(),
            "changed": {name for name in common if before[name].sha256 != after[name].sha256},
            "new": after.keys() - before.keys(),
        }
        return [f"{len(names):,} {what}: {_listed(names)}" for what, names in changed.items() if names]


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:SHOWN]) + (" .." if len(ordered) > SHOWN else "")


def _examined(name: str, data: bytes) -> PictureFile:
    """Decoded to its last pixel, as half a download has a sound header. Errors: SampleError."""
    image, kind = open_image(data), image_suffix(data)
    assert kind is not None  # else it had not been read
    return PictureFile(name, kind, len(data), hashlib.sha256(data).hexdigest(), *image.size)


def take_inventory(folder: Path) -> Inventory:
    """Every picture below a folder, in zips too. Errors: ValueError for no folder, or one without any picture."""
    if not folder.is_dir():
        raise ValueError(f"data index: {folder} is no folder; give the one that the pictures, or zips of them, lie in")
    pictures, damaged = [], {}
    with open_images(folder) as images:
        found = {_name(folder, place): place for places in images.places.values() for _, place in places}
        for name in sorted(found):
            try:
                pictures.append(_examined(name, read_place(found[name])))
            except SampleError as error:
                damaged[name] = error.reason
    if not pictures and not damaged:
        raise ValueError(f"data index: no jpg, png or webp file below {folder}; is the archive still packed?")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    others = Counter(Path(name).suffix.lower() or "without ending" for name in files - found.keys())
    return Inventory(tuple(pictures), damaged, dict(sorted(others.items())))


def _name(folder: Path, place: Place) -> str:
    if isinstance(place, Path):
        return place.relative_to(folder).as_posix()
    archive, member = place
    return f"{Path(str(archive.filename)).relative_to(folder).as_posix()}/{member.filename}"
