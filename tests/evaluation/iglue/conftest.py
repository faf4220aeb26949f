"""The real files of the benchmarks, unpacked once for all test processes."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from filelock import FileLock


@pytest.fixture(scope="session")
def bundle(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds iglue/, multi30k/, tatoeba/ .. as they ship. Read only."""
    archive = shared / "iglue.tar.xz"
    if not archive.is_file():
        pytest.skip("needs ../shared/iglue.tar.xz, the benchmarks' real files")
    base = tmp_path_factory.getbasetemp()
    base = base.parent if base.name.startswith("popen-") else base  # pytest-xdist gives each process one below
    folder = base / "iglue_bundle"
    with FileLock(base / "iglue_bundle.lock"):
        if not (base / "iglue_bundle.whole").exists():
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            (base / "iglue_bundle.whole").touch()
    return folder
