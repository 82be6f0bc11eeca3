"""What a test run says where no tailnet can be made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.tailnet.deployed import ROOT


def _run_here_without_programs(folder: Path, **environ: str) -> str:
    """What a run of the harness's own tests prints on a machine without ``ip`` and the others."""
    rest = {name: value for name, value in os.environ.items() if name != "CI"}
    argv = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/tailnet/test_harness.py")
    environ = {**rest, "PATH": str(folder), **environ}
    return subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120).stdout


def test_one_line_says_that_these_tests_are_skipped(tmp_path: Path) -> None:
    said = _run_here_without_programs(tmp_path)
    assert said.count("A tailnet of its own") == 1, said
    assert re.search(r"^Skipped \d+ tests in tests/tailnet: A tailnet of its own .*\.$", said, re.MULTILINE), said
    assert "deselected" in said and "SKIPPED" not in said


def test_in_continuous_integration_they_fail(tmp_path: Path) -> None:
    said = _run_here_without_programs(tmp_path, CI="true")
    assert "A tailnet of its own" in said and " errors in " in said and "deselected" not in said, said
