"""`cclm iglue run`: fine-tune a pretrained model as the benchmark's regimes ask, and score it; goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.verbs.iglue.chosen import ALL, add_pictures, add_tests, pictures_of, tasks_named
from cclm.verbs.iglue.evaluate import line
from cclm.verbs.inputs import codes, device_named

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.evaluation.protocol import Regime
    from cclm.evaluation.runner import RunOptions
    from cclm.training.regimes import Bench, Wanted


def options(parser: ArgumentParser) -> None:
    from cclm.models.encoding import EncodingOptions

    add = parser.add_argument
    add("--model", type=Path, required=True, help="a pretrained folder of cclm, to be fine-tuned")
    add("--regime", type=str, required=True, help="zero-shot, few-shot, max-shot, translate-test, translate-train")
    add("--output", type=Path, required=True, help="the run's folder; what is there is not made again")
    add_tests(parser)
    add_pictures(parser)
    add("--config", action="append", type=str, default=None, help="changes: a YAML file, TASK=FILE, a folder of these")
    add("--train", action="append", type=str, default=None, help="TASK=SPLIT[:LANGUAGE] in place of the official one")
    add("--dev", action="append", type=str, default=None, help="likewise; TASK=none keeps the last step")
    add("--finetuned", action="append", type=str, default=None, help="TASK=FOLDER: fine-tuned in English already")
    add("--shots", type=str, default=None, help="1,5,10; all of a task by default")
    add("--rates", type=str, default=None, help="of few shots; 1e-4,5e-5,1e-5 by default")
    add("--epochs", type=int, default=20, help="of few shots; those of the English training stand in the config")
    add("--translator", type=str, default="shipped", help="of translate-test: shipped, or a translation model")
    add("--rerank", type=int, default=0, help="candidates per query for the matching head")
    add("--rerank_score", default="log_odds", help="log_odds of a match, or the original's logit")
    add("--system", type=str, default=None, help="the model's name in reports; its folder by default")
    add("--json", action="store_true", help="machine-readable output")
    add("--device", default="cpu", help="cpu, cuda ..")
    add("--encoding", type=EncodingOptions, default=EncodingOptions())


def run(given: Namespace) -> None:
    """Everything that can be wrong is looked at before the work."""
    from cclm.training.regimes import Run

    regimes = _regimes(given)
    wanted = _wanted(given)
    results = []
    with _bench(given) as bench:
        runs = [Run(bench, one, regime) for one in wanted for regime in regimes]
        there = {language for each in runs for language in each.there()}
        for each in runs:
            each.look()
        if unknown := [language for language in codes(given.languages) or () if language not in there]:
            raise ValueError(f"no test in language {', '.join(unknown)}; there are {', '.join(sorted(there))}")
        for each in runs:
            for result in each.results():
                results.append(result)
                if not given.json:
                    print(line(result), flush=True)
    if given.json:
        print(json.dumps([result.to_dict() for result in results], ensure_ascii=False))


@contextmanager
def _bench(given: Namespace) -> Iterator[Bench]:
    """Errors: ValueError."""
    from cclm.evaluation.adapters.open import ModelOptions, kind_of
    from cclm.evaluation.cells import RunFolder
    from cclm.evaluation.task import DataFolder
    from cclm.training.finetune import Models
    from cclm.training.regimes import Bench

    if kind_of(str(given.model)) != "cclm":
        raise ValueError(f"--model {given.model} is no pretrained folder of cclm, which alone is fine-tuned here")
    device = device_named(given.device)
    RunFolder.at(given.output)
    with pictures_of(given) as pictures:
        yield Bench(
            model=given.model,
            name=given.system or str(given.model),
            data=DataFolder(given.data),
            pictures=pictures,
            models=Models(given.output, device, tell=_quiet if given.json else _tell),
            opening=ModelOptions(device, given.encoding, given.rerank_score),
            options=_options(given),
            translator=_translator(given),
        )


def _tell(text: str) -> None:
    print(text, flush=True)


def _quiet(text: str) -> None:
    """Only results are printed as JSON."""


def _options(given: Namespace) -> RunOptions:
    from cclm.evaluation.runner import RunOptions

    return RunOptions(rerank=given.rerank, partial=given.partial, image_batch=given.encoding.image_batch)


def _translator(given: Namespace) -> object | None:
    if given.translator == "shipped" or "translate-test" not in given.regime.split(","):
        return None
    from cclm.evaluation.translation import Translator

    return Translator.open(given.translator, device_named(given.device), given.output)


def _regimes(given: Namespace) -> list[Regime]:
    """Errors: ValueError for one that there is not."""
    from cclm.data.build import nearest
    from cclm.evaluation.protocol import REGIMES, FewShot, TranslateTest

    found: list[Regime] = []
    for name in given.regime.split(","):
        if name not in REGIMES:
            raise ValueError(f"no regime {name!r}; {nearest(name, list(REGIMES))}")
        kind = REGIMES[name]
        if issubclass(kind, FewShot):
            shots = tuple(given.shots.split(",")) if given.shots else None
            found.append(kind(shots, _rates(given.rates) or FewShot.rates, given.epochs))
        elif kind is TranslateTest:
            found.append(TranslateTest(given.translator))
        else:
            found.append(kind())
    return found


def _rates(given: str | None) -> tuple[float, ...]:
    try:
        return tuple(map(float, given.split(","))) if given else ()
    except ValueError:
        raise ValueError(f"--rates is {given!r}; give learning rates as 1e-4,5e-5,1e-5") from None


def _wanted(given: Namespace) -> list[Wanted]:
    """Errors: ValueError for tasks, protocols, configs that there are not, and options of another task."""
    from cclm.training.finetune_config import Recipe
    from cclm.training.regimes import Wanted

    chosen = tasks_named(given.tasks)
    if given.tasks.strip() == ALL:
        chosen = [task for task in chosen if "train" in task.splits]
    names = [task.name for task in chosen]
    train, dev, tuned = (_by_task(getattr(given, name), name, names) for name in ("train", "dev", "finetuned"))
    return [
        Wanted(
            task=task,
            protocol=task.protocol(given.protocol),
            recipe=Recipe.of(task, given.config or ()),
            languages=codes(given.languages),
            train=train.get(task.name),
            dev=dev.get(task.name),
            finetuned=_folder(tuned.get(task.name)),
        )
        for task in chosen
    ]


def _by_task(given: list[str] | None, option: str, names: list[str]) -> dict[str, str]:
    found = {}
    for entry in given or ():
        name, equals, value = entry.partition("=")
        if not equals or not value or name not in names:
            raise ValueError(f"--{option} is {entry!r}; give TASK=.. with a task of --tasks: {', '.join(names)}")
        found[name] = value
    return found


def _folder(given: str | None) -> Path | None:
    from cclm.evaluation.adapters.open import kind_of

    if given is not None and kind_of(given) != "cclm":
        raise ValueError(f"--finetuned {given} is no pretrained folder of cclm")
    return Path(given) if given is not None else None
