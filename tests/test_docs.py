"""The documents tell the truth: every error code and every route stands in docs/api.md as the code has it."""

from __future__ import annotations

import re
from pathlib import Path

from shared.contract.errors import CODES
from shared.contract.surface import SURFACES

ROOT = Path(__file__).resolve().parent.parent
API = (ROOT / "docs" / "api.md").read_text()


def test_error_table_is_the_contract() -> None:
    rows = {code: status for status, code in re.findall(r"^\| (\w+) \| `(\w+)` \|", API, re.MULTILINE)}
    expected = {code: "stream" if kind.in_stream else str(kind.status) for code, kind in CODES.items()}
    assert rows == expected


def test_surfaces_are_documented() -> None:
    for surface in SURFACES.values():
        assert f"`POST {surface.path}`" in API
