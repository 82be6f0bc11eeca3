"""Every example of the documents works: each block runs as it stands there, against a live pair.

What surrounds the blocks, and what stands in for a model's download, is in ``tests.doc_examples``.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio

from edge.app import run_edge
from edge.doors.grants import merge
from edge.plans import plans_from
from hearthlink.doctor.report import Line, as_json
from node.admission.callers import roles_of
from node.app import run_node
from node.prompts import read_chat_type
from shared.contract.sse import Decoder
from shared.settings import load_settings
from shared.settings_sections import PlanSettings, TailscaleSettings
from shared.state import StateDir
from shared.tailscale.whois import WhoIs
from tests.doc_examples import CLIENT, DOCUMENTS, ROOT, Block, Place, alike, blocks, from_json, in_language
from tests.elsewhere import elsewhere
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import text
from tests.javascript import PACKAGES, install, require_node, unusable
from tests.local_app import free_port
from tests.pair import ANY_PORT, ORIGIN, Pair, create_key, node_settings, question, running_pair
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.browser import Visitor

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUN = ("sh", "python", "js", "jsx", "html", "toml", "json", "jsonc", "ini")
PROSE = ("", "text")
# Blocks that cannot run anywhere but where they are meant for, by document and language.
NOT_RUN = [
    ("docs/quickstart.md", "caddyfile"),
    ("docs/tailnet.md", "nft"),
    ("docs/tailnet.md", "console"),
    ("docs/tailnet.md", "console"),
]
# Cases of the vectors that the parser of an example need not know, because no edge sends such a stream.
NEVER_SENT = [
    "a field without a colon has an empty value",
    "an event is given at the CR of its blank line",
    "CR",
    "line ends mixed in one stream",
    "an error field, as some runtimes write",
]
SAID = text(5)  # what the model of this test says
MANY = {"requests_per_minute": 1000}


def every(*languages: str) -> pytest.MarkDecorator:
    found = in_language(*languages)
    return pytest.mark.parametrize("block", found, ids=[block.name for block in found])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pages(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Path, str]]:
    """A folder and the origin it is served from: somebody else's page."""
    folder = tmp_path_factory.mktemp("pages")
    async with elsewhere({"pages": folder}) as origin:
        yield folder, origin


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    tmp_path_factory: pytest.TempPathFactory, pages: tuple[Path, str]
) -> AsyncIterator[tuple[Pair, FakeRuntime]]:
    """A pair for all examples; ``[plans]`` as they are but for the number of requests."""
    state = tmp_path_factory.mktemp("state")
    settings = {"allowed_origins": [ORIGIN, pages[1]], "requests_per_minute_per_ip": 1000, "user_ids": True}
    plans = {"anonymous": MANY, "member": MANY}
    node = {"models": {"fake-model": {"aliases": ["qwen3-4b"]}}}  # what the page on models loads
    async with (
        FakeRuntime() as runtime,
        running_pair(runtime.url, state=state, edge=settings, node=node, plans=plans) as pair,
    ):
        yield pair, runtime


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secrets(served: tuple[Pair, FakeRuntime]) -> dict[str, str]:
    pair, _ = served
    key = await pair.new_key("member")
    admin = await pair.new_key("owner", scopes=("admin",))
    async with pair.post("/v1/token", {}) as response:
        token = (await response.json())["token"]
    return {"hlk_": key, "hlt_": token, "admin": admin}


@pytest_asyncio.fixture(loop_scope="module")
async def place(served: tuple[Pair, FakeRuntime], secrets: dict[str, str], tmp_path: Path) -> Place:
    pair, runtime = served
    runtime.script = "normal"
    # The edge hears of what a block opened again within a second.
    await wait_until(lambda: pair.edge.services.store.records.maintenance is None)
    place = Place(tmp_path, pair.state, pair.url, pair.ops_url, ORIGIN, secrets)
    place.prepare()
    return place


async def test_each_block_is_run_or_says_why_not() -> None:
    found = list(blocks())
    assert len(found) > 40
    assert {block.document for block in found} <= set(DOCUMENTS)
    unknown = [block.name for block in found if block.reason is None and block.language not in (*RUN, *PROSE)]
    assert unknown == []
    assert [(str(one.document.relative_to(ROOT)), one.language) for one in found if one.reason] == NOT_RUN


@every("sh")
async def test_sh(place: Place, block: Block) -> None:
    for program in ("bash", "curl", "openssl"):
        if shutil.which(program) is None:
            unusable(f"This is tested where {program} is.")
    if "npm install" in block.text:
        require_node()
        await bring_packages(place)
    said = await place.run("bash", "-euo", "pipefail", "-c", place.filled(block))
    for after in blocks():
        if after.answer_to == block and after.language == "json":
            assert alike(from_json(after.text), from_json(said)), said
        if after.answer_to == block and after.language == "text":
            assert events(after.text) <= events(said), said


def events(stream: str) -> set[str]:
    """What kinds of events there are: their names, and the keys of their data."""
    kinds = set()
    for event in Decoder().feed(stream.encode()):
        kinds.add(f"{event.event} {event.data if event.data == '[DONE]' else from_json(event.data)}")
    return kinds


@every("python")
async def test_python(place: Place, block: Block) -> None:
    said = await place.run(sys.executable, "-W", "error", "-", stdin=place.filled(block))
    assert said.strip() == SAID.strip()


@every("js")
async def test_js(place: Place, block: Block) -> None:
    require_node()
    await bring_packages(place)
    said = await run_js(place, place.filled(block))
    assert "".join(said.split()).startswith("".join(SAID.split()))


async def bring_packages(place: Place) -> None:
    await install(CLIENT)
    await install(PACKAGES)
    place.bring_packages()


async def run_js(place: Place, source: str) -> str:
    preload = str(ROOT / "tests" / "examples" / "as_a_page.js")
    (place.folder / "example.mjs").write_text(source)
    return await place.run("node", "--import", preload, "example.mjs")


@every("jsx")
async def test_jsx(place: Place, block: Block) -> None:
    require_node()
    await bring_packages(place)
    preload = str(ROOT / "tests" / "examples" / "as_a_page.js")
    shutil.copy(ROOT / "tests" / "examples" / "render.js", place.folder / "render.mjs")
    (place.folder / "example.jsx").write_text(place.filled(block))
    said = await place.run("node", "--import", preload, "render.mjs", "example.jsx", SAID, place.edge)
    assert said == f"Where to?\n{SAID}\n"


@every("html")
async def test_html(place: Place, block: Block, pages: tuple[Path, str], visitor: Visitor) -> None:
    folder, origin = pages
    icon = "<link rel=icon href='data:,'>"  # or Chromium asks for one, and complains
    (folder / "example.html").write_text(place.filled(block).replace("<meta", f"{icon}<meta", 1))
    page = await visitor.open(f"{origin}/pages/example.html", place.edge)
    if ask := await page.query_selector("form button"):
        await ask.click()
    await page.wait_for_function("said => document.querySelector('#answer').textContent === said", arg=SAID)


@every("toml")
async def test_toml(block: Block, tmp_path: Path) -> None:
    if block.text.startswith("description ="):
        written = tmp_path / "bookClub.toml"
        written.write_text(block.text)
        assert read_chat_type(written).description
        return
    written = tmp_path / "hearthlink.toml"
    written.write_text(block.text.replace("hln_…", "hln_" + "x" * 43))
    settings = load_settings(config=written, environ={"HOME": str(tmp_path)})
    assert [row for row in settings.dump() if row[2] == f"file {written}"]


@every("json")
async def test_json(block: Block) -> None:
    written = json.loads(block.text)
    if block.document.name == "doctor.md":
        lines = [Line(group, **line) for group, found in written["groups"].items() for line in found]
        assert as_json(lines, written["version"]) == written
        return
    assert block.answer_to is not None and block.answer_to.language == "sh"


@every("jsonc")
async def test_jsonc(block: Block) -> None:
    """Pieces of a policy: edge and node understand what its capabilities give."""
    grant = json.loads(block.text)
    names, plans = TailscaleSettings(), plans_from({"beta": PlanSettings()})
    assert grant["app"].keys() <= {names.tester_capability, names.node_capability}
    for capability, values in grant["app"].items():
        if capability == names.tester_capability:
            merged = merge(values, plans)
            assert merged.granted is not None and not merged.faults
        else:
            assert roles_of(WhoIs.read({"CapMap": grant["app"]}), capability)


@every("ini")
async def test_ini(place: Place, block: Block) -> None:
    """A unit of systemd: what it starts has these flags, what it hands over are settings."""
    lines = [line.split("=", 1) for line in block.text.splitlines() if "=" in line]
    credentials = place.folder / "credentials"
    credentials.mkdir()
    for directive, value in lines:
        if directive == "ExecStart":
            await place.run("bash", "-euc", value.replace("/opt/hearthlink/", ""))
        if directive == "LoadCredential":
            (credentials / value.partition(":")[0]).touch()
    environ = {"HOME": str(place.folder), "CREDENTIALS_DIRECTORY": str(credentials)}
    settings = load_settings(environ=environ)
    for name in (path.name for path in credentials.iterdir()):
        assert settings.origin(name) == f"credential {name}"


def plain_fetch() -> Block:
    return next(block for block in in_language("js") if block.document.name == "front-end.md")


async def test_plain_fetch_tells_a_cut_answer_from_a_whole_one(place: Place, served: tuple[Pair, FakeRuntime]) -> None:
    require_node()
    for script, code in (("eof_without_done", "upstream_incomplete"), ("loading", "model_loading")):
        served[1].script = script
        with pytest.raises(AssertionError, match=f"code: '{code}'"):  # as Node prints what nobody caught
            await run_js(place, place.filled(plain_fetch()))


async def test_plain_fetch_reads_what_networks_make_of_a_stream(place: Place) -> None:
    require_node()
    (place.folder / "example.mjs").write_text(place.filled(plain_fetch()) + "\nexport { events }\n")
    examples = ROOT / "tests" / "examples"
    await place.run(
        "node",
        *("--import", str(examples / "as_a_page.js"), str(examples / "sse_vectors.js"), "example.mjs"),
        *(str(ROOT / "tests" / "vectors" / "sse.json"), json.dumps(NEVER_SENT)),
    )


async def test_two_machines(served: tuple[Pair, FakeRuntime], tmp_path: Path) -> None:
    """The settings of the quick start, with loopback in the place of the tailnet between the machines."""
    page = [block for block in in_language("toml") if block.document.name == "quickstart.md"]
    written = "\n".join(block.text for block in page if "upstreams" in block.text or "public_url" in block.text)
    far = tmp_path / "node"
    async with run_node(node_settings(far, served[1].url)) as node:
        there = f'url = "ws://127.0.0.1:{node.listener.port}/link"'
        await answered(tmp_path, written.replace('node = "gpu"', there), StateDir(far).node_token())


async def test_another_network(place: Place, served: tuple[Pair, FakeRuntime]) -> None:
    """A node on an interface, and its edge, with certificates made and settings written as the tailnet's page says. The
    interface is that of loopback."""
    if shutil.which("openssl") is None:
        unusable("This is tested where openssl is.")
    page = [block for block in blocks() if block.document.name == "tailnet.md"]
    made = next(block for block in page if "-CAkey authority.key" in block.text)
    await place.run("bash", "-euo", "pipefail", "-c", made.text)
    node, edge = [
        block.text.replace("/etc/hearthlink", str(place.folder))
        for block in page
        if 'authority = "/etc/hearthlink/authority.pem"' in block.text
    ]
    interface = next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
    port = free_port()
    far = place.folder / "far.toml"
    far.write_text(node.replace("interface:wg0", f"interface:{interface}:{port}"))
    settings = load_settings(
        config=far,
        flags={"node.runtime.kind": "openai", "node.runtime.url": served[1].url},
        environ={"HOME": str(place.folder), "HEARTHLINK_STATE": str(place.folder / "far")},
    )
    async with run_node(settings):
        token = StateDir(settings.state).node_token()
        await answered(place.folder, edge.replace("10.8.0.2:8001", f"127.0.0.1:{port}"), token)


async def answered(folder: Path, written: str, token: str) -> None:
    """An edge with the settings ``written`` reaches its node and passes on its answer."""
    (folder / "edge.toml").write_text(written.replace("hln_…", token))
    settings = load_settings(
        config=folder / "edge.toml",
        flags={"edge.listen": ANY_PORT, "edge.ops_listen": ANY_PORT},
        environ={"HOME": str(folder), "HEARTHLINK_STATE": str(folder / "edge")},
    )
    bearer = {"Authorization": f"Bearer {create_key(settings.state)}"}
    async with run_edge(settings, lambda line: None) as edge, aiohttp.ClientSession(trust_env=False) as client:
        await wait_until(lambda: edge.services.upstreams.ready, 10)
        async with client.post(edge.public.url + "/v1/chat", json=question(), headers=bearer) as response:
            assert (await response.json())["choices"][0]["message"]["content"] == SAID
