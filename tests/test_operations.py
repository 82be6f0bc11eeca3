"""What a node carries out beside answers, asked through the edge and beside it: who may, which node, and how it is
relayed."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import pytest
import pytest_asyncio

from edge.api.maintenance import Closing
from node.admission import Admission
from node.admission.callers import Caller, Callers, Role
from node.api.link import LinkEndpoint
from node.api.operations import HANDLERS
from node.app import create_app, run_node
from shared.asgi.listener import Listener
from shared.asgi.protocol import Limits
from shared.asgi.server import serving
from shared.contract.operation import OPERATIONS
from shared.state import StateDir
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal
from tests.loadable import LoadableRuntime
from tests.pair import Pair, events_of, node_settings, question, running_pair
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOAD, MODELS = "/admin/models/load", "/admin/models"
STREAM = {"Accept": "text/event-stream"}
PLANS = {"few": {"requests_per_minute": 2, "scopes": ["chat", "admin"]}}


class Owner:
    """Calls a pair with a key of scope admin."""

    def __init__(self, pair: Pair, key: str, runtime: LoadableRuntime) -> None:
        self.pair = pair
        self.key = key
        self.runtime = runtime

    async def call(self, method: str, path: str, body: Any = None, *, key: str = "", **headers: str) -> tuple[int, Any]:
        sent = {**self.pair.bearer(key or self.key), **headers}
        async with self.pair.client.request(method, self.pair.url + path, json=body, headers=sent) as response:
            answer = await response.json()
            return response.status, answer.get("error", answer)

    async def done(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = await self.call(method, path, body)
        assert status == 200, answer
        return answer

    def line(self, **fields: Any) -> dict[str, Any]:
        """The last audit line with these fields."""
        found = [line for line in self.pair.audit if fields.items() <= line.items()]
        assert found, self.pair.audit
        return found[-1]


@asynccontextmanager
async def loadable_pair(runtime: LoadableRuntime, **options: Any) -> AsyncIterator[Owner]:
    async with AsyncExitStack() as stack:
        with mock.patch("node.app.create", lambda *settings, **more: runtime):  # while it starts, no longer
            pair = await stack.enter_async_context(running_pair("http://127.0.0.1:9", **options))
        yield Owner(pair, await pair.new_key(scopes=("chat", "admin")), runtime)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[Owner]:
    async with loadable_pair(LoadableRuntime("a", "b", loaded="a"), plans=PLANS) as owner:
        yield owner


@pytest_asyncio.fixture(loop_scope="module")
async def owner(shared: Owner) -> AsyncIterator[Owner]:
    """With ``a`` in memory and nothing else decided."""
    shared.runtime.gate.set()
    await shared.done("POST", "/admin/models/activate", {"modelKey": "a"})
    await shared.done("POST", LOAD, {"modelKey": "a"})
    shared.runtime.log.clear()
    shared.runtime.loading.clear()
    yield shared
    await wait_until(lambda: len(shared.pair.edge.services.chats) == 0)


async def test_every_operation_has_a_handler_and_no_handler_is_without_one() -> None:
    assert HANDLERS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("name", [one.name for one in OPERATIONS.values() if one.scope == "admin"])
async def test_what_is_the_owners_wants_the_scope_admin(owner: Owner, name: str) -> None:
    operation = OPERATIONS[name]
    status, error = await owner.call(operation.method, operation.path, {}, key=owner.pair.key)
    assert (status, error["code"]) == (403, "insufficient_scope")
    assert owner.runtime.log == []


async def test_a_flood_of_them_is_refused_like_any_other(owner: Owner) -> None:
    key = await owner.pair.new_key("few", scopes=("chat", "admin"))
    codes = [(await owner.call("GET", MODELS, key=key))[0] for _ in range(4)]
    assert codes[0] == 200 and codes[-1] == 429


async def test_the_list_says_what_is_there_and_what_is_decided(owner: Owner) -> None:
    await owner.done("POST", "/admin/models/activate", {"modelKey": "a", "defaultInference": {"topK": 3}})
    listed = await owner.done("GET", MODELS)
    assert listed["runtime"] == {"kind": "loadable", "state": "ready", "reason": "", "can_load": True}
    assert listed["default"] == "a"
    assert listed["active"] == {"modelKey": "a", "defaultInference": {"topK": 3}}
    assert [(row["id"], row["state"]) for row in listed["data"]] == [("a", "loaded"), ("b", "available")]
    await owner.done("POST", "/admin/models/activate", {"modelKey": "a", "defaultInference": {}})


async def test_a_load_says_what_was_applied_what_was_ignored_and_how_to_do_it_by_hand(owner: Owner) -> None:
    config = {"contextLength": 512, "gpu": {"ratio": 0.5, "layers": 3}, "cpuThreads": 2}
    answer = await owner.done("POST", LOAD, {"modelKey": "b", "loadConfig": config, "activate": True})
    assert answer == {
        "status": "loaded",
        "message": "b is in memory. Requests that name no model go to it.",
        "modelKey": "b",
        "applied": ["contextLength", "gpu.layers", "cpuThreads"],
        "ignored": ["gpu.ratio"],
        "workflow": {"step1": "Set the ratio by hand."},
    }
    assert (await owner.done("GET", MODELS))["default"] == "b"
    assert owner.line(act="models.load", status=200)["node"] == "default"


async def test_a_stream_tells_the_progress_and_then_the_result(owner: Owner) -> None:
    body = {"modelKey": "b"}
    async with owner.pair.post(LOAD, body, key=owner.key, headers=STREAM) as response:
        assert response.content_type == "text/event-stream"
        events = events_of(await response.read())
    assert [event.event for event in events] == ["loading", "loading", "result"]
    assert json.loads(events[1].data) == {"model": "b", "progress": 0.5}
    assert json.loads(events[-1].data)["status"] == "loaded"


async def test_a_load_that_fails_is_an_error_in_the_stream_and_a_status_without_one(owner: Owner) -> None:
    owner.runtime.broken.add("b")
    try:
        async with owner.pair.post(LOAD, {"modelKey": "b"}, key=owner.key, headers=STREAM) as response:
            events = events_of(await response.read())
        assert [event.event for event in events] == ["loading", "loading", "error"]
        assert json.loads(events[-1].data)["error"]["code"] == "runtime_error"
        status, error = await owner.call("POST", LOAD, {"modelKey": "b"})
        assert (status, error["code"]) == (502, "runtime_error")
        assert owner.runtime.present == ["a"]
    finally:
        owner.runtime.broken.clear()


async def test_who_leaves_a_load_ends_the_call_on_the_link_and_not_the_load(owner: Owner) -> None:
    owner.runtime.gate.clear()
    call = asyncio.create_task(owner.call("POST", LOAD, {"modelKey": "b"}))
    await asyncio.wait_for(owner.runtime.loading.wait(), 5)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await owner.pair.idle()
    owner.runtime.gate.set()
    await wait_until(lambda: owner.runtime.present == ["b"])


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        (LOAD, {"modelKey": "nobody"}, 404, "model_not_found", "modelKey"),
        (LOAD, {}, 400, "invalid_request", "modelKey"),
        (LOAD, {"modelKey": "b", "loadConfig": {"context": 3}}, 400, "invalid_request", "loadConfig.context"),
        (LOAD, {"modelKey": "b", "loadConfig": {"gpu": {"ratio": 3}}}, 400, "invalid_request", "loadConfig.gpu.ratio"),
        (LOAD, {"modelKey": "b", "ttl": 3}, 400, "invalid_request", "ttl"),
        ("/admin/models/activate", {"modelKey": "b", "defaultInference": {"topP": 7}}, 400, "invalid_request",
         "defaultInference.topP"),
        ("/admin/models/unload", {"modelKey": "nobody"}, 404, "model_not_found", "modelKey"),
        ("/admin/models/load?node=elsewhere", {"modelKey": "b"}, 404, "not_found", "node"),
        (LOAD, {"modelKey": "x" * 20_000}, 413, "payload_too_large", None),
        ("/admin/models/load?" + "x=1&" * 30, {"modelKey": "b"}, 400, "invalid_request", None),
    ],
)  # fmt: skip
async def test_mistakes_are_named(
    owner: Owner, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    got, error = await owner.call("POST", path, body)
    assert (got, error["code"], error["param"]) == (status, code, param)
    assert owner.runtime.log == []


async def test_another_method_hears_which_there_are(owner: Owner) -> None:
    async with owner.pair.client.put(owner.pair.url + LOAD, headers=owner.pair.bearer(owner.key)) as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")


async def test_an_edge_that_is_full_or_closed_still_does_what_its_owner_says(owner: Owner) -> None:
    load = owner.pair.edge.services.load
    maintenance = {"message": "Back soon.", "ends_answers": True}
    async with owner.pair.get("/admin/events", key=owner.key, headers=STREAM) as watching:
        with mock.patch.object(load, "most", 0):
            assert (await owner.done("POST", LOAD, {"modelKey": "b"}))["status"] == "loaded"
        async with owner.pair.client.put(
            owner.pair.url + "/admin/maintenance", json=maintenance, headers=owner.pair.bearer(owner.key)
        ) as response:
            assert response.status == 200
        try:
            await wait_until(lambda: owner.pair.edge.services.store.records.maintenance is not None)
            closing = Closing(owner.pair.edge.services)
            closing.tick(0.0)
            assert (await owner.done("POST", LOAD, {"modelKey": "a"}))["status"] == "loaded"
        finally:
            async with owner.pair.client.delete(
                owner.pair.url + "/admin/maintenance", headers=owner.pair.bearer(owner.key)
            ) as response:
                assert response.status == 200
            await wait_until(lambda: owner.pair.edge.services.store.records.maintenance is None)
        events = await watching.content.readuntil(b'"model":"a"')
        assert b"event: error" not in events


async def test_unload_takes_it_out_and_says_whether_it_was_there(owner: Owner) -> None:
    assert (await owner.done("POST", "/admin/models/unload", {"modelKey": "a"}))["status"] == "unloaded"
    assert (await owner.done("POST", "/admin/models/unload", {"modelKey": "a"}))["status"] == "not_loaded"
    assert owner.runtime.present == []


async def test_yield_reaches_the_health_of_both_and_a_yielded_node_can_be_told_to_resume(owner: Owner) -> None:
    pair = owner.pair
    await owner.done("POST", "/admin/models/yield", {})
    async with pair.client.get(pair.node.listener.url + "/healthz") as response:
        assert (response.status, (await response.json())["status"]) == (503, "yielded")
    await wait_until(lambda: not pair.edge.services.upstreams.ready)
    async with pair.client.get(pair.ops_url + "/healthz") as response:
        node = (await response.json())["nodes"][0]
        assert response.status == 503 and "resume" in node["runtime_reason"]
    async with pair.post("/v1/chat", {"messages": [{"role": "user", "content": "hi"}]}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (503, "node_unavailable")
    assert (await owner.done("GET", MODELS))["runtime"]["state"] == "yielded"
    assert (await owner.done("POST", "/admin/models/resume", {}))["loaded"] == ["a"]
    await wait_until(lambda: pair.edge.services.upstreams.ready)


async def test_the_node_answers_the_same_by_its_own_http_and_by_the_socket_of_its_owner(
    owner: Owner,
) -> None:
    pair = owner.pair
    listed = await owner.done("GET", MODELS)
    bearer = {"Authorization": f"Bearer {StateDir(pair.state).node_token()}"}
    async with pair.client.get(pair.node.listener.url + MODELS, headers=bearer) as response:
        assert (response.status, await response.json()) == (200, listed)
    async with pair.client.get(pair.node.listener.url + MODELS) as response:
        assert response.status == 401
    by_socket = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(pair.state / "node.sock")))
    async with by_socket, by_socket.get("http://localhost" + MODELS, headers=bearer) as response:
        assert (response.status, await response.json()) == (200, listed)
        async with by_socket.post("http://localhost" + LOAD, json={"modelKey": "b"}, headers=bearer | STREAM) as stream:
            assert [event.event for event in events_of(await stream.read())] == ["loading", "loading", "result"]


async def test_aliases_are_models_at_the_edge_too(tmp_path: Path) -> None:
    settings = {"models": {"b": {"aliases": ["fast"]}}}
    async with loadable_pair(LoadableRuntime("a", "b", loaded="a"), node=settings) as owner:
        async with owner.pair.get("/v1/models") as response:
            names = [model["id"] for model in (await response.json())["data"]]
        assert [name for name in names if not name.startswith("chat:")] == ["a", "b", "fast"]
        assert (await owner.done("POST", LOAD, {"modelKey": "fast"}))["modelKey"] == "b"


async def test_what_changes_at_the_node_is_listed_by_the_edge_without_being_asked(owner: Owner) -> None:
    snapshots = owner.pair.edge.services.upstreams.all[0]
    await owner.done("POST", "/admin/models/activate", {"modelKey": "b"})
    await wait_until(lambda: snapshots.snapshot is not None and snapshots.snapshot.default_model == "b")


class _Roles(Callers):
    """Everybody has ``roles``."""

    def __init__(self, roles: frozenset[Role]) -> None:
        super().__init__("hearthlink.internal/cap/gateway", 30.0)
        self.roles = roles
        self.name = "edge"

    async def _find(self, host: str, port: int) -> Caller:
        return Caller(self.name, self.roles, math.inf)


async def test_an_edge_without_the_role_is_told_which_grant_it_lacks(tmp_path: Path) -> None:
    callers = _Roles(frozenset({"infer"}))
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(FakeRuntime())
        node = await stack.enter_async_context(run_node(node_settings(tmp_path, runtime.url)))
        admission = Admission([StateDir(tmp_path).node_token()], callers)
        link = LinkEndpoint(node.services, admission, {"127.0.0.1"})
        app = create_app(node.services, link, admission)
        listening = await stack.enter_async_context(
            serving(app, [Listener("tailnet", "127.0.0.1", 0)], Limits(), node.services.ticker)
        )
        # Here nobody tells the links of a later change.
        await wait_until(lambda: node.services.models.status().state == "ready")
        url = listening.listeners[0].url
        at_edge = {"upstreams": {"default": {"url": url.replace("http", "ws") + "/link"}}}
        pair = await stack.enter_async_context(running_pair(runtime.url, state=tmp_path, edge=at_edge))
        key = await pair.new_key(scopes=("chat", "admin"))
        async with pair.get(MODELS, key=key) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (403, "insufficient_scope")
            assert '"role": "admin"' in error["message"]
        async with pair.get("/api/conversations", key=key) as response:
            assert response.status == 200, "what is the caller's own needs no role of the edge"
        bearer = {"Authorization": f"Bearer {StateDir(tmp_path).node_token()}"}
        async with pair.client.get(url + MODELS, headers=bearer) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "address_not_allowed")
        callers.roles = frozenset[Role]({"infer", "admin"})
        async with pair.client.get(url + MODELS, headers=bearer) as response:
            assert response.status == 200


async def test_callers_of_the_nodes_own_address_see_nothing_of_each_other(tmp_path: Path) -> None:
    """Each machine or person of the tailnet is a caller of its own, for conversations and for turns."""
    callers = _Roles(frozenset({"infer"}))
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(FakeRuntime())
        node = await stack.enter_async_context(run_node(node_settings(tmp_path, runtime.url)))
        admission = Admission([StateDir(tmp_path).node_token()], callers)
        app = create_app(node.services, LinkEndpoint(node.services, admission, {"127.0.0.1"}), admission)
        listening = await stack.enter_async_context(
            serving(app, [Listener("tailnet", "127.0.0.1", 0)], Limits(), node.services.ticker)
        )
        await wait_until(lambda: node.services.models.status().state == "ready")
        lists = listening.listeners[0].url + "/api/conversations"
        bearer = {"Authorization": f"Bearer {StateDir(tmp_path).node_token()}"}
        for name in ("ada@example.org", "bob@example.org"):
            callers.name = name
            async with aiohttp.ClientSession(headers=bearer) as client:  # a connection of its own
                async with client.get(lists) as response:
                    assert (await response.json())["data"] == []
                message = {"message": "hi", "conversation_id": "c"}
                async with client.post(lists.removesuffix("/conversations") + "/chat", json=message) as response:
                    assert response.status == 200, await response.text()
                async with client.get(f"{lists}/c") as response:
                    assert len((await response.json())["messages"]) == 2
        principals = {event["principal"] for event in node.services.events.recent() if event["kind"] == "request"}
        assert len(principals) == 2 and not any("@" in principal for principal in principals)


async def test_yield_ends_the_answers_that_run_and_those_that_wait() -> None:
    async with FakeRuntime() as runtime, running_pair(runtime.url, node={"slots": 1}) as pair:
        runtime.script = normal(2000, 0.02)
        key = await pair.new_key(scopes=("chat", "admin"))
        async with pair.post("/v1/chat", question(stream=True)) as running:
            await running.content.readany()
            waiting = asyncio.create_task(_answered(pair))
            await wait_until(lambda: pair.node.services.turns.queued == 1, 20)
            async with pair.post("/admin/models/yield", {}, key=key) as response:
                answer = await response.json()
                assert answer["status"] == "yielded" and "free its memory there" in answer["message"]
            events = events_of(await running.read())
        assert events[-1].event == "error" and json.loads(events[-1].data)["error"]["code"] == "server_draining"
        assert await waiting == (503, "node_unavailable"), "another node could have answered it"
        await pair.idle()
        bearer = {"Authorization": f"Bearer {StateDir(pair.state).node_token()}"}
        url = pair.node.listener.url + "/v1/chat"
        async with pair.client.post(url, json=question(), headers=bearer) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (503, "node_unavailable") and "its GPU back" in error["message"]


async def _answered(pair: Pair) -> tuple[int, str]:
    async with pair.post("/v1/chat", question()) as response:
        return response.status, (await response.json())["error"]["code"]


@pytest.mark.parametrize("side", ["node", "edge"])
async def test_a_drain_waits_for_no_watcher(side: str) -> None:
    """It has 20 s for answers, which a stream of events would use up."""
    async with loadable_pair(LoadableRuntime("a", loaded="a")) as owner:
        pair = owner.pair
        async with pair.get("/admin/events", key=owner.key, headers=STREAM) as watching:
            assert watching.status == 200
            async with asyncio.timeout(10):
                await (pair.node if side == "node" else pair.edge).drain()
                await watching.read()
