"""A source of pictures -> a folder of embeddings: what is to be done, by whom, and what there is when it is done."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cclm.data.folder import KEYS, Pictures, SourcePart, find_pictures
from cclm.evaluation.embedding import EmbedOptions, PartEmbedder
from cclm.models.model import CCLMModel
from cclm.models.processor import CCLMProcessor
from cclm.retrieval import parts
from cclm.retrieval.embeddings import Embeddings, EmbeddingsManifest, Receipt
from cclm.retrieval.engines import EngineOptions, run
from cclm.retrieval.manifest import ModelSource
from cclm.retrieval.parts import PartTask

Task: TypeAlias = tuple[PartTask, SourcePart]
Load: TypeAlias = Callable[[Path, str], tuple[CCLMModel, CCLMProcessor]]  # pretrained folder, device
Told: TypeAlias = Callable[[str], object]
Shown: TypeAlias = Callable[[Iterable[Receipt], int], Iterable[Receipt]]


@dataclass(frozen=True)
class Embedder:
    """What an engine's worker is made from, here or on another machine of the same file system."""

    folder: Path  # absolute, as is the model's
    model: Path
    device: str
    options: EmbedOptions
    settings: dict[str, Any]  # what every part is bound to
    load: Load  # found by its name where it is needed

    def worker(self) -> Callable[[Task], Receipt]:
        """Load the model. Errors: ValueError for one without projections."""
        model, processor = self.load(self.model, self.device)
        model.check_projections()
        embedder = PartEmbedder(model, processor, self.options)

        def embed(task: Task) -> Receipt:
            skipped: Counter[str] = Counter()
            rows = embedder.embed(task[1], skipped)
            return parts.write_part(self.folder, task[0], rows, self.settings, skipped)

        return embed


@dataclass(frozen=True)
class Extraction:
    """Pictures of a source, to be embedded by a model into a folder.

    `pictures`: those of the source, where not all are to be embedded, or their naming is known. `private`: what the
    embeddings are for; then they are made in a folder of their own, for this source and these settings, below `folder`.
    """

    folder: Path
    model: Path
    source: str | list[str]
    options: EmbedOptions
    load: Load
    device: str = "cpu"
    pictures_per_part: int = 1000
    pictures: Pictures | None = None
    private: str = ""

    def run(self, engine: EngineOptions, told: Told, shown: Shown) -> Embeddings:
        """Embed the parts that no former run has finished. `told` is given lines to be shown; `shown` watches so many
        parts go by.

        Errors: ValueError, one line, for a source, model or option that does not fit, a folder that was begun with
        other ones, and where nothing is left to embed.
        """
        with self.running(engine, told, shown) as found:
            return found

    @contextmanager
    def running(self, engine: EngineOptions, told: Told, shown: Shown) -> Iterator[Embeddings]:
        """As `run`; until the block ends, nobody else writes there. Where it ends well, a private folder is removed."""
        pictures = self.pictures or find_pictures(self.source, self.pictures_per_part)
        model = ModelSource.of(self.model)
        folder = parts.check_output(self._place(model, pictures), self.options.dtype)
        with parts.locked(folder):
            tasks = _tasks(pictures)
            planned = [task for task, _ in tasks]
            settings = self._settings(model, pictures, folder)
            todo = parts.begin(folder, planned, settings)
            if len(todo) < len(tasks):
                told(f"{folder}: {len(tasks) - len(todo)} of {len(tasks)} parts are there already")
            made = Embedder(folder.resolve(), self.model.resolve(), self.device, self.options, settings, self.load)
            for _ in shown(run([tasks[place] for place in todo], made.worker, engine), len(todo)):
                pass
            parts.remove_remains(folder)
            try:
                totals = parts.count(folder, planned)
            except ValueError:  # there is nothing to go on with
                if self.private:
                    parts.remove(folder)
                raise
            manifest = self._manifest(totals, model, pictures, folder)
            manifest.write(folder)
            for reason, count in manifest.skipped.items():
                told(f"left out: {count} x {reason}")
            yield Embeddings.open(folder)
            if self.private:
                parts.remove(folder)

    def _place(self, model: ModelSource, pictures: Pictures) -> Path:
        if not self.private:
            return self.folder
        sources = [os.path.abspath(item) for item in self._sources()]
        digest = hashlib.sha256(json.dumps([sources, self._settings(model, pictures, self.folder)]).encode())
        return self.folder / f"{self.private}-{digest.hexdigest()[:12]}"

    def _sources(self) -> list[str]:
        return [str(item) for item in (self.source if isinstance(self.source, list) else [self.source])]

    def _settings(self, model: ModelSource, pictures: Pictures, folder: Path) -> dict[str, Any]:
        """What a part's content follows from, beside its files; in JSON's types."""
        options = self.options
        return {
            "model": model.sha256,
            "root": os.path.relpath(pictures.root, folder.resolve()),
            "pictures_per_part": self.pictures_per_part,
            "languages": None if options.languages is None else list(options.languages),
            "caption_language": options.caption_language,
            "text": options.text,
            "dtype": options.dtype,
            "precision": options.encoding.precision,
            "max_tokens": options.encoding.max_tokens,
        }

    def _manifest(
        self, totals: parts.Totals, model: ModelSource, pictures: Pictures, folder: Path
    ) -> EmbeddingsManifest:
        return EmbeddingsManifest(
            model_path=os.path.relpath(self.model.resolve(), folder.resolve()),
            model_sha256=model.sha256,
            dim=totals.dim,
            dtype=self.options.dtype,
            rows=totals.rows,
            pictures=totals.pictures,
            parts=totals.parts,
            root=os.path.relpath(pictures.root, folder.resolve()),
            source=self._sources(),
            keys=pictures.naming or KEYS[totals.keys_repeat],
            skipped=totals.skipped | pictures.left_out,
        )


def _tasks(pictures: Pictures) -> Sequence[Task]:
    width = len(str(len(pictures.parts) - 1))
    return [
        (PartTask(f"{place:0{width}d}", str(part), part.fingerprint()), part)
        for place, part in enumerate(pictures.parts)
    ]
