"""IGLUE's regimes from end to end: fine-tune as each asks, then score; what is there is neither trained nor run again.

Every split and every test is looked at before the first training starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol as Interface

from cclm.data.image_ids import image_id
from cclm.evaluation.adapters.open import ModelOptions, open_system
from cclm.evaluation.cells import RunFolder
from cclm.evaluation.items import Captions, Questions, TestSet
from cclm.evaluation.pictures import PictureFiles
from cclm.evaluation.protocol import FewShot, MaxShot, Protocol, Regime, TranslateTest, TranslateTrain
from cclm.evaluation.result import Result
from cclm.evaluation.runner import RunOptions, cached, present
from cclm.evaluation.task import ClassificationTask, DataFolder, Task
from cclm.training.finetune import Models, Training
from cclm.training.finetune_config import Recipe
from cclm.training.finetune_data import Examples, ShardSet, Split, shards_of
from cclm.training.tuned import Tuned

ENGLISH = "en"
NO_DEV = "none"  # as --dev TASK=none


class Translates(Interface):
    """What puts a test in English."""

    def check(self, test: TestSet) -> None: ...

    def translated(self, test: TestSet) -> TestSet: ...


@dataclass(frozen=True)
class Wanted:
    """A task to be fine-tuned on and scored. `languages`: None for all that the regime has.

    `train`, `dev`: "SPLIT" or "SPLIT:LANGUAGE" in place of the official ones, None for these; `dev` may be "none", to
    keep the last step. `finetuned`: a folder that was fine-tuned in English already.
    """

    task: Task
    protocol: Protocol
    recipe: Recipe
    languages: tuple[str, ...] | None = None
    train: str | None = None
    dev: str | None = None
    finetuned: Path | None = None


@dataclass
class Bench:
    """What tasks and regimes share: the model to start from and its name in reports, files, pictures, the run's folder.

    `options`: how models are run, whatever the regime.
    """

    model: Path
    name: str
    data: DataFolder
    pictures: PictureFiles
    models: Models
    opening: ModelOptions
    options: RunOptions
    translator: Translates | None = None
    _examples: dict[tuple[str, str, str], Examples] = field(default_factory=dict)

    def look(self, split: Split, option: str) -> Examples:
        """Errors: ValueError where nothing can be learned from it, with the option that names another."""
        key = (split.task.name, split.name, split.language)
        if key not in self._examples:
            split.find(self.data, option)
            self._examples[key] = split.read(self.data, self.pictures, self.options.partial)
        return self._examples[key]

    def shards(self, split: Split) -> ShardSet:
        return shards_of(split, self.look(split, "--train"), self.pictures, self.models.root / "data")

    def score(self, tuned: Tuned, tests: list[TestSet], options: RunOptions) -> Iterator[Result]:
        system = replace(open_system(str(tuned.folder), self.opening), name=self.name)
        yield from cached(system, tests, self.pictures, options, RunFolder.at(self.models.root))


@dataclass(frozen=True)
class Said:
    """What is to be said beside a model's numbers, and the ids of the images that it was fine-tuned on."""

    notes: tuple[str, ...] = ()
    seen: frozenset[str] = frozenset()

    def after(self, bench: Bench, split: Split, dev: Split | None) -> Said:
        """With what another training adds to it."""
        examples = bench.look(split, "--train")
        said = [*self.notes, *(f"of the training: {note}" for note in examples.notes)]
        if split.wanted:
            said.append(f"trained on {split}, not the official {split.wanted}")
        if dev is None:
            said.append("no dev split: the last step is kept")
        elif dev.wanted:
            said.append(f"chosen on {dev}, not the official {dev.wanted}")
        if dev is not None and (both := len({*examples.ids} & {*bench.look(dev, "--dev").ids})):
            said.append(f"chosen on {both:,} examples that it was trained on")
        return Said(tuple(dict.fromkeys(said)), self.seen | set(map(image_id, examples.images())))

    def warned(self, test: TestSet) -> TestSet:
        """The test, which says how many of its images the training had."""
        names = test.images()
        if not (known := sum(image_id(name) in self.seen for name in names)):
            return test
        return replace(test, notes=(*test.notes, f"{known:,} of its {len(names):,} images were in the training"))


@dataclass(frozen=True)
class Made:
    """A model that was fine-tuned."""

    tuned: Tuned
    said: Said


@dataclass
class Run:
    """One task in one regime."""

    bench: Bench
    wanted: Wanted
    regime: Regime

    # -- what there is -------------------------------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        return self.wanted.task

    def languages(self) -> tuple[str, ...]:
        """Of the tests. Errors: ValueError where the regime has none, or none of those wanted."""
        there = self.there()
        wanted = there if self.wanted.languages is None else self.wanted.languages
        if not (found := tuple(language for language in wanted if language in there)):
            given = f" in {', '.join(wanted)}" if there else ""
            cure = "; name a translation model with --translator" if isinstance(self.regime, TranslateTest) else ""
            raise ValueError(
                f"task {self.task.name} has nothing for regime {self.regime.name}{given}; it has "
                f"{', '.join(there) or 'no language of it'}{cure}"
            )
        return found

    def there(self) -> tuple[str, ...]:
        """Languages that the task has in this regime."""
        tested = self.task.tested(self.wanted.protocol)
        if isinstance(self.regime, FewShot):
            return tuple(name for name in tested if self.task.shots and name in self.task.shots.languages)
        if isinstance(self.regime, TranslateTrain):
            own = self.task.splits.get("train_translated")
            return tuple(own.languages) if own is not None else ()
        if isinstance(self.regime, TranslateTest):
            shipped = self.task.splits.get(f"{self.wanted.protocol.split}_translated")
            if self.bench.translator is None:
                return tuple(shipped.languages) if shipped is not None else ()
            return tuple(name for name in tested if name != ENGLISH)
        return tested

    def shots(self) -> tuple[str, ...]:
        """Names of the few-shot training sets, smallest first. Errors: ValueError for one that there is not."""
        assert isinstance(self.regime, FewShot) and self.task.shots is not None
        there = tuple(self.task.shots.examples)
        if isinstance(self.regime, MaxShot):
            return there[-1:]
        wanted = self.regime.shots or there
        if unknown := [name for name in wanted if f"train_{name}" not in self.task.splits]:
            raise ValueError(f"task {self.task.name} has no {unknown[0]} shots; there are {', '.join(there)}")
        return tuple(wanted)

    def tests(self, language: str) -> TestSet:
        """Errors: ValueError where the test cannot be read whole, or a model cannot be asked."""
        shipped = isinstance(self.regime, TranslateTest) and not self._translates()
        partial = self.bench.options.partial
        test = self.task.test_set(self.bench.data, language, self.wanted.protocol, shipped, whole=not partial)
        if isinstance(test, Questions) and test.textless:
            raise ValueError(f"{test.task} in {language}: no texts are at hand, so no model can answer them")
        (there,) = present([test], self.bench.pictures, partial)
        if self._translates():
            self.bench.translator.check(there)
        return there

    # -- splits --------------------------------------------------------------------------------------------------------

    def train_split(self, language: str) -> Split:
        """Of the training that starts from the pretrained model: English, or translated to the language."""
        translated = isinstance(self.regime, TranslateTrain)
        own = language if translated else ENGLISH
        official = Split(self.task, "train_translated" if translated else "train", own)
        return self._given(self.wanted.train, own, official, "--train")

    def dev_split(self) -> Split | None:
        """What that training's best step is chosen by: "valid" where the task keeps "dev" for few shots, as xGQA."""
        name = "valid" if "valid" in self.task.splits else "dev"
        return self._dev(Split(self.task, name, ENGLISH))

    def few_shot_dev(self, language: str) -> Split | None:
        """English, for a task whose "dev" is in no other language (xGQA's is)."""
        dev = self.task.splits.get("dev")
        own = language if dev is not None and language in dev.languages else ENGLISH
        return self._dev(Split(self.task, "dev", own))

    def _dev(self, official: Split) -> Split | None:
        if self.wanted.dev == NO_DEV:
            return None
        return self._given(self.wanted.dev, official.language, official, "--dev")

    def _given(self, given: str | None, language: str, official: Split, option: str) -> Split:
        """The split that a user names, or the official one. Errors: ValueError for a test, or one that is not there."""
        if given is None:
            return official
        name, _, other = given.partition(":")
        if name.startswith("test") or name == self.wanted.protocol.split:
            raise ValueError(f"{option} {self.task.name}={given} is what is tested; give another split")
        split = Split(self.task, name, other or language)
        self.task.source(name, split.language)
        same = (name, split.language) == (official.name, official.language)
        return split if same else replace(split, wanted=official.name)

    # -- before the work -----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Errors: ValueError for whatever would stop the run later: files, pictures, splits, shots."""
        few = isinstance(self.regime, FewShot)
        for language in self.languages():
            self.tests(language)
            if self.wanted.finetuned is None:
                self.bench.look(self.train_split(language), "--train")
                self._look_dev(self.dev_split())
            if few:
                self._look_dev(self.few_shot_dev(language))
                for shots in self.shots():
                    self.bench.look(Split(self.task, f"train_{shots}", language), "--train")
        if few and self.wanted.dev == NO_DEV and len(self.regime.rates) > 1:  # type: ignore[attr-defined]
            raise ValueError(f"--dev {self.task.name}=none leaves nothing to choose a rate by; give one with --rates")

    def _look_dev(self, split: Split | None) -> None:
        if split is not None:
            self.bench.look(split, "--dev")

    # -- the work ------------------------------------------------------------------------------------------------------

    def results(self) -> Iterator[Result]:
        """Errors: ValueError, OSError."""
        if isinstance(self.regime, FewShot):
            english = self.fine_tuned(ENGLISH)
            for language in self.languages():
                test = self.tests(language)
                for shots in self.shots():
                    yield from self._scored(self.few_shot(english, language, shots), [test], shots)
        elif isinstance(self.regime, TranslateTrain):
            for language in self.languages():
                yield from self._scored(self.fine_tuned(language), [self.tests(language)])
        else:
            tests = [self.tests(language) for language in self.languages()]
            if self._translates():
                tests = [self.bench.translator.translated(test) for test in tests]
            yield from self._scored(self.fine_tuned(ENGLISH), tests)

    def fine_tuned(self, language: str) -> Made:
        """From the pretrained model: with English examples, or with those that were translated to the language."""
        if self.wanted.finetuned is not None:
            tuned = Tuned.of(self.wanted.finetuned)
            return Made(tuned, Said((*tuned.notes, f"fine-tuned before: {self.wanted.finetuned}")))
        split, dev = self.train_split(language), self.dev_split()
        train, said = self.bench.shards(split), Said().after(self.bench, split, dev)
        training = Training(
            name=f"{self.task.name}-{split.language}",
            config=self.wanted.recipe.english(train.examples),
            start=self.bench.model,
            train=train,
            dev=self.bench.shards(dev) if dev is not None else None,
            labels=self._labels(),
            resumable=True,
            notes=said.notes,
        )
        return Made(self.bench.models.train(training), said)

    def few_shot(self, english: Made, language: str, shots: str) -> Made:
        """Goes on from the English model: of all rates the one that is best by the dev split."""
        assert isinstance(self.regime, FewShot)
        split, dev = Split(self.task, f"train_{shots}", language), self.few_shot_dev(language)
        examples = self.bench.look(split, "--train")
        if isinstance(examples, Captions) and len(examples.images()) < 2:
            note = "one image has no wrong partner to be told from: the English model as it is"
            return replace(english, said=replace(english.said, notes=(*english.said.notes, note)))
        train, said = self.bench.shards(split), english.said.after(self.bench, split, dev)
        trainings = [
            Training(
                name=f"{self.task.name}-{language}-{shots}-{rate:g}",
                config=self.wanted.recipe.few_shot(train.examples, rate, self.regime.epochs),
                start=english.tuned.folder,
                train=train,
                dev=self.bench.shards(dev) if dev is not None else None,
                notes=said.notes,
            )
            for rate in self.regime.rates
        ]
        models = self.bench.models
        tried = [models.known(training) or models.train(training) for training in trainings]
        best = max(range(len(tried)), key=lambda number: tried[number].value or 0.0)  # of equal ones the first
        chosen = models.train(trainings[best])
        for other in tried:
            if other.folder != chosen.folder:
                models.forget(other)
        rates = {f"{rate:g}": each.value for rate, each in zip(self.regime.rates, tried, strict=True)}
        about = chosen.about | {"rates": rates, "english": english.tuned.about}
        return Made(replace(chosen, about=about), said)

    def _labels(self) -> list[str] | str | None:
        """For a new head: those of the config where they are the task's, as their order is free."""
        if not isinstance(self.task, ClassificationTask):
            return None
        known = self.task.known_labels(self.bench.data)
        given = self.wanted.recipe.config["model"]["network"].get("labels")
        if isinstance(given, list) and set(given) == set(known):
            return given
        return str(self.bench.data.path(self.task.label_file)) if self.task.label_file else list(known)

    def _scored(self, made: Made, tests: list[TestSet], shots: str = "") -> Iterator[Result]:
        options = replace(
            self.bench.options,
            regime=self.regime.name,
            shots=shots,
            notes=made.said.notes,
            training=made.tuned.about,
            translator=self.regime.translator if self._translates() else "",
        )
        yield from self.bench.score(made.tuned, [made.said.warned(test) for test in tests], options)

    def _translates(self) -> bool:
        return isinstance(self.regime, TranslateTest) and self.bench.translator is not None
