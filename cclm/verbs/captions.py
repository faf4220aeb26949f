"""`cclm evaluate captions`: what a model writes about pictures, language by language, against what people wrote."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclm.verbs.inputs import codes, device_named
from cclm.verbs.visual import add_writing, visual

if TYPE_CHECKING:
    import torch
    from jsonargparse import ArgumentParser, Namespace

    from cclm.evaluation.embedder import Images, System
    from cclm.evaluation.shard_captions import Tests
    from cclm.types import Record

REFERENCES = {"captions": ("captions",), "parallel": ("parallel",), "both": ("captions", "parallel")}


def options(parser: ArgumentParser) -> None:
    from cclm.models.encoding import EncodingOptions

    parser.add_argument("--model", type=str, default=None, help="an image-to-text folder; or file.py:function")
    parser.add_argument("--predictions", type=Path, default=None, help="captions of a file instead: {language, id, ..")
    parser.add_argument("--data", type=str, required=True, help="a split folder of shards, a tar or a pattern")
    parser.add_argument("--languages", type=list[str] | str, required=True, help="to write in: en,de,fr")
    parser.add_argument("--references", default="both", help="captions, the one parallel sentence, or both")
    parser.add_argument("--nearest", type=str, default=None, help="training shards: the nearest picture's caption, too")
    parser.add_argument("--nearest_by", type=str, default=None, help="a dual encoder; what the model sees by default")
    parser.add_argument("--output", type=Path, required=True, help="report.json; captions and chart go beside it")
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap; 0 for no intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--device", default="cpu", help="cpu, cuda ..")
    parser.add_argument("--encoding", type=EncodingOptions, default=EncodingOptions())
    add_writing(parser)


@dataclass
class _Data:
    """The shards, read as often as needed, so that no pictures are held. `skipped`: what the last pass left out."""

    source: str
    skipped: Counter[str] = field(default_factory=Counter)

    def records(self) -> Iterator[Record]:
        from cclm.data.shards import read_records

        self.skipped.clear()
        return read_records(self.source, skipped=self.skipped)

    def digest(self) -> str:
        """Of the manifest, or of the files' names, sizes and times where there is none."""
        from cclm.data.shards import MANIFEST, list_shards
        from cclm.storage import file_hash

        manifest = Path(self.source) / MANIFEST
        if manifest.is_file():
            return file_hash(manifest)
        stats = [(path, Path(path).stat()) for path in list_shards(self.source)]
        return hashlib.sha256(repr([(path, s.st_size, s.st_mtime_ns) for path, s in stats]).encode()).hexdigest()


def run(given: Namespace) -> None:
    """Everything that can be wrong is looked at before the work; then the report is written and shown."""
    from rich.console import Console

    from cclm.data.shards import check_languages
    from cclm.evaluation.caption_report import CaptionReport, table
    from cclm.evaluation.protocol import Unstated
    from cclm.evaluation.report import check_output
    from cclm.evaluation.scoring import ScoreOptions
    from cclm.evaluation.shard_captions import score_all, tests_of
    from cclm.models.card import refresh_scores

    output, languages = check_output(given.output, CaptionReport.read), codes(given.languages) or ()
    scoring = ScoreOptions(given.draws, given.seed)
    _check(given)
    check_languages(given.data, languages)
    data, device = _Data(given.data), device_named(given.device)
    system = _system(given.model, given, device) if given.model else None
    tests = tests_of(data.records(), languages, REFERENCES[given.references])
    skipped = dict(data.skipped)
    for language in languages if system else ():
        system.captioner.check_language(language)
    near = _nearest(given, system, data, tests, device) if given.nearest else {}
    if system is None:
        captions = _read(given.predictions)
    else:
        captions = _written(system, data, tests, output.with_suffix(".jsonl"))
    asked = {name: captions[name] for name in languages if name in captions}
    scored = score_all(tests, dict.fromkeys(tests, asked), scoring)
    if lacking := [language for language in languages if language not in scored]:
        raise ValueError(f"{given.predictions} holds no captions in {', '.join(lacking)}; leave these out")
    met = system.met if system else None
    regimes = {language: (met.regime(language) if met else Unstated).name for language in languages}
    provenance = _provenance(given, system, data)
    report = CaptionReport.of(
        scored, score_all(tests, near, scoring), regimes=regimes, skipped=skipped, provenance=provenance
    )
    report.write(output)
    if given.model:
        refresh_scores(given.model)
    Console(width=max(100, Console().width)).print(table(report))
    if system is not None:
        print(f"captions: {output.with_suffix('.jsonl')}")


def _check(given: Namespace) -> None:
    """Errors: ValueError for options that exclude or need each other, and for --nearest without shards."""
    from cclm.data.shards import list_shards

    if given.references not in REFERENCES:
        raise ValueError(f"--references is {given.references!r}; give {', '.join(REFERENCES)}")
    if (given.model is None) == (given.predictions is None):
        raise ValueError("give either --model, which writes the captions, or --predictions, a file that holds them")
    if given.nearest_by and not given.nearest:
        raise ValueError("--nearest_by is given without --nearest; give the training shards, too")
    if given.nearest and given.model is None and given.nearest_by is None:
        raise ValueError("--nearest needs something that sees: give --nearest_by, a dual encoder")
    if given.nearest:
        list_shards(given.nearest)


def _system(name: str, given: Namespace, device: torch.device) -> System:
    """Errors: ValueError for a model that writes no captions."""
    from cclm.evaluation.adapters.open import ModelOptions, open_system

    system = open_system(name, ModelOptions(device, given.encoding, visual=visual(given, device)))
    if system.captioner is None:
        raise ValueError(f"{system.name} is a {system.kind}: it writes no captions; give an image-to-text folder")
    return system


def _read(path: Path) -> dict[str, dict[str, str]]:
    """Errors: ValueError for a file without captions as this verb writes them."""
    from cclm.evaluation import predictions

    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(predictions.read(path), 1):
        language, name, caption = (row.get(key) for key in ("language", "id", "caption"))
        if not all(isinstance(value, str) for value in (language, name, caption)):
            raise ValueError(f"{path}, line {number} is no caption; give {{language, id, caption}} as texts")
        if name in found.setdefault(language, {}):
            raise ValueError(f"{path}, line {number}: a second caption of {name!r} in {language}; give one")
        found[language][name] = caption
    return found


def _written(system: System, data: _Data, tests: Tests, path: Path) -> dict[str, dict[str, str]]:
    """What the model writes; a run that was stopped goes on from what the file holds."""
    from cclm.evaluation.shard_captions import Kept, wanted, write_captions
    from cclm.models.inference import progress_bar

    source = [system.sha256, data.digest(), system.settings | system.caption_settings]
    digest = hashlib.sha256(json.dumps(source, sort_keys=True, default=str).encode()).hexdigest()[:12]
    kept = Kept.at(path, digest) if system.known else Kept(path, "")
    total, done = sum(map(len, wanted(tests).values())), sum(map(len, kept.captions.values()))
    with progress_bar(total) as bar:
        task = bar.add_task("writing", total=total, completed=min(done, total))
        write_captions(system, data.records(), tests, kept, lambda count: bar.advance(task, count))
    return kept.captions


def _nearest(
    given: Namespace, system: System | None, data: _Data, tests: Tests, device: torch.device
) -> dict[str, dict[str, dict[str, str]]]:
    from cclm.evaluation.adapters.open import ModelOptions, open_system
    from cclm.evaluation.shard_captions import nearest_captions

    embed: Callable[[Images], torch.Tensor] | None
    if given.nearest_by:
        system = open_system(given.nearest_by, ModelOptions(device, given.encoding))
        embed = system.dual.embed_images if system.dual else None
    else:
        assert system is not None
        embed = getattr(system.captioner, "pooled", None)
    if embed is None:
        raise ValueError(f"{system.name} embeds no pictures; give --nearest_by, a dual encoder")
    return nearest_captions(embed, system.image_size, _Data(given.nearest).records(), data.records(), tests)


def _provenance(given: Namespace, system: System | None, data: _Data) -> dict[str, Any]:
    from cclm.storage import file_hash

    told: dict[str, Any] = {"data": given.data, "data_hash": data.digest(), "date": date.today().isoformat()}
    if system is None:
        return told | {"predictions": str(given.predictions), "predictions_hash": file_hash(given.predictions)}
    settings = system.settings | system.caption_settings
    told |= {"model": system.name, "model_hash": system.sha256, "settings": settings}
    return told | ({"nearest_data": given.nearest, "nearest_by": given.nearest_by or "model"} if given.nearest else {})
