"""One stream -> batches of pairs, sorted by text length within a pool, resumable in mid-pool and in mid-record.

Position is a pure function of counters: a pool of `bucket` batches is drawn, sorted, cut and shuffled, so the state is
the record stream's at the pool's start plus the number of batches taken since. Where a pool ends within the pairs of a
record, the rest of them begins the next one, and the state counts those that were used.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from cclm.data.forms import Form, PairForm, Prompter, Tokens
from cclm.data.pairs import PairDrawer, UnwantedError
from cclm.data.readers import ImageReader, ImageRequest, Processor, Seen
from cclm.data.seeding import permutation_of, random_of, seed_of
from cclm.data.shards import list_shards, manifests
from cclm.data.stream import Located, Share, StreamSettings, open_stream
from cclm.errors import SampleError
from cclm.types import Batch, Pair


@dataclass
class StreamConfig:
    """One stream of training pairs.

    `shards`: a folder, tar, pattern, list of these, or folder -> weight. `bucket`: batches drawn at once to be sorted
    by their texts' tokens (1: no sorting); texts about regions of one image stay together. `max_tokens`: of either
    text, None for the processor's own. `prompt`: puts each pair into a prompt for a language model, as
    `cclm.pivot.prompts` reads it; None leaves two views side by side.
    """

    shards: str | list[str] | dict[str, float]
    pairs: PairDrawer
    batch_size: int
    max_tokens: int | None = None
    bucket: int = 8
    group_shards: int = 8
    max_bad_share: float = 0.1
    language: str = "en"
    allow_pipe: bool = False
    prompt: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "bucket", "group_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"stream of {self.shards}: {name}={getattr(self, name)}; give 1 or more")
        if self.max_tokens is not None and self.max_tokens < 3:
            raise ValueError(f"stream of {self.shards}: max_tokens={self.max_tokens}; give 3 or more, or null")

    def form(self, name: str, processor: Processor) -> Form:
        """Errors: ValueError for a prompt where the processor knows of none."""
        if self.prompt is None:
            return PairForm(processor, self.max_tokens)
        if not isinstance(processor, Prompter):
            raise ValueError(f"stream {name} has a prompt, which pairs of views do not take; leave it out")
        try:
            return processor.form(self.prompt, self.max_tokens)
        except ValueError as error:
            raise ValueError(f"stream {name}: {error}") from None

    @property
    def paths(self) -> list[str]:
        """Of its shards. Errors: as list_shards."""
        return list_shards(self.shards if isinstance(self.shards, str) else list(self.shards), self.allow_pipe)

    def languages(self) -> dict[str, int]:
        """Those of its texts -> records that have one, 0 where no manifest tells. Errors: as list_shards."""
        there = sum((Counter(each.languages) for each in manifests(self.paths).values() if each), Counter())
        return {code: there[code] for code in sorted(self.pairs.spoken(there))}

    def settings(self, name: str, seed: int) -> StreamSettings:
        own = seed_of(seed, name)  # two streams over one folder must not walk it in step
        return StreamSettings(own, self.group_shards, self.max_bad_share, self.language, self.allow_pipe)


_NOT_YET = Tokens([], [], 0)


@dataclass(slots=True)
class _Drawn:
    pair: Pair
    located: Located
    tokens: Tokens = _NOT_YET

    @property
    def sight(self) -> int:
        """Equal for neighbours that share what is decoded for them: the regions of one crop."""
        return id(self if self.pair.part is None else self.located)


class BatchStream:
    """Batches of one stream for one reader, forever."""

    def __init__(
        self, name: str, config: StreamConfig, processor: Processor, images: ImageReader | None, seed: int, share: Share
    ) -> None:
        self._name = name
        self._config = config
        self._form = config.form(name, processor)
        self._images = images
        self._settings = config.settings(name, seed)
        self._share = share
        self._stream = open_stream(config.shards, self._settings, share)
        self._pairs = copy(config.pairs)  # bound to this dataset, whoever else uses the same drawer
        self._pairs.bind(self._stream.languages, str(config.shards))
        self._unwanted: Counter[str] = Counter()
        self._last_epoch = 0  # the last one that gave a pair
        self._each: int | None = None  # images of a record
        self._rest: deque[_Drawn] = deque()  # pairs of the last record that wait for their turn
        self._used = 0  # its pairs that do not
        self._pool: list[list[_Drawn]] = []
        self._pools = self._taken = self._spares = 0
        self._start = self._begin()

    @property
    def skipped(self) -> Counter[str]:
        return self._stream.skipped + self._unwanted

    def _begin(self) -> dict[str, Any]:
        """The position between two pairs: a record with pairs left is drawn again, and the used ones passed over."""
        within = bool(self._rest)
        return {
            "stream": self._stream.state_dict(before_last=within),
            "unwanted": dict(self._unwanted),
            "epoch": self._last_epoch,
            "used": self._used if within else 0,
        }

    def __next__(self) -> Batch:
        if self._taken >= self._config.bucket:
            self._pools += 1
            self._taken = self._spares = 0
            self._pool, self._start = [], self._begin()
        if not self._pool:
            self._pool = self._draw_pool()
        batch = self._collate(self._pool[self._taken])
        self._pool[self._taken] = []
        self._taken += 1
        return batch

    def _draw(self) -> _Drawn:
        """The next pair, of the last record as long as it has some. Errors: as _draw_record."""
        while not self._rest:
            self._rest, self._used = self._draw_record(), 0
        self._used += 1
        return self._rest.popleft()

    def _draw_record(self) -> deque[_Drawn]:
        """The pairs of the next record, perhaps none. Errors: ValueError after a whole epoch without one."""
        located = next(self._stream)
        if self._stream.epoch > self._last_epoch + 1:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.skipped.most_common())
            raise ValueError(
                f"stream {self._name}: an epoch of {self._config.shards} gave no pair ({reasons});"
                f" change the stream's languages or its {type(self._config.pairs).__name__}"
            )
        draw = random_of(self._settings.seed, "pair", located.epoch, located.record.key)
        try:
            pairs = self._pairs.draw(located.record, draw)
        except UnwantedError as error:
            self._unwanted[error.reason] += 1
            return deque()
        if pairs:
            self._last_epoch = self._stream.epoch
        return deque(_Drawn(pair, located) for pair in pairs)

    def _draw_pool(self) -> list[list[_Drawn]]:
        size, bucket = self._config.batch_size, self._config.bucket
        drawn = [self._draw() for _ in range(size * bucket)]
        self._tokenise(drawn)
        if bucket > 1:
            drawn = _by_length(drawn)
        shuffle = permutation_of(bucket, self._settings.seed, "batches", self._share.index, self._pools)
        return [drawn[i * size : (i + 1) * size] for i in shuffle]

    def _tokenise(self, drawn: list[_Drawn]) -> None:
        try:
            found = self._form.tokens([item.pair for item in drawn])
        except ValueError as error:
            raise ValueError(f"stream {self._name}: {error}") from None
        for item, tokens in zip(drawn, found, strict=True):
            item.tokens = tokens

    def _collate(self, drawn: list[_Drawn]) -> Batch:
        seen = None
        if not isinstance(drawn[0].pair.context, str):
            drawn, seen = self._read_images(drawn)
        return self._form.batch(self._name, [item.pair for item in drawn], [item.tokens for item in drawn], seen)

    def _read_images(self, drawn: list[_Drawn]) -> tuple[list[_Drawn], Seen]:
        """Images of a batch; a bad one's pairs give way to the stream's next, so that batches keep their size."""
        if self._images is None:
            raise ValueError(f"stream {self._name} draws images, but no image reader was given to the loader")
        good = list(drawn)
        images = self._images.start(self._request(good[0]))
        bad: set[tuple[int, str]] = set()  # records that are counted: each once, however many pairs it has here
        row = 0
        while row < len(good):
            visit = (good[row].located.epoch, good[row].pair.key)
            try:
                if visit not in bad:
                    images.add(self._request(good[row]))
                    row += 1
                    continue
            except SampleError as error:
                self._stream.count_bad(error.reason, good[row].pair.key)
                bad.add(visit)
            good[row] = self._draw()
            self._tokenise(good[row : row + 1])
            self._spares += 1
        return good, images.finish()

    def _request(self, item: _Drawn) -> ImageRequest:
        pair, slots = item.pair, item.located.slots
        if not isinstance(pair.context, tuple):
            slots = slots[:1]
        self._each = self._each or len(slots)
        if len(slots) != self._each:
            raise ValueError(
                f"stream {self._name}: record {pair.key!r} has {len(slots)} images, one before it {self._each};"
                " give records with other numbers of images streams of their own"
            )
        seed = seed_of(self._settings.seed, "image", item.located.epoch, pair.key)
        return ImageRequest(pair.key, slots, seed, pair.part, pair.flip)

    def state_dict(self) -> dict[str, Any]:
        return {
            "start": self._start,
            "pools": self._pools,
            "taken": self._taken,
            "spares": self._spares,
            "now": self._stream.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Draw the pool again from where it began, and the spares taken since, without reading any image."""
        self._start = state["start"]
        self._stream.load_state_dict(self._start["stream"])
        self._unwanted, self._last_epoch = Counter(self._start["unwanted"]), self._start["epoch"]
        self._rest.clear()
        for _ in range(self._start.get("used", 0)):  # positions of before have none: a record gave one pair
            self._draw()
        self._pools, self._taken, self._spares = state["pools"], state["taken"], state["spares"]
        self._pool = self._draw_pool() if self._taken else []
        for _ in range(self._spares):
            self._draw()
        self._stream.load_state_dict(state["now"])  # adds what images read since then have been found bad


def _by_length(drawn: list[_Drawn]) -> list[_Drawn]:
    """Sorted by tokens; pairs that share a decoded image stay together, as long as their longest.

    In a small dataset a key comes several times per pool, and sorting would put it beside itself, where a contrastive
    loss takes it for its own negative. So all first comings are sorted, then all second ones ..
    """
    times: Counter[str] = Counter()
    bundles = []
    for _, neighbours in groupby(drawn, key=lambda item: item.sight):
        bundle = list(neighbours)
        key = bundle[0].pair.key
        bundles.append(((times[key], max(item.tokens.length for item in bundle)), bundle))
        times[key] += 1
    return [item for _, bundle in sorted(bundles, key=lambda found: found[0]) for item in bundle]
