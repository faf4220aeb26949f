"""Pictures to be embedded: a folder of image files, perhaps with captions beside them, or shards."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cclm.data.records import IMAGE_SUFFIXES, MEMBER_BYTES, TEXT_BYTES, parse_text
from cclm.data.shards import MANIFEST, read_records
from cclm.errors import SampleError
from cclm.types import Record

log = logging.getLogger(__name__)


def read_pictures(source: str, skipped: Counter[str], language: str = "en") -> Iterator[Record]:
    """Image records of a folder of image files (`read_folder`) or of shards (`read_records`).

    `language` is that of captions which name none. Errors: ValueError, FileNotFoundError for a source that is neither.
    """
    folder = Path(source)
    if not folder.is_dir() or (folder / MANIFEST).exists() or any(folder.glob("*.tar")):
        return read_records(source, language=language, skipped=skipped)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES)
    if not files:
        if any(folder.glob(f"*/{MANIFEST}")):
            return read_records(source)  # says which splits there are
        raise ValueError(f"no jpg, png or webp file and no .tar shard in {folder}; give a folder that holds some")
    return _read_files(files, skipped, language)


def _read_files(files: list[Path], skipped: Counter[str], language: str) -> Iterator[Record]:
    """The key is the path; the caption stands in a file of the same name that ends in .txt, where there is one."""
    for path in files:
        try:
            image, text = _read(path, MEMBER_BYTES), path.with_suffix(".txt")
            caption = parse_text(_read(text, TEXT_BYTES)) if text.is_file() else ""
        except SampleError as error:
            if error.reason not in skipped:
                log.warning("left out %s: %s; others like it are only counted", path, error.reason)
            skipped[error.reason] += 1
        else:
            yield Record(str(path), image, {language: [caption]} if caption else {})


def _read(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise SampleError(f"file over {limit} bytes")
        return path.read_bytes()
    except OSError as error:
        raise SampleError("file not readable") from error
