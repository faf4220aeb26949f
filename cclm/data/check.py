"""`cclm data check`: are the shards of a folder what their manifest says, and readable to the last record?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cclm.data.records import is_language, languages_of
from cclm.data.shards import MANIFEST, Manifest, ShardEntry, decode_sample
from cclm.data.tars import ShardFile, index_shard
from cclm.errors import SampleError
from cclm.images import check_header
from cclm.storage import file_hash
from cclm.types import Record


@dataclass(frozen=True)
class ShardProblem:
    """One finding about one shard."""

    shard: str
    problem: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.problem}"


def check_shards(folder: Path | str) -> list[ShardProblem]:
    """Everything wrong with the shards of one folder: missing, wrong size, checksum or count, cut, undecodable samples.

    Without a manifest only structure and samples are checked. Errors: FileNotFoundError, ValueError for no shards.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}; give a folder of .tar shards")
    listed = Manifest.load(folder).shards if (folder / MANIFEST).exists() else None
    present = {path.name: path for path in sorted(folder.glob("*.tar"))}
    if listed is None and not present:
        raise ValueError(f"no .tar shard in {folder}; build some with `cclm data build`")
    entries: dict[str, ShardEntry | None] = dict.fromkeys(present)
    if listed is not None:
        entries.update({entry.name: entry for entry in listed})
    problems = []
    keys: set[str] = set()
    for name, entry in sorted(entries.items()):
        if name not in present:
            problems.append(ShardProblem(name, "missing"))
            continue
        problems += [ShardProblem(name, text) for text in _check_shard(present[name], entry, keys)]
        if listed is not None and entry is None:
            problems.append(ShardProblem(name, "not in the manifest"))
    return problems


def _check_shard(path: Path, entry: ShardEntry | None, keys: set[str]) -> list[str]:
    """`keys`: those of the images of former shards; this one's are added."""
    problems = []
    if entry is not None and path.stat().st_size != entry.bytes:
        problems.append(f"{path.stat().st_size} bytes where the manifest says {entry.bytes}")
    elif entry is not None and file_hash(path) != entry.sha256:
        problems.append("wrong checksum")
    index = index_shard(ShardFile(str(path)))
    if index.damage:
        problems.append(index.damage)
    good = 0
    bad: Counter[str] = Counter()
    for sample in index.samples:
        try:
            records = decode_sample(sample)
            for record in records:
                _check_record(record, keys)
            good += len(records)
        except SampleError as error:
            bad[error.reason] += 1
    problems += [f"{reason} ({count} samples)" for reason, count in sorted(bad.items())]
    if entry is not None and not problems and good != entry.samples:
        problems.append(f"{good} samples where the manifest says {entry.samples}")
    return problems


def _check_record(record: Record, keys: set[str]) -> None:
    """Errors: SampleError for what the writer would have refused and the decoder does not see."""
    if not all(map(is_language, languages_of(record))):
        raise SampleError("language that is no code like en or pt-br")
    if record.image is None:
        return
    sizes = [check_header(image) for image in (record.image, *record.others)]
    if record.size is not None and record.size != sizes[0]:
        raise SampleError("size is not that of the image")
    if record.key in keys:
        raise SampleError("key of a former image")
    keys.add(record.key)


def check_dataset(directory: Path) -> str:
    """Check a built dataset, or one split of it. The `cclm data check` verb.

    Errors: ValueError, one line that names every bad shard.
    """
    directory = Path(directory)
    splits = sorted({path.parent for pattern in ("*/*.tar", f"*/{MANIFEST}") for path in directory.glob(pattern)})
    if not splits or (directory / MANIFEST).exists() or any(directory.glob("*.tar")):
        splits = [directory]
    problems = [f"{split.name}/{problem}" for split in splits for problem in check_shards(split)]
    if problems:
        listed = "; ".join(problems)
        raise ValueError(f"{directory}: {len(problems)} problems: {listed}; build or copy these shards again")
    lines = []
    for split in splits:
        shards = len(list(split.glob("*.tar")))
        detail = "no manifest, structure and samples checked"
        if (split / MANIFEST).exists():
            manifest = Manifest.load(split)
            languages = " ".join(f"{language} {count}" for language, count in manifest.languages.items())
            detail = f"{manifest.samples} {manifest.kind} records, checksums right; {languages}"
        lines.append(f"{split}: {shards} shards, {detail}")
    return "\n".join(lines)
