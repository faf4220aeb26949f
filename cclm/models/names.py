"""A folder here, or a name on the hub?"""

from __future__ import annotations

from pathlib import Path


def is_here(name: str) -> bool:
    """Whether `name` can only mean a folder of this machine: the hub's are `name` or `owner/name`.

    A forgotten step must be told at once, not after the hub has been asked for `data/tokenizer` six times.
    """
    path = Path(name).expanduser()
    return (
        path.is_absolute()
        or name.startswith((".", "~"))
        or len(path.parts) > 2
        or (len(path.parts) == 2 and (path.parts[0] in ("data", "runs") or Path(path.parts[0]).is_dir()))
    )
