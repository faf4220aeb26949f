"""`cclm fit | validate | test`: LightningCLI over the system and the data module."""

from __future__ import annotations

import difflib
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from transformers.utils.logging import disable_progress_bar

from cclm.errors import first_line
from cclm.storage import whole_file
from cclm.training.base import System
from cclm.training.callbacks import Bar, Position, Speed, WholeCheckpoints
from cclm.training.datamodule import PairDataModule, StreamDataModule
from cclm.training.facts import CONFIG_OF_RUN
from cclm.training.settings import ProcessorSettings
from cclm.training.system import CrossViewSystem

# How jsonargparse words it: below a known key, at a file's top, inside a class, on the command line.
_UNKNOWN = re.compile(
    r"(?:Group '(?P<group>[\w.]+)' does not accept option|Subcommand '\w+' does not accept option|Option"
    r"|unrecognized arguments:) '?-{0,2}(?P<key>[\w.]+)'?"
)


@dataclass(frozen=True)
class Kind:
    """What the key `system` of a config chooses."""

    system: type[System]
    data: type[StreamDataModule]
    processor: type


def _kinds() -> dict[str, Callable[[], Kind]]:
    """By name, imported when chosen: a training of views needs no diffusion."""
    return {
        "cross_view": lambda: Kind(CrossViewSystem, PairDataModule, ProcessorSettings),
        "language_model": _language_model,
        "image_to_text": _image_to_text,
        "text_to_image": _text_to_image,
    }


def _language_model() -> Kind:
    from cclm.pivot.processor import PivotProcessorSettings
    from cclm.training.language_model import LanguageModelData, LanguageModelSystem

    return Kind(LanguageModelSystem, LanguageModelData, PivotProcessorSettings)


def _image_to_text() -> Kind:
    from cclm.pivot.processor import PivotProcessorSettings
    from cclm.training.image_to_text import ImageToTextData, ImageToTextSystem

    return Kind(ImageToTextSystem, ImageToTextData, PivotProcessorSettings)


def _text_to_image() -> Kind:
    from cclm.training.text_to_image import PaintSettings, TextToImageData, TextToImageSystem

    return Kind(TextToImageSystem, TextToImageData, PaintSettings)


_KEY = r'Parser key "([\w.]+)"'


class Parser(LightningArgumentParser):
    """Says in one line what a config gets wrong, with the nearest key there is."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(_one_line(str(message), self)) from ex


class WholeTrainer(Trainer):
    """Lightning's Trainer with what every run here needs: the data position, speed figures, whole checkpoints."""

    def __init__(
        self,
        *args: Any,
        callbacks: list[Callback] | Callback | None = None,
        enable_progress_bar: bool | None = None,
        **kwargs: Any,
    ) -> None:
        given = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
        has_bar = any(isinstance(callback, ProgressBar) for callback in given)
        if enable_progress_bar is None:
            enable_progress_bar = has_bar or sys.stdout.isatty()  # where bars are drawn
        if enable_progress_bar and not has_bar:
            given = [*given, Bar()]
        plugins = kwargs.pop("plugins", None) or []
        own = [WholeCheckpoints(), *(plugins if isinstance(plugins, list) else [plugins])]
        kwargs["use_distributed_sampler"] = False  # streams are shared out by us, and every rank runs all validation
        callbacks = [Position(), Speed(), *given]
        super().__init__(*args, callbacks=callbacks, plugins=own, enable_progress_bar=enable_progress_bar, **kwargs)


class KeptConfig(SaveConfigCallback):
    """Writes the whole configuration, defaults and all, beside the logs, under a name that no config is given."""

    def save_config(self, trainer: Trainer, system: LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config, skip_none=False)
        # Only the first rank comes here, and would wait forever in trainer.log_dir, which asks all ranks.
        folder = getattr(trainer.logger, "log_dir", None) or getattr(trainer.logger, "save_dir", None)
        with whole_file(Path(folder or trainer.default_root_dir) / CONFIG_OF_RUN) as partial:
            partial.write_text(text, encoding="utf-8")


class TrainingCLI(LightningCLI):
    """One YAML file is one run: seed, trainer, processor, model, data."""

    def __init__(self, kind: Kind, **kwargs: Any) -> None:
        self._kind = kind
        super().__init__(kind.system, kind.data, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--system", type=str, default="cross_view", help=f"one of {', '.join(_kinds())}")
        parser.add_class_arguments(self._kind.processor, "processor")
        parser.link_arguments("processor", "model.processor", apply_on="instantiate")
        for part in ("model", "data"):
            parser.link_arguments("seed_everything", f"{part}.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would read hyper-parameters from the checkpoint; ours stand in the config alone."""

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        config = self.config.get(str(self.subcommand), self.config)
        _check_streams(self.model, self.datamodule)
        if self.subcommand != "fit" and not (self.datamodule.validation or self.datamodule.testing):
            raise ValueError(f"{self.subcommand}: data.validation is empty; name the datasets to retrieve from")
        if config.ckpt_path and not Path(config.ckpt_path).is_file():  # Lightning takes "last" for "if there is one"
            raise ValueError(f"no checkpoint at {config.ckpt_path}; leave --ckpt_path out to start anew")
        Path(config.trainer.default_root_dir or ".").mkdir(parents=True, exist_ok=True)
        return super().instantiate_trainer(**kwargs)


def run(arguments: list[str]) -> None:
    """Run one verb with its arguments. Errors: ValueError, OSError with one line for the user."""
    # With `args` given, Lightning warns wherever the program itself had arguments. Its tips are not about this run
    # either, nor are the bars of saving a few megabytes.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    warnings.filterwarnings("ignore", "Found .* module.s. in eval mode")  # a frozen part is
    for logger in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    disable_progress_bar()
    if not sys.stdout.isatty():  # no progress bar will show: tell in lines how far the run is
        logging.getLogger("cclm.training").setLevel(logging.INFO)
    try:
        _start(arguments)
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise ValueError(f"trainer: {first_line(error)}") from error
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes a status 1 of it, as of a failure
            raise stop.__context__ from None
        raise


def _read_configs(arguments: list[str]) -> list[DictConfig]:
    """Errors: ValueError naming a config that is missing, no YAML or empty, which the parser would not name."""
    after = [value for flag, value in pairwise(arguments) if flag in ("-c", "--config")]
    contents = []
    for name in (*after, *(value.partition("=")[2] for value in arguments if value.startswith(("-c=", "--config=")))):
        if not Path(name).is_file():
            raise ValueError(f"no config at {name}; those that come with cclm are in configs/")
        try:
            content = OmegaConf.load(name)
        except Exception as error:  # whatever the reading of YAML raises
            raise ValueError(f"config {name} is no YAML ({' '.join(str(error).split())}); mend it") from None
        if not OmegaConf.is_dict(content) or not content:
            raise ValueError(f"config {name} is empty or holds no keys; those that come with cclm are in configs/")
        contents.append(content)
    return contents


def _kind(arguments: list[str]) -> Kind:
    """What is trained decides which keys there are, so it is read before the parser is made."""
    told = [content.system for content in _read_configs(arguments) if "system" in content]
    told += [value for flag, value in pairwise(arguments) if flag == "--system"]
    told += [value.partition("=")[2] for value in arguments if value.startswith("--system=")]
    name, kinds = told[-1] if told else "cross_view", _kinds()
    if name not in kinds:
        near = difflib.get_close_matches(str(name), kinds, 1)
        raise ValueError(
            f"system is {name!r}; choose one of {', '.join(kinds)}" + (f" (did you mean {near[0]}?)" if near else "")
        )
    return kinds[name]()


def _start(arguments: list[str]) -> None:
    TrainingCLI(
        _kind(arguments),
        args=arguments,
        parser_class=Parser,
        parser_kwargs={"parser_mode": "omegaconf+", "allow_abbrev": False},  # half a key is a wrong key
        trainer_class=WholeTrainer,
        save_config_callback=KeptConfig,
        save_config_kwargs={"save_to_log_dir": False},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )


def _check_streams(system: System, data: StreamDataModule) -> None:
    trained, read = set(system.streams), set(data.streams)
    if trained != read:
        raise ValueError(
            f"model.objectives are for streams {sorted(trained)}, data.streams are {sorted(read)}; name the same ones"
        )


def _one_line(message: str, parser: ArgumentParser) -> str:
    text = " ".join(message.split())
    if re.search(r'Parser key "model.objectives": Expected a dot import path string', text):  # no dict inside a dict
        return (
            "model.objectives cannot be changed in part on the command line; write all of it in a second --config file"
        )
    # What this very function has said of a class inside a list or dict comes back with the keys around it.
    if inner := re.search(r'Parser key "([\w.]+)":.*?(?:in ([\w.]+): )?(config key .*?)(?: - |$)', text):
        return f"in {'.'.join(filter(None, inner.groups()[:2]))}: {inner[3]}"
    if new := re.search(r'Parser key "(data\.\w+)": .*?arguments are required: ([\w, ]+?)(?: - |$)', text):
        return f"{new[1]}: a new entry lacks {new[2]}; give it, or is its name misspelt?"
    # Told first of the innermost key alone, then passed outwards.
    if single := re.search(r"(?:([\w.]+) is ([\w-]+); write a list|<class 'list'>.*Given value: ([\w-]+)$)", text):
        value = single[2] or single[3]
        keys = ".".join(filter(None, (*re.findall(_KEY, text), single[1])))
        return f"{keys} is {value}; write a list: [{value}]"
    if group := re.search(r'Parser key "(data\.\w+)": .*(?:Expected a (?:dot import|<class .dict)|NestedArg)', text):
        return f"{group[1]} is a mapping of name to settings, as in configs/pretrain/photos.yaml; give it whole"
    if unknown := _UNKNOWN.search(text):
        key = ".".join(filter(None, (unknown["group"], unknown["key"])))
        near = _nearest(key, list(_keys(parser)))
        return f"config key {key} does not exist" + (f"; did you mean {near}?" if near else "; --help lists all")
    return text


def _keys(parser: ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield action.dest
        for verb in getattr(action, "_name_parser_map", {}).values():
            yield from _keys(verb)


def _nearest(key: str, known: list[str]) -> str | None:
    """The option of the same group that `key` spells out (learning_rate: lr) or misspells, else the most alike key."""
    group, _, name = key.rpartition(".")
    siblings = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == group}
    initials = "".join(word[:1] for word in name.split("_"))
    near = [initials] if initials in siblings else difflib.get_close_matches(name, siblings, 1)
    return siblings[near[0]] if near else next(iter(difflib.get_close_matches(key, known, 1)), None)
