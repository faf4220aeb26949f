"""Which kind of model is it, by what its folder or hub page holds? Nothing of the others is imported."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from cclm.errors import first_line
from cclm.evaluation.embedder import System
from cclm.models.encoding import EncodingOptions, MatchScore
from cclm.models.names import is_here, model_type, quiet
from cclm.storage import MODEL_FILES, file_hash, pretrained_hash

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

SUPPORTED = (
    "a pretrained folder of cclm, a CLIP, SigLIP, SigLIP 2, MetaCLIP 2, AltCLIP or ChineseCLIP of transformers, a "
    "model of sentence-transformers (each a folder or a hub name), a folder of cclm's image-to-text, or "
    "file.py:function that makes one of your own"
)
VISUAL_LANGUAGE_MODEL = "cclm_image_to_text"  # as its config.json calls it
_WEIGHTS = (*MODEL_FILES, "*.bin", "*.txt", "*.spm")


@dataclass(frozen=True)
class ModelOptions:
    """How a model runs. `match_score`: of the matching head, see RetrievalOptions.rerank_score. `visual`: opens a
    language model that sees, of a folder and its SHA-256; without, such folders are refused.
    """

    device: torch.device
    encoding: EncodingOptions = field(default_factory=EncodingOptions)
    match_score: MatchScore = "log_odds"
    visual: Callable[[str, str], System] | None = None

    def __post_init__(self) -> None:
        if self.match_score not in get_args(MatchScore):
            raise ValueError(f"rerank_score is {self.match_score!r}; choose {' or '.join(get_args(MatchScore))}")


def kind_of(name: str) -> str:
    """ "cclm", that of language models that see, a model type of transformers that is supported,
    "sentence-transformers" or "file"; reads no weights.

    Errors: ValueError, one line, for anything else, naming what there is.
    """
    from cclm.evaluation.adapters.dual_encoder import FAMILIES

    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        if not Path(path).is_file() or not function.isidentifier():
            raise ValueError(f"model {name}: there is no such file and function; give {SUPPORTED}")
        return "file"
    config, modules = _file(name, "config.json"), _file(name, "modules.json")
    if config is None and modules is None and not Path(name).expanduser().is_dir():
        raise ValueError(f"no model {name}, here or on the hub; check the name and the network, or give a folder")
    found = model_type(config) if config is not None else None
    if found in ("cclm", VISUAL_LANGUAGE_MODEL):  # the former's folders are models of sentence-transformers too
        return str(found)
    if modules is not None:
        return "sentence-transformers"
    if found in FAMILIES:
        return str(found)
    what = f"is a model of type {found}" if found else f"is none: it has no {'model_type' if config else 'config.json'}"
    raise ValueError(f"model {name} {what}; give {SUPPORTED}")


def open_system(name: str, options: ModelOptions) -> System:
    """The model of a folder, a hub name or a file, ready to be scored. Errors: ValueError, one line."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    kind = kind_of(name)
    if kind == "file":
        return _own(name)
    sha256, encoding = model_hash(name), options.encoding
    settings = {"precision": encoding.precision, "max_tokens": encoding.max_tokens}
    if kind == "cclm":
        from cclm.evaluation.adapters.cross_view import open_cross_view

        system = open_cross_view(name, sha256, options.device, encoding, options.match_score)
    elif kind == VISUAL_LANGUAGE_MODEL:
        if options.visual is None:
            raise ValueError(f"{name} is a language model that sees, which embeds nothing; give a dual encoder")
        system = options.visual(name, sha256)
    elif kind == "sentence-transformers":
        from cclm.evaluation.adapters.sentence_encoder import open_sentence_encoder

        system = open_sentence_encoder(name, sha256, options.device, encoding)
    else:
        from cclm.evaluation.adapters.dual_encoder import open_dual_encoder

        system = open_dual_encoder(name, sha256, options.device, encoding)
    return replace(system, settings=settings | system.settings)


def _own(name: str) -> System:
    """What the function of a file of the user's own returns, called without arguments.

    It is known by the file's hash and its attribute `sha256`; without that, by nothing.
    """
    path, _, function = name.rpartition(":")
    with _importable(Path(path).resolve()) as module_name:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)  # dataclasses look there
        try:
            spec.loader.exec_module(module)
            make = getattr(module, function, None)
            model = make() if callable(make) else None
        except Exception as error:  # whatever a user's file raises, they are told which file it is
            raise ValueError(f"{name} does not run ({type(error).__name__}: {first_line(error)}); mend it") from error
    if not callable(make):
        raise ValueError(f"{path} has no function {function}; name one that returns a model")
    own = getattr(model, "sha256", None)
    if own is None:
        logger.warning(
            "%s has no attribute sha256: whether its weights are others nobody knows, so it is scored anew", name
        )
    known = _joined([file_hash(path), str(own)])
    system = System.of(model, str(getattr(model, "name", name)), f"model of {path}", known)
    return replace(system, known=own is not None)


@contextmanager
def _importable(path: Path) -> Iterator[str]:
    """A name for the module of a file, which may import what lies beside it."""
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        yield f"_model_{path.stem}_{file_hash(path)[:12]}"
    finally:
        sys.path.remove(folder)


def _file(name: str, file: str) -> Path | None:
    """A file of a folder or of the hub, None where it is not there. Errors: ValueError where there is no such model."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    if is_here(name):
        raise ValueError(f"no model at {name}; give {SUPPORTED}")
    from transformers.utils import cached_file

    try:
        with quiet():
            found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):  # no such name, or no network
        found = None
    return Path(found) if found else None


def model_hash(name: str) -> str:
    """SHA-256 of a folder's weights and settings; of a hub's model its name and revision, which cannot change."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        parts = [folder, *(part for part in sorted(folder.iterdir()) if part.is_dir())]
        hashes = [pretrained_hash(part, _WEIGHTS) for part in parts]
        return _joined(hashes) if len(hashes) > 1 else hashes[0]
    file = _file(name, "config.json") or _file(name, "modules.json")
    assert file is not None
    return _joined([name, file.parent.name])  # the cache keeps each revision in a folder of its name


def _joined(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
