"""``/``, ``/static/`` and ``/hearthlink.js``, as a browser's cache and a page of another origin meet them."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from urllib.parse import urljoin

import pytest
from aiohttp import ClientResponse

from edge.api import pages
from edge.site import CLIENT
from tests.fake_runtime import FakeRuntime
from tests.pair import ORIGIN, Pair, running_pair
from tests.raw_http import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="module")

LINK = re.compile(r'\b(?:src|href)="(/[^"]*)"')
IMPORT = re.compile(r"""\b(?:from|import)\s*["'](\.[^"']+)["']""")


async def fetch(pair: Pair, path: str, **headers: str) -> tuple[ClientResponse, bytes]:
    """The answer as sent: not compressed, a redirect as what it is."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with pair.client.get(
        pair.url + path, headers=named, skip_auto_headers=["Accept-Encoding"], allow_redirects=False
    ) as response:
        return response, await response.read()


async def test_the_page_comes_with_its_policy(shared_pair: Pair) -> None:
    response, body = await fetch(shared_pair, "/")
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-XSS-Protection"] == "1; mode=block"
    assert response.headers["Cache-Control"] == "no-cache"
    assert b"<html" in body


async def test_all_that_the_page_names_is_there_for_ever(shared_pair: Pair) -> None:
    _, page = await fetch(shared_pair, "/")
    names = LINK.findall(page.decode())
    assert any(name.endswith(".js") for name in names)
    for name in names:
        response, body = await fetch(shared_pair, name)
        assert response.status == 200, name
        assert "immutable" in response.headers["Cache-Control"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert body


async def test_every_module_that_a_module_imports_is_there(shared_pair: Pair) -> None:
    _, page = await fetch(shared_pair, "/")
    (start,) = re.findall(r'<script type="module" src="([^"]+)"', page.decode())
    seen, waiting = set[str](), [start]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        response, body = await fetch(shared_pair, path)
        assert response.status == 200, path
        assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
        waiting += [urljoin(path, name) for name in IMPORT.findall(body.decode())]
    assert any(path.endswith("/hearthlink.js") for path in seen), "the page does not use the client"


async def test_a_browser_that_has_it_is_told_so(shared_pair: Pair) -> None:
    response, _ = await fetch(shared_pair, "/")
    tag = response.headers["ETag"]
    again, body = await fetch(shared_pair, "/", If_None_Match=f'"other", {tag}')
    assert (again.status, body) == (304, b"")
    assert again.headers["ETag"] == tag
    changed, _ = await fetch(shared_pair, "/", If_None_Match='W/"other"')
    assert changed.status == 200


async def test_compressed_where_it_is_asked_for(shared_pair: Pair) -> None:
    path = shared_pair.edge.services.site.prefix + "hearthlink.js"
    _, plain = await fetch(shared_pair, path)
    async with await RawClient.connect(shared_pair.url) as raw:
        await raw.request("GET", path, {"Accept-Encoding": "br, gzip"})
        head, packed = await raw.head(), await raw.body()
    assert head.headers["content-encoding"] == "gzip"
    assert head.headers["vary"] == "Accept-Encoding"
    assert len(packed) < len(plain) / 2
    assert gzip.decompress(packed) == plain == CLIENT.read_bytes()


async def test_head_has_no_body(shared_pair: Pair) -> None:
    async with shared_pair.client.head(shared_pair.url + "/") as response:
        assert response.status == 200
        assert int(response.headers["Content-Length"]) > 0
        assert await response.read() == b""


@pytest.mark.parametrize("origin", ["https://elsewhere.test", ORIGIN])
async def test_pages_elsewhere_import_the_client(shared_pair: Pair, origin: str) -> None:
    response, _ = await fetch(shared_pair, "/hearthlink.js", Origin=origin)
    assert response.status == 302
    assert response.headers["Access-Control-Allow-Origin"] in ("*", origin)
    found, body = await fetch(shared_pair, response.headers["Location"], Origin=origin)
    assert found.status == 200
    assert found.headers["Access-Control-Allow-Origin"] in ("*", origin)
    assert found.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert body == CLIENT.read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/0123456789abcdef/hearthlink.js",
        "{prefix}nothing.js",
        "{prefix}index.html",
        "{prefix}../../../pyproject.toml",
        "{prefix}%2e%2e/%2e%2e/pyproject.toml",
        "{prefix}..%2f..%2fpyproject.toml",
        "{prefix}/etc/passwd",
        "{prefix}vendor/",
    ],
)
async def test_nothing_else_is_served(shared_pair: Pair, path: str) -> None:
    path = path.format(prefix=shared_pair.edge.services.site.prefix)
    async with await RawClient.connect(shared_pair.url) as raw:
        await raw.request("GET", path)
        assert (await raw.head()).status == 404
        assert b'"code":"not_found"' in await raw.body()


async def test_pages_are_limited_per_address(shared_pair: Pair) -> None:
    statuses = [(await fetch(shared_pair, "/", X_Forwarded_For="198.18.77.1"))[0].status for _ in range(121)]
    assert statuses[:120] == [200] * 120
    assert statuses[120] == 429
    other, _ = await fetch(shared_pair, "/", X_Forwarded_For="198.18.77.2")
    assert other.status == 200


async def test_asking_for_another_file_each_time_is_limited_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_FILE_LIMIT", "3/minute")
    trusting = {"trusted_proxies": ["127.0.0.1"]}
    async with FakeRuntime() as runtime, running_pair(runtime.url, state=tmp_path, edge=trusting) as pair:
        callers = [f"2001:db8:1:2::{number}" for number in range(4)]  # one /64 is one caller
        statuses = [
            (await fetch(pair, f"/static/{number}", X_Forwarded_For=caller))[0].status
            for number, caller in enumerate(callers)
        ]
        assert statuses == [404, 404, 404, 429]
        other, _ = await fetch(pair, "/static/5", X_Forwarded_For="2001:db8:1:3::1")
        assert other.status == 404


async def test_what_is_missing_now_may_be_there_later(shared_pair: Pair) -> None:
    response, _ = await fetch(shared_pair, "/static/0123456789abcdef/hearthlink.js")
    assert response.headers["Cache-Control"] == "no-store"
    client, _ = await fetch(shared_pair, "/hearthlink.js")
    assert client.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip", "gzip"), ("gzip;q=0.5", "gzip"), ("gzip;q=0", None), ("gzip; q=0.0, br", None), ("identity", None)],
)
async def test_what_the_browser_cannot_read_is_not_sent(shared_pair: Pair, accepted: str, encoding: str | None) -> None:
    async with await RawClient.connect(shared_pair.url) as raw:
        await raw.request("GET", "/", {"Accept-Encoding": accepted})
        assert (await raw.head()).headers.get("content-encoding") == encoding


async def test_no_line_is_written_for_files(shared_pair: Pair) -> None:
    await fetch(shared_pair, "/")
    await fetch(shared_pair, "/hearthlink.js")
    assert shared_pair.audit == []


async def test_an_edge_without_the_page_still_has_the_client(tmp_path: Path) -> None:
    async with FakeRuntime() as runtime, running_pair(runtime.url, state=tmp_path, edge={"page": False}) as pair:
        assert (await fetch(pair, "/"))[0].status == 404
        assert (await fetch(pair, "/hearthlink.js"))[0].status == 302
