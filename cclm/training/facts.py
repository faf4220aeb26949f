"""What a model card says of a training: its streams, their manifests, its recipe, its last validation."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytorch_lightning as pl

import cclm
from cclm.data.batches import StreamConfig
from cclm.data.shards import manifests
from cclm.models.card import CardFacts, StreamFacts
from cclm.models.names import as_seen_from
from cclm.models.portrait import Portrait
from cclm.training.base import System
from cclm.training.settings import NetworkSettings

CONFIG_OF_RUN = "config_of_run.yaml"


def card_facts(trainer: pl.Trainer, system: System, folder: Path, portrait: Portrait, licence: str | None) -> CardFacts:
    """To be called on every rank: the folder of the logs is agreed upon. `folder`: where the card will lie."""
    logs = Path(trainer.log_dir or trainer.default_root_dir)
    place = folder.absolute()
    settings = system.settings
    start = portrait.start or "random weights"
    recipe = {
        "updates": f"{trainer.global_step:,} of {trainer.max_steps:,}",
        "optimizer": f"AdamW, rate {settings.lr:g}, weight decay {settings.weight_decay:g}, betas {settings.betas}",
        "schedule": f"{settings.schedule}, {settings.warmup_steps:,} steps of warm-up",
        "gradient norm": f"clipped at {settings.clip_norm:g}" if settings.clip_norm else "not clipped",
        "frozen": ", ".join(settings.frozen) or ("by the preset" if "preset" in portrait.recipe else "nothing"),
        "weights of losses": ", ".join(f"{name} {weight:g}" for name, weight in system.weights.items()) or "1",
        "precision": str(trainer.precision),
        "processes": str(trainer.world_size),
        "seed": str(system.seed),
        "texts": f"up to {system.processor.max_tokens} tokens of a vocabulary of {system.processor.vocab_size:,}",
        "code": _code(),
        "whole configuration": f"`{os.path.relpath((logs / CONFIG_OF_RUN).absolute(), place)}`, seen from here",
    }
    return CardFacts(
        name=f"{place.parent.name}/{place.name}",
        origin=f"Trained by `cclm fit`, starting from {start}."
        if trainer.global_step
        else f"The start of a training from {start}: nothing learned yet.",
        portrait=portrait,
        streams=tuple(
            _stream(name, config, system.losses[name], place) for name, config in trainer.datamodule.streams.items()
        ),
        recipe=portrait.recipe | recipe,
        licence=licence,
        validation={
            name.removeprefix("eval/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("eval/")
        },
    )


def start_of(network: NetworkSettings, folder: Path) -> str:
    """The weights that a training begins with, if any: those named in the configuration."""
    if network.pretrained:
        return f"`{as_seen_from(folder, network.pretrained)}`"
    halves = {"image encoder": network.backbone_weights, "text layers": network.text_weights}
    return " and ".join(f"the {half} of `{as_seen_from(folder, file)}`" for half, file in halves.items() if file)


def _code() -> str:
    """The version, and the commit where the package lies in a checkout of its own; + where something was changed."""
    root, git = Path(cclm.__file__).parents[1], shutil.which("git")
    told = ""
    if git and (root / ".git").exists():
        asked = [git, "--no-optional-locks", "describe", "--always", "--exclude=*", "--dirty=+"]
        told = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    return f"cclm {cclm.__version__}" + (f", commit {told}" if told else "")


def _stream(name: str, config: StreamConfig, objectives: tuple[str, ...], place: Path) -> StreamFacts:
    paths = config.paths
    found, read = manifests(paths), set(map(Path, paths))
    counts = [
        entry.samples
        for folder, each in found.items()
        for entry in (each.shards if each else ())
        if folder / entry.name in read
    ]
    samples = None if None in found.values() else sum(counts)
    languages = {code: count for code, count in config.languages().items() if count}
    shards = [config.shards] if isinstance(config.shards, str) else config.shards
    told = tuple(as_seen_from(place, each) for each in shards)
    return StreamFacts(name, told, samples, languages, config.batch_size, objectives)
