"""Tasks read the benchmark's own files, and count as it does."""

from __future__ import annotations

from pathlib import Path

from cclm.evaluation.task import DataFolder, find


def test_xvnli_counts(bundle: Path) -> None:
    task = find("xvnli")
    for language in task.languages:
        test = task.test_set(DataFolder(bundle), language, task.protocol())
        assert (len(test), len(test.images())) == (1164, 357)
