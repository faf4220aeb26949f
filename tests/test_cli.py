"""What the command line shows, and how it ends where nobody reads on."""

from __future__ import annotations

import subprocess
import sys

from cclm.errors import printable


def test_what_would_act_on_a_terminal_is_escaped() -> None:
    assert printable("a\x1b[31mb\nc\u2028\u202ed\x85\udcff") == "a\\x1b[31mb\\nc\\u2028\\u202ed\\x85\\udcff"
    assert printable("Čáp, 鹤, 👩\u200d🚀 'x' C:\\n") == "Čáp, 鹤, 👩\u200d🚀 'x' C:\\n"


def test_a_reader_that_goes_ends_it_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "from cclm.cli import main; main([])"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()
    assert told == b"" and process.returncode == 141
