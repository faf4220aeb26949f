"""`cclm serve`: an index behind a page, JSON and clip-retrieval's routes."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.verbs.inputs import load

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

TOKEN = "CCLM_TOKEN"


def options(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path)
    parser.add_argument("--host", default="127.0.0.1", help="any other than this machine's own needs a token")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--model", type=Path, default=None, help="the model's folder, where it has moved")
    parser.add_argument("--device", default="cpu", help="cpu, cuda ..")
    parser.add_argument(
        "--images", type=Path, nargs="+", default=None, help="folders of the pictures, where they have moved"
    )
    parser.add_argument("--token_file", type=Path, default=None, help=f"file of the token; or the variable {TOKEN}")
    parser.add_argument("--allow_origin", nargs="+", default=[], help="other pages that may ask: https://host ..")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second of one client; 0: any number")
    parser.add_argument("--concurrent", type=int, default=256, help="requests that are answered at once")
    parser.add_argument("--seconds", type=float, default=30.0, help="that a request may take")
    parser.add_argument(
        "--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="of the model; best a core is left"
    )
    parser.add_argument("--batch", type=int, default=64, help="queries that are answered together, at most")


def run(given: Namespace) -> None:
    _check(given)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # threads that begin later have it from here alone
    try:
        from cclm.retrieval.service import app, server
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("cclm"):
            raise
        raise ValueError(f"serve needs {error.name}, which is not installed: pip install 'cclm[serve]'") from None
    from cclm.retrieval.index import ImageIndex
    from cclm.retrieval.searcher import Searcher
    from cclm.retrieval.service.limits import Access, Limits
    from cclm.retrieval.service.state import Service

    local, token = server.is_loopback(given.host), _token(given.token_file)
    if not local and token is None:
        raise ValueError(f"host {given.host} can be asked by others; give a token by --token_file or {TOKEN}")
    access = Access(token, frozenset((*server.LOOPBACK, given.host)) if local else None, frozenset(given.allow_origin))
    limits = Limits(requests_per_s=given.rate, concurrent=given.concurrent, seconds=given.seconds)
    server.use_threads(given.threads)
    bound = server.listen(given.host, given.port)
    index = ImageIndex.open(given.index)
    folder = index.model(given.model)
    model, processor = load(folder, given.device)
    model.processor = processor
    service = Service(
        Searcher(index, model),
        folder.name,
        "match" in model.config.heads,
        limits,
        access,
        roots=given.images,
        batch=given.batch,
    )
    address = server.address_of(bound, given.host)

    def started() -> None:
        hint = " (with the token; or open it as #token=TOKEN)" if token else ""
        print(f"{given.index}: {len(index)} pictures at {address}{hint}", flush=True)
        if given.open:
            webbrowser.open(address)

    server.Server(app.create_app(service), started).run([bound])


def _check(given: Namespace) -> None:
    """What would fail, or do harm, only later. Errors: ValueError."""
    most = os.cpu_count() or 1
    if not 1 <= given.threads <= most:
        raise ValueError(f"threads is {given.threads}; give 1 to {most}, as many as this machine has processors")
    if given.batch < 1:
        raise ValueError(f"batch is {given.batch}; give 1 or more")
    for folder in given.images or ():
        if not folder.is_dir():
            raise ValueError(f"--images {folder} is no folder; give those that the pictures are in")


def _token(file: Path | None) -> str | None:
    """Errors: ValueError for a file that is missing or empty."""
    if file is None:
        return os.environ.get(TOKEN) or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the token file {file} cannot be read ({type(error).__name__}); check --token_file") from None
    if not token:
        raise ValueError(f"the token file {file} is empty; write a token into it")
    if os.name == "posix" and file.stat().st_mode & 0o077:
        print(f"cclm: others can read the token file {file}; chmod 600 it", file=sys.stderr)
    return token
