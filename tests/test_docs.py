"""The documents tell the truth: codes, routes, fields, headers and settings stand there as the code has them, and every
link leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import pytest
from pydantic import BaseModel, Field
from starlette.routing import Route, Router

from edge.api.routes import create_app
from edge.plans import Plan, built_in
from edge.upstreams.reach import Cause
from hearthlink.reference import markdown
from node.prompts import ChatType
from shared.contract.chat import ChatBody
from shared.contract.chat_completions import ChatCompletionBody
from shared.contract.errors import CODES
from shared.contract.surface import SURFACES
from shared.settings import Settings
from shared.settings_fields import Seconds
from shared.settings_schema import member_model
from tests.pair import ORIGIN, Pair
from tests.test_repository import committed_files

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
API = (DOCS / "api.md").read_text()
PAGES = [path for path in committed_files() if path.suffix == ".md"]
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]\n]*\]\(([^()\s]+)\)")


def section(page: Path, heading: str) -> str:
    """What stands under ``heading``, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{page.name} has no heading {heading!r}"
    return found[1]


def rows(table: str) -> list[str]:
    """The first cells of a table's rows."""
    return re.findall(r"^\| (.*?) \|", table, re.MULTILINE)


# -- the API ----------------------------------------------------------------------------------------------------------


def test_error_table_is_the_contract() -> None:
    rows = {code: status for status, code in re.findall(r"^\| (\w+) \| `(\w+)` \|", API, re.MULTILINE)}
    expected = {code: "stream" if kind.in_stream else str(kind.status) for code, kind in CODES.items()}
    assert rows == expected


def test_surfaces_are_documented() -> None:
    for surface in SURFACES.values():
        assert f"`POST {surface.path}`" in API


async def test_routes_are_the_edges(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each route of the edge stands in the page, and no other one does."""
    routes: list[Any] = []

    def router(given: list[Any], **options: Any) -> Router:
        routes.extend(given)
        return Router(given, **options)

    monkeypatch.setattr("edge.api.routes.Router", router)
    create_app(pair.edge.services, pair.edge.audit)
    real = {
        f"{method} {route.path.replace(':path', '')}"
        for route in routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert set(re.findall(r"`((?:GET|POST|DELETE|PUT|PATCH) /[^`\s]*)`", API)) == real


def test_fields_of_a_chat_are_its_bodys() -> None:
    documented = re.findall(r"`(\w+)`", " ".join(rows(section(DOCS / "api.md", "`POST /v1/chat`"))))
    aliases = {"chatType", "clientId"}
    assert sorted(documented) == sorted({*ChatBody.model_fields, *aliases})


def test_fields_of_openais_chat_are_its_bodys() -> None:
    page = section(DOCS / "api.md", "`POST /v1/chat/completions`")
    documented = re.findall(r"`(\w+)`", " ".join(rows(page)))
    explained = {"model", "stream", "stream_options"}  # above the table
    assert all(f"`{name}" in page for name in explained)
    assert sorted(documented) == sorted(ChatCompletionBody.model_fields.keys() - explained - {"user"})


async def test_headers_are_those_that_pages_may_read(pair: Pair) -> None:
    async with pair.get("/v1/me", headers={"Origin": ORIGIN}) as response:
        exposed = {name.strip().lower() for name in response.headers["access-control-expose-headers"].split(",")}
    documented = section(DOCS / "api.md", "Headers").partition("of an answer")[2]
    assert {name.lower() for row in rows(documented) for name in re.findall(r"`([\w-]+)`", row)} == exposed


def test_causes_of_a_node_that_cannot_be_reached_are_explained() -> None:
    documented = rows(section(DOCS / "tailnet.md", "When something does not work"))
    causes = {cause for row in documented for cause in re.findall(r"^`(\w+)`$", row)}
    assert causes - {"cause"} == set(get_args(Cause)) - {"other"}


# -- settings and chat types ------------------------------------------------------------------------------------------


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        if found := member_model(field.annotation):
            yield from fields(found[0], f"{prefix}{name}.")
        else:
            yield prefix + name, field.description


def test_every_setting_says_what_it_does() -> None:
    assert [key for key, description in fields(Settings) if not description] == []


def test_the_settings_page_is_the_one_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from hearthlink.__main__ import main

    assert main(["config", "reference"]) == 0
    assert capsys.readouterr().out == markdown()
    assert (DOCS / "settings.md").read_text() == markdown(), "run: hearthlink config reference > docs/settings.md"


class Quick(BaseModel):
    pause: Seconds = Field(default=0.5, ge=0.25, le=90.0, description="How long it waits.")


class QuickSettings(BaseModel):
    quick: Quick = Quick()


def test_parts_of_a_second_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hearthlink.reference.Settings", QuickSettings)
    assert '| duration, 0.25s to 90s | `"0.5s"` |' in markdown()


def test_the_settings_page_has_every_key_and_plan() -> None:
    page = (DOCS / "settings.md").read_text()
    missing = [key for key, _ in fields(Settings) if f"__{key.rpartition('.')[2].upper()}`" not in page]
    assert missing == []
    for name in built_in():
        assert f"`{name}`" in page
    for name in Plan.__dataclass_fields__.keys() - {"name", "own"}:
        assert f"| `{name}` |" in page


def test_keys_of_a_chat_type_are_documented() -> None:
    documented = re.findall(r"`(\w+)`", " ".join(rows(section(DOCS / "chat-types.md", "Your own"))))
    assert sorted(documented) == sorted(ChatType.model_fields.keys() - {"name"})


# -- links ------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The names that a page's headings get where the project is shown."""
    headings = re.findall(r"^#{1,6} (.+)$", _CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def problem(page: Path, target: str) -> str | None:
    """Why a link leads nowhere, or None."""
    name, _, anchor = unquote(target).partition("#")
    if re.match(r"[a-z]+:", name):
        return None
    file = (page.parent / name).resolve() if name else page
    if not file.exists():
        return "is not there"
    if ROOT not in (file, *file.parents):
        return "is outside of the project"
    return "has no such heading" if anchor and anchor not in anchors(file) else None


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    targets = _LINK.findall(_CODE.sub("", page.read_text()))
    assert [f"{target} {why}" for target in targets if (why := problem(page, target))] == []


def test_the_index_has_every_page() -> None:
    linked = set(_LINK.findall((DOCS / "README.md").read_text()))
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= linked
