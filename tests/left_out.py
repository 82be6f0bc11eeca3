"""Tests that not every machine can run: left out there, which one line at the end of the run says. A skip would be a
line for each of them. In continuous integration they stay, and fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest


class LeftOut:
    """The tests of ``folder`` that ``wants`` picks; ``missing`` says why they cannot run here, "" when they can. For
    the hooks of a conftest.py."""

    def __init__(self, folder: str, wants: Callable[[pytest.Item], bool], missing: Callable[[], str]) -> None:
        self._folder = folder
        self._wants = wants
        self._missing = missing
        self._line = pytest.StashKey[str]()

    def choose(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """For ``pytest_collection_modifyitems``."""
        left_out = [item for item in items if self._wants(item)]
        if left_out and not os.environ.get("CI") and (why := self._missing()):
            items[:] = [item for item in items if not self._wants(item)]
            config.hook.pytest_deselected(items=left_out)
            config.stash[self._line] = f"Skipped {len(left_out)} tests in {self._folder}: {why}"

    def tell(self, reporter: Any, config: pytest.Config) -> None:
        """For ``pytest_terminal_summary``."""
        if line := config.stash.get(self._line, ""):
            reporter.write_line(line)

    def needs_building(self, session: pytest.Session, built: Callable[[], bool]) -> bool:
        """For ``pytest_collection_finish``: whether to build what the tests need ahead of them, whose time is bounded.
        The first build takes minutes."""
        wanted = any(self._wants(item) for item in session.items)
        return wanted and not session.config.option.collectonly and not self._missing() and not built()
