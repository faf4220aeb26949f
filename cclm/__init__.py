"""cclm: one transformer that aligns views, image and caption or sentence and translation."""

from __future__ import annotations

import importlib

# Public name -> module. Loaded on first use, so that `import cclm` costs nothing.
_HOMES = {
    "CCLMConfig": "cclm.models.model",
    "CCLMModel": "cclm.models.model",
    "CCLMProcessor": "cclm.models.processor",
    "EncodingOptions": "cclm.models.options",
    "ImageSettings": "cclm.models.processor",
    "View": "cclm.types",
    "Memory": "cclm.types",
    "Record": "cclm.types",
    "Pair": "cclm.types",
    "PairBatch": "cclm.types",
    "ImageInput": "cclm.types",
    "TextInput": "cclm.types",
}

__version__ = "0.1.0"
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'cclm' has no attribute {name!r}; public names: {', '.join(_HOMES)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
