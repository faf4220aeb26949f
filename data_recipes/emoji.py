"""Emoji in four art styles, named in 20 languages: the quickstart's corpus, about 7,000 pictures.

Source: npm packages, fetched with `npm pack` into the source folder (18 MB; nothing in them is executed):
  package                                               holds       licence
  cldr-annotations-full, cldr-annotations-derived-full  names       Unicode-3.0
  @iconify-json/noto                                    pictures    Apache-2.0 (Google)
  @iconify-json/twemoji                                 pictures    CC-BY-4.0 (Twitter and contributors)
  @iconify-json/openmoji                                pictures    CC-BY-SA-4.0 (OpenMoji)
  @iconify-json/fluent-emoji-flat                       pictures    MIT (Microsoft)
Size: 7,013 pictures of 1,904 emoji, drawn by resvg-py on white: 35 MB as PNG, in about a minute on one core.

Splits: `train` holds pictures of three styles with their English name alone, so that the other 19 languages provably
never meet a picture; `names` the same concepts' names in all languages, without pictures; `test` the pictures of the
style that is never trained on, with names in all languages. Variants that differ in skin tone only are left out.
Pictures may be limited to Unicode's categories (Animals & Nature, Food & Drink ..), as twemoji's package tells them.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclm.types import Record

log = logging.getLogger(__name__)

LANGUAGES = tuple("en de fr es cs ru tr ar hi zh ja id ko pt it vi sw bn ta th".split())
STYLES = ("noto", "twemoji", "openmoji", "fluent-emoji-flat")
CATEGORISED = "twemoji"  # all packages tell categories, this one those of most emoji
# Versions are pinned so that the same corpus comes out everywhere.
NAMES = {"cldr-annotations-full": "48.2.0", "cldr-annotations-derived-full": "48.2.0"}
PICTURES = {"noto": "1.2.9", "twemoji": "1.2.5", "openmoji": "1.2.29", "fluent-emoji-flat": "1.2.6"}
PACKAGES = {**NAMES, **{f"@iconify-json/{style}": version for style, version in PICTURES.items()}}
SKIN_TONES = frozenset(f"{code:x}" for code in range(0x1F3FB, 0x1F400))
VARIATION_SELECTOR = "fe0f"  # asks for colour, and is written or left out as each source pleases
LARGEST_MEMBER = 64 * 2**20


@dataclass(frozen=True)
class ArtStyle:
    """One icon set: SVG bodies by icon name, icon names by emoji, and the side of its drawing square."""

    name: str
    bodies: dict[str, dict[str, Any]]
    emoji: dict[str, str]
    side: float

    def svg(self, emoji: str) -> str:
        icon = self.bodies[self.emoji[emoji]]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = icon.get("width", self.side), icon.get("height", self.side)
        side = max(width, height)
        box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}" width="{side:g}" height="{side:g}">{icon["body"]}</svg>'
        )


def archive(package: str, source: Path) -> Path:
    """The package's tarball in `source`, fetched with `npm pack` when it is not there yet."""
    version = PACKAGES[package]
    path = source / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    if path.exists():
        return path
    if shutil.which("npm") is None:
        raise ValueError(
            f"emoji: {path} is missing and so is the command npm, which fetches it: install Node.js (it brings npm), "
            f"or run `npm pack {package}@{version}` elsewhere and copy the file there"
        )
    source.mkdir(parents=True, exist_ok=True)
    log.info("fetching %s %s", package, version)
    command = ["npm", "pack", f"{package}@{version}", "--ignore-scripts", "--silent", "--pack-destination", "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if done.returncode or not path.exists():
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise ValueError(
            f"emoji: `npm pack {package}@{version}` failed ({lines[0][:200]}): check the network and npm's registry, "
            f"or put {path.name} into {source} by hand"
        )
    return path


def member(tar: tarfile.TarFile, path: Path, name: str) -> Any:
    """A JSON member of a tarball, read in memory and never extracted."""
    try:
        info = tar.getmember(name)
        handle = tar.extractfile(info) if info.isfile() and info.size <= LARGEST_MEMBER else None
        if handle is None:
            raise ValueError(f"emoji: {path} holds {name} as no plain file of at most 64 MiB: delete it and run again")
        return json.load(handle)
    except (KeyError, tarfile.TarError, EOFError, json.JSONDecodeError) as error:
        raise ValueError(f"emoji: cannot read {name} in {path} ({error}): delete it and run again") from None


def opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"emoji: {path} is no whole tarball ({error}): delete it and run again") from None


def normalised(codes: list[str]) -> str | None:
    """One spelling per emoji, such as `1f469-200d-1f680`; None for a variant in skin tone."""
    kept = [code for code in codes if code != VARIATION_SELECTOR]
    return None if SKIN_TONES.intersection(kept) else "-".join(kept)


def read_names(source: Path) -> dict[str, dict[str, str]]:
    """CLDR's spoken names, emoji -> language -> name, of the emoji named in all languages."""
    names: dict[str, dict[str, str]] = {}
    for package in NAMES:
        path = archive(package, source)
        part = "annotationsDerived" if "derived" in package else "annotations"
        with opened(path) as tar:
            for language in LANGUAGES:
                entries = member(tar, path, f"package/{part}/{language}/annotations.json")[part]["annotations"]
                for text, entry in entries.items():
                    emoji = normalised([f"{ord(character):x}" for character in text])
                    if emoji is not None and "tts" in entry:
                        names.setdefault(emoji, {})[language] = entry["tts"][0]
    return {emoji: found for emoji, found in names.items() if len(found) == len(LANGUAGES)}


def read_style(name: str, source: Path) -> ArtStyle:
    path = archive(f"@iconify-json/{name}", source)
    with opened(path) as tar:
        icons = member(tar, path, "package/icons.json")
        characters = member(tar, path, "package/chars.json")
    emoji = {}
    for codes, icon in characters.items():
        plain = normalised(codes.split("-"))
        if plain is not None and icon in icons["icons"]:
            emoji.setdefault(plain, icon)
    return ArtStyle(name, icons["icons"], emoji, icons["width"])


def read_categories(source: Path) -> dict[str, frozenset[str]]:
    """Category -> its emoji, of all that are named."""
    path = archive(f"@iconify-json/{CATEGORISED}", source)
    with opened(path) as tar:
        categories = member(tar, path, "package/metadata.json")["categories"]
        characters = member(tar, path, "package/chars.json")
    emoji: dict[str, set[str]] = {}
    for codes, icon in characters.items():
        plain = normalised(codes.split("-"))
        if plain is not None:
            emoji.setdefault(icon, set()).add(plain)
    return {
        category: frozenset().union(*(emoji.get(icon, ()) for icon in icons)) for category, icons in categories.items()
    }


def of_categories(names: str, source: Path) -> frozenset[str]:
    """The emoji of some categories, named with commas between. Errors: ValueError for one that is not there."""
    there = read_categories(source)
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in there:
            raise ValueError(f"emoji: no category {name!r}: choose among {', '.join(sorted(there))}")
    return frozenset().union(*(there[name] for name in wanted))


def draw(style: ArtStyle, emoji: str, size: int) -> bytes | None:
    """The picture as PNG; None where the drawing is broken or wants a file or font from outside."""
    import resvg_py

    svg = style.svg(emoji)
    if "<image" in svg or "<text" in svg:
        return None
    try:
        # Without system fonts the same bytes come out on every machine.
        return resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", width=size, skip_system_fonts=True)
    except ValueError:
        return None


def records(
    source: Path,
    *,
    test_style: str = "fluent-emoji-flat",
    train_style: str = "",
    categories: str = "",
    size: int = 128,
) -> Iterator[tuple[str, Record]]:
    """Yield (split, record). `test_style` is the art style held out for testing, `train_style` the only one to train on
    (none: all the others), `categories` those of the pictures, with commas between (none: all), `size` a picture's side
    in pixels.
    """
    for option, style in (("test_style", test_style), ("train_style", train_style or STYLES[0])):
        if style not in STYLES:
            raise ValueError(f"emoji: no art style {option}={style!r}: choose one of {', '.join(STYLES)}")
    if train_style == test_style:
        raise ValueError(f"emoji: train_style and test_style are both {test_style!r}: choose two")
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise ValueError("emoji: resvg-py, which draws the pictures, is missing: pip install resvg-py") from None
    names = read_names(source)
    styles = [read_style(name, source) for name in STYLES]
    wanted = of_categories(categories, source) if categories else frozenset(names)
    drawn = sorted(emoji for emoji in names if any(emoji in style.emoji for style in styles))
    for emoji in drawn:
        yield "names", Record(key=f"name-{emoji}", parallel=names[emoji])
    for style in styles:
        if style.name not in (test_style, train_style or style.name):
            continue
        split = "test" if style.name == test_style else "train"
        languages = LANGUAGES if split == "test" else ("en",)
        ours = [emoji for emoji in drawn if emoji in style.emoji and emoji in wanted]
        broken = 0
        for emoji in ours:
            picture = draw(style, emoji, size)
            if picture is None:
                broken += 1
                continue
            captions = {language: [names[emoji][language]] for language in languages}
            yield split, Record(key=f"{style.name}-{emoji}", image=picture, captions=captions)
        log.info("%s: %d pictures for %s, %d broken drawings skipped", style.name, len(ours) - broken, split, broken)
