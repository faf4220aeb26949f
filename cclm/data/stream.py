"""Shards -> records without end: split over ranks and workers, shuffled by seed and epoch, bad samples counted.

The order is a pure function of (seed, epoch): shards are permuted, taken in groups, and the records of a group are
permuted. So the whole state is (epoch, group, position), there is no buffer to save, and resuming costs one group.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclm.data.records import decode_image_record, decode_text_records
from cclm.data.seeding import permutation_of, random_of
from cclm.data.shards import MANIFEST, Manifest, ShardEntry, Source, list_shards
from cclm.data.tars import Sample, ShardError, ShardFile, Slot, index_shard
from cclm.errors import SampleError
from cclm.types import Record

_log = logging.getLogger(__name__)

_JUDGE_AFTER = 100  # samples, before the share of bad ones says anything
_SHARDS_PER_READER = 4  # with fewer, whole shards cannot be shared out evenly


@dataclass(frozen=True)
class Share:
    """Which part of the data one reader takes: reader `worker` of `workers` on rank `rank` of `world_size`."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1

    @property
    def index(self) -> int:
        return self.rank * self.workers + self.worker

    @property
    def total(self) -> int:
        return self.world_size * self.workers


@dataclass(frozen=True)
class StreamSettings:
    """How shards are read.

    `group_shards`: shards whose records are shuffled together, the shuffle window. `language`: of captions that name
    none (img2dataset). `max_bad_share`: of samples left out for damage, past which the stream raises.
    """

    seed: int = 0
    group_shards: int = 8
    max_bad_share: float = 0.1
    language: str = "en"
    allow_pipe: bool = False


@dataclass(frozen=True, slots=True)
class Located:
    """A record in a stream: its images are b"" until someone reads `slots`, one for each (none: a text record).

    `epoch`: full passes made before this one.
    """

    record: Record
    slots: tuple[Slot, ...]
    epoch: int


@dataclass(frozen=True)
class _Group:
    """What some shards hold: images located, rows of text decoded; and (reason, where, samples) of what is left out."""

    items: list[Sample | Record]
    damage: list[tuple[str, str, int]]


class RecordStream:
    """Records of one or several folders of shards, forever.

    Where every reader can have at least four shards, shards are shared out; where not, all readers walk the same
    groups and take every n-th record, so that nothing is lost and no reader is left without. Errors: as `list_shards`;
    ValueError once more than `max_bad_share` of the samples are bad, or an epoch holds nothing for this reader.
    """

    def __init__(self, source: Source, settings: StreamSettings | None = None, share: Share | None = None) -> None:
        self.settings = settings or StreamSettings()
        self.share = share or Share()
        self.paths = list_shards(source, self.settings.allow_pipe)
        self._name = str(source)
        self._manifests = _manifests(self.paths)
        self._entries = _entries(self._manifests)
        self._by_shard = len(self.paths) >= _SHARDS_PER_READER * self.share.total
        self.skipped: Counter[str] = Counter()
        self._epoch = self._group = self._position = 0
        self._seen = self._bad = self._good_in_epoch = 0
        self._items: list[Sample | Record] | None = None
        self._whole: _Group | None = None
        self._counted = False  # the counts already hold what loading the present group leaves out

    @property
    def epoch(self) -> int:
        """Full passes made."""
        return self._epoch

    @property
    def languages(self) -> dict[str, int]:
        """Language -> records with a text in it, by the manifests; empty where there is none."""
        total: Counter[str] = Counter()
        for manifest in self._manifests.values():
            total.update(manifest.languages)
        return dict(total)

    def __iter__(self) -> Iterator[Located]:
        return self

    def __next__(self) -> Located:
        while True:
            if self._items is None:
                self._items = self._load_group()
                self._counted = True
            if self._position >= len(self._items):
                self._next_group()
                continue
            item = self._items[self._position]
            self._position += 1
            if isinstance(item, Record):
                return self._good(Located(item, (), self._epoch))
            try:
                texts = {suffix: slot.read() for suffix, slot in item.texts.items()}
                others = (b"",) * len(item.others)
                record = decode_image_record(item.key, b"", texts, self.settings.language, others)
            except (SampleError, ShardError) as error:
                self.count_bad(str(error), item.key)
                continue
            return self._good(Located(record, item.images, self._epoch))

    def _good(self, located: Located) -> Located:
        self._seen += 1
        self._good_in_epoch += 1
        return located

    def count_bad(self, reason: str, where: str, samples: int = 1) -> None:
        """Count samples left out for damage. Errors: ValueError past `max_bad_share`."""
        before = self.skipped[reason]
        self.skipped[reason] += samples
        self._seen += samples
        self._bad += samples
        if len(str(before)) != len(str(before + samples)) or not before:  # the first, tenth, hundredth ..
            _log.warning("%s: skipped %s: %s (%d so far)", self._name, where, reason, before + samples)
        if self._seen >= _JUDGE_AFTER and self._bad > self.settings.max_bad_share * self._seen:
            raise ValueError(
                f"{self._name}: {self._bad} of {self._seen} samples are bad ({self._reasons()}), over"
                f" max_bad_share={self.settings.max_bad_share}; run `cclm data check`, rebuild them or raise the share"
            )

    def _reasons(self) -> str:
        return ", ".join(f"{count} x {reason}" for reason, count in self.skipped.most_common()) or "none read"

    def _groups(self) -> list[list[str]]:
        order = permutation_of(len(self.paths), self.settings.seed, "shards", self._epoch)
        if self._by_shard:
            order = order[self.share.index :: self.share.total]
        step = max(1, self.settings.group_shards)
        return [[self.paths[i] for i in order[start : start + step]] for start in range(0, len(order), step)]

    def _next_group(self) -> None:
        self._items, self._position, self._counted = None, 0, False
        self._group += 1
        if self._group < len(self._groups()):
            return
        if not self._good_in_epoch:
            raise ValueError(
                f"{self._name}: nothing readable for reader {self.share.index + 1} of {self.share.total}"
                f" (ranks x workers) in {len(self.paths)} shards ({self._reasons()}); use fewer workers or more data"
            )
        self._group, self._good_in_epoch = 0, 0
        self._epoch += 1

    def _load_group(self) -> list[Sample | Record]:
        """The present group, permuted: rows of text members decoded, images only located."""
        paths = self._groups()[self._group]
        group = self._whole or self._read_group(paths)
        if len(paths) == len(self.paths):
            self._whole = group  # a dataset of one group is read once, not once per epoch
        if not self._counted:
            # Readers that take every n-th record all see the same damage: each counts it, as each loses by it.
            for reason, where, samples in group.damage:
                self.count_bad(reason, where, samples)
        order = permutation_of(len(group.items), self.settings.seed, "records", self._epoch, self._group)
        if not self._by_shard:  # turned by the group so that small groups do not always favour the same reader
            order = order[(self.share.index + self._group) % self.share.total :: self.share.total]
        return [group.items[i] for i in order]

    def _read_group(self, paths: list[str]) -> _Group:
        items: list[Sample | Record] = []
        damage: list[tuple[str, str, int]] = []
        for path in sorted(paths):  # in an order that does not depend on the epoch
            index = index_shard(ShardFile(path))
            found = 0
            for sample in index.samples:
                try:
                    rows = self._rows(sample)
                except (SampleError, ShardError) as error:
                    damage.append((str(error), f"{path}/{sample.key}", 1))
                    continue
                found += len(rows)
                items += rows
            if index.damage:
                entry = self._entries.get(path)
                damage.append((index.damage, path, max(1, entry.samples - found) if entry else 1))
        return _Group(items, damage)

    def _rows(self, sample: Sample) -> list[Sample] | list[Record]:
        if sample.bad is not None:
            raise SampleError(sample.bad)
        if sample.images:
            return [sample]
        if "json" not in sample.texts:
            raise SampleError("neither image nor json")
        return decode_text_records(sample.key, sample.texts["json"].read())

    def state_dict(self, before_last: bool = False) -> dict[str, Any]:
        """Plain numbers. With `before_last` the record that came last is still to come."""
        back = int(before_last)  # it lies in the present group: the next one is entered only when asked for more
        return {
            "epoch": self._epoch,
            "group": self._group,
            "position": self._position - back,
            "counted": self._counted,
            "seen": self._seen - back,
            "bad": self._bad,
            "good_in_epoch": self._good_in_epoch - back,
            "skipped": dict(self.skipped),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._group, self._position = state["epoch"], state["group"], state["position"]
        self._seen, self._bad, self._good_in_epoch = state["seen"], state["bad"], state["good_in_epoch"]
        self.skipped = Counter(state["skipped"])
        self._items, self._counted = None, state["counted"]


class MixedStream:
    """Several streams in one: each record comes from one of them, drawn by weight."""

    def __init__(
        self, weights: Mapping[str, float], settings: StreamSettings | None = None, share: Share | None = None
    ) -> None:
        if not weights or any(weight <= 0 for weight in weights.values()):
            raise ValueError(f"shards {dict(weights)}: every weight must be above 0; leave out what is not wanted")
        self._parts = {source: RecordStream(source, settings, share) for source in weights}
        self._weights = list(weights.values())
        self._seed = (settings or StreamSettings()).seed
        self._reader = (share or Share()).index
        self._draws = 0
        self._last = next(iter(self._parts.values()))

    @property
    def skipped(self) -> Counter[str]:
        return sum((part.skipped for part in self._parts.values()), Counter())

    @property
    def epoch(self) -> int:
        """Full passes made over every part."""
        return min(part.epoch for part in self._parts.values())

    @property
    def languages(self) -> dict[str, int]:
        return dict(sum((Counter(part.languages) for part in self._parts.values()), Counter()))

    def __iter__(self) -> Iterator[Located]:
        return self

    def __next__(self) -> Located:
        draw = random_of(self._seed, "mixture", self._reader, self._draws)
        self._draws += 1
        self._last = draw.choices(list(self._parts.values()), self._weights)[0]
        return next(self._last)

    def count_bad(self, reason: str, where: str, samples: int = 1) -> None:
        self._last.count_bad(reason, where, samples)

    def state_dict(self, before_last: bool = False) -> dict[str, Any]:
        parts = {name: part.state_dict(before_last and part is self._last) for name, part in self._parts.items()}
        return {"draws": self._draws - int(before_last), "parts": parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state["parts"]) != set(self._parts):
            raise ValueError(
                f"the saved position is of shards {sorted(state['parts'])}, now they are {sorted(self._parts)};"
                " resume with the data the run was started with"
            )
        self._draws = state["draws"]
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])


def open_stream(
    shards: Source | Mapping[str, float], settings: StreamSettings | None = None, share: Share | None = None
) -> RecordStream | MixedStream:
    """A folder, tar, pattern or list of them read as one; a mapping folder -> weight as a mixture."""
    if isinstance(shards, Mapping):
        return MixedStream(shards, settings, share)
    return RecordStream(shards, settings, share)


def _manifests(paths: list[str]) -> dict[Path, Manifest]:
    folders = dict.fromkeys(Path(path).parent for path in paths if not path.startswith("pipe:"))
    return {folder: Manifest.load(folder) for folder in folders if (folder / MANIFEST).exists()}


def _entries(manifests: dict[Path, Manifest]) -> dict[str, ShardEntry]:
    return {str(folder / entry.name): entry for folder, manifest in manifests.items() for entry in manifest.shards}
