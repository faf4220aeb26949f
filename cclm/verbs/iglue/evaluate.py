"""`cclm iglue evaluate`: a model of any kind on the tests of benchmark tasks, read as they ship."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from cclm.verbs.iglue.chosen import Chosen, add_pictures, add_tests, chosen, lenient, pictures_of
from cclm.verbs.inputs import device_named
from cclm.verbs.visual import add_writing, visual

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cclm.evaluation.embedder import System
    from cclm.evaluation.items import TestSet
    from cclm.evaluation.pictures import PictureFiles
    from cclm.evaluation.result import Result
    from cclm.evaluation.runner import RunOptions
    from cclm.evaluation.task import DataFolder

    Group: TypeAlias = tuple[Chosen, list[TestSet]]

SHIPPED = "shipped"
TOLD = ("accuracy", "consistency", "CIDEr", "BLEU-4", "chrF", "fidelity")
Some = TypeVar("Some")


def options(parser: ArgumentParser) -> None:
    from cclm.evaluation.translation import TranslationOptions
    from cclm.models.encoding import EncodingOptions

    parser.add_argument(
        "--model", type=str, required=True, help="a folder or hub name of any kind; or file.py:function"
    )
    add_tests(parser)
    add_pictures(parser)
    parser.add_argument("--translate", type=str, default=None, help="shipped, or a translation model: tests in English")
    parser.add_argument("--translation", type=TranslationOptions, default=TranslationOptions())
    parser.add_argument("--rerank", type=int, default=0, help="candidates per query for the matching head")
    parser.add_argument("--rerank_similarity", type=float, default=0.0, help="weight of similarity beside its score")
    parser.add_argument("--rerank_score", default="log_odds", help="log_odds of a match, or the original's logit")
    parser.add_argument("--templates", type=Path, default=None, help="a line each, {} for a class's name (zero-shot)")
    parser.add_argument("--prompt", type=str, default=None, help="of questions to a language model, with {text}")
    parser.add_argument("--per_token", action="store_true", help="compare answers by their likelihood per token")
    parser.add_argument("--candidates", type=int, default=0, help="answers compared, of many; all that may win")
    add_writing(parser)
    parser.add_argument("--output", type=Path, default=None, help="the run's folder; what is there is not run again")
    parser.add_argument("--system", type=str, default=None, help="the model's name in reports; what --model is")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--device", default="cpu", help="cpu, cuda ..")
    parser.add_argument("--encoding", type=EncodingOptions, default=EncodingOptions())


def run(given: Namespace) -> None:
    """Everything that can be wrong is looked at before the work."""
    from cclm.evaluation.adapters.open import ModelOptions, kind_of, open_system
    from cclm.evaluation.cells import RunFolder
    from cclm.evaluation.runner import cached, evaluate_all
    from cclm.evaluation.task import DataFolder

    translator = given.translate or ""
    tasks, data, run_options = chosen(given, translator), DataFolder(given.data), _run_options(given)
    kind_of(given.model)
    device = device_named(given.device)
    model_options = ModelOptions(device, given.encoding, given.rerank_score, visual(given, device))
    folder = RunFolder.at(given.output) if given.output else None
    with pictures_of(given) as pictures:
        groups = _tests(tasks, data, pictures, given)
        system = open_system(given.model, model_options)
        system = replace(system, name=given.system or system.name)
        groups = [(one, [_worded(test, given.prompt, system) for test in tests]) for one, tests in groups]
        tests = _fitting(groups, system, run_options)
        if translator not in ("", SHIPPED):
            tests = _translated(tests, given)
        results: list[Result] = []
        for group in tests:
            if folder is not None:
                found: Iterable[Result] = cached(system, group, pictures, run_options, folder)
            else:
                found = (scored.result for scored in evaluate_all(system, group, pictures, run_options))
            for result in found:
                results.append(result)
                if not given.json:
                    print(line(result), flush=True)
    if given.json:
        print(json.dumps([result.to_dict() for result in results], ensure_ascii=False))


def _tests(tasks: list[Chosen], data: DataFolder, pictures: PictureFiles, given: Namespace) -> list[Group]:
    """What is asked of each task, with its pictures at hand. Errors: ValueError."""
    from cclm.evaluation.runner import present

    groups: list[Group] = []
    for one in tasks:
        with lenient(one.task, one.named):
            if tests := one.tests(data, given.partial):
                groups.append((one, present(tests, pictures, given.partial)))
    return _some(groups)


def _worded(test: TestSet, prompt: str | None, system: System) -> TestSet:
    """Asked as the user says, else as the model wants it, else as the task has it."""
    from cclm.evaluation.items import Questions, Wording

    if not isinstance(test, Questions):
        return test
    if prompt is None and system.asking is not None:
        prompt = system.asking(max((len(question.images) for question in test.questions), default=1))
    if prompt is None:
        return test
    return replace(test, wording=Wording(prompt, test.wording.answers if test.wording else {}))


def _fitting(groups: list[Group], system: System, options: RunOptions) -> list[list[TestSet]]:
    """Those that the model can be asked. Errors: ValueError."""
    from cclm.evaluation.runner import check

    def checked(test: TestSet) -> TestSet:
        check(system, [test], options)
        return test

    fitting = [one.kept({test.language: partial(checked, test) for test in tests}) for one, tests in groups]
    return _some([tests for tests in fitting if tests])


def _some(found: list[Some]) -> list[Some]:
    """Errors: ValueError where nothing is left."""
    if not found:
        raise ValueError("--tasks all: none can be measured here, for the reasons above; name one")
    return found


def _run_options(given: Namespace) -> RunOptions:
    from cclm.data.raw import read_lines
    from cclm.evaluation.protocol import TranslateTest, ZeroShot
    from cclm.evaluation.runner import RunOptions
    from cclm.training.tuned import Tuned

    tuned = Tuned.of(Path(given.model))  # where a run of ours has made it, what is to be said of that
    templates = tuple(line for line in read_lines(given.templates) if line.strip()) if given.templates else ("{}",)
    return RunOptions(
        rerank=given.rerank,
        rerank_similarity=given.rerank_similarity,
        partial=given.partial,
        templates=templates,
        image_batch=given.encoding.image_batch,
        regime=TranslateTest.name if given.translate else ZeroShot.name,
        translator="" if given.translate in (None, SHIPPED) else given.translate,
        notes=tuned.notes,
        training=tuned.about,
    )


def _translated(tests: list[list[TestSet]], given: Namespace) -> list[list[TestSet]]:
    from cclm.evaluation.translation import Translator

    translator = Translator.open(given.translate, device_named(given.device), given.output, given.translation)
    for group in tests:
        for test in group:
            translator.check(test)
    return [[translator.translated(test) for test in group] for group in tests]


def line(result: Result) -> str:
    """A result as one line, with all that its number depends on."""
    told = []
    for name, value in result.scores.items():
        if isinstance(value, dict) and "R@1" in value:
            recalls = " / ".join(f"{value[f'R@{k}']:.2f}" for k in (1, 5, 10))
            told.append(f"{name.replace('_', ' ')} R@1/5/10 {recalls}")
        elif name in TOLD:
            told.append(f"{name} {value:.2f}")
    parts = (result.protocol, result.regime, f"{result.shots} shots" if result.shots else "", f"{result.items:,} items")
    where = f"{result.task} {result.language} ({', '.join(filter(None, parts))})"
    notes = f" [{'; '.join(result.notes)}]" if result.notes else ""
    return f"{where}: {', '.join(told)}{notes}"
