"""What a model card says of a training: its streams, their manifests, its recipe, its last validation."""

from __future__ import annotations

import os
from pathlib import Path

import pytorch_lightning as pl

from cclm.data.batches import StreamConfig
from cclm.data.shards import manifests
from cclm.models.card import CardFacts, StreamFacts
from cclm.training.settings import NetworkSettings

CONFIG_OF_RUN = "config_of_run.yaml"


def card_facts(trainer: pl.Trainer, system: pl.LightningModule, folder: Path, licence: str | None) -> CardFacts:
    """To be called on every rank: the folder of the logs is agreed upon. `folder`: where the card will lie."""
    logs = Path(trainer.log_dir or trainer.default_root_dir)
    place = folder.absolute()
    settings = system.settings
    recipe = {
        "updates": f"{trainer.global_step:,} of {trainer.max_steps:,}",
        "optimizer": f"AdamW, rate {settings.lr:g}, weight decay {settings.weight_decay:g}, betas {settings.betas}",
        "schedule": f"{settings.schedule}, {settings.warmup_steps:,} steps of warm-up",
        "gradient norm": f"clipped at {settings.clip_norm:g}" if settings.clip_norm else "not clipped",
        "frozen": ", ".join(settings.frozen) or "nothing",
        "precision": str(trainer.precision),
        "processes": str(trainer.world_size),
        "seed": str(system.seed),
        "texts": f"up to {system.processor.max_tokens} tokens of a vocabulary of {system.processor.vocab_size:,}",
        "whole configuration": f"`{os.path.relpath((logs / CONFIG_OF_RUN).absolute(), place)}`, seen from here",
    }
    return CardFacts(
        name=f"{place.parent.name}/{place.name}",
        origin=_origin(system.network, trained=trainer.global_step > 0),
        config=system.model.config,
        streams=tuple(
            _stream(name, config, tuple(system.objectives[name])) for name, config in trainer.datamodule.streams.items()
        ),
        recipe=recipe,
        licence=licence,
        validation={
            name.removeprefix("eval/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("eval/")
        },
    )


def _origin(network: NetworkSettings, trained: bool) -> str:
    """What it is, and from which weights: those named in the configuration, as they are named there."""
    halves = {"image encoder": network.backbone_weights, "text layers": network.text_weights}
    start = f"`{network.pretrained}`" if network.pretrained else ""
    start = start or " and ".join(f"the {half} of `{file}`" for half, file in halves.items() if file)
    start = start or "random weights"
    if trained:
        return f"Trained by `cclm fit`, starting from {start}."
    return f"The start of a training from {start}: nothing learned yet."


def _stream(name: str, config: StreamConfig, objectives: tuple[str, ...]) -> StreamFacts:
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
    return StreamFacts(name, tuple(shards), samples, languages, config.batch_size, objectives)
