"""What a test run says where Ollama cannot be built."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.ollama import conftest


@pytest.fixture
def without_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Go that has built nothing yet."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _left_out(*fixtures: str) -> tuple[list[Any], list[str]]:
    """Of a run of one test for each of ``fixtures``: the tests that remain, and the lines at its end."""
    lines: list[str] = []
    config: Any = SimpleNamespace(stash=pytest.Stash(), hook=SimpleNamespace(pytest_deselected=lambda items: None))
    items: list[Any] = [SimpleNamespace(fixturenames=[name]) for name in fixtures]
    conftest.pytest_collection_modifyitems(config, items)
    conftest.pytest_terminal_summary(SimpleNamespace(write_line=lines.append), config)
    return items, lines


@pytest.mark.usefixtures("without_go")
def test_one_line_says_that_these_tests_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    items, lines = _left_out("ollama", "ollama_pair", "pair")
    assert [item.fixturenames for item in items] == [["pair"]]
    assert lines == ["Skipped 2 tests in tests/ollama: Ollama is built with Go and a C compiler."]


@pytest.mark.usefixtures("without_go")
def test_in_continuous_integration_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    items, lines = _left_out("ollama")
    assert len(items) == 1 and lines == []
