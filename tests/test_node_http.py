"""The node's own HTTP surface gives what the link gives: one function answers both."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fake_runtime import FakeRuntime
from tests.pair import Pair, events_of, question

pytestmark = pytest.mark.asyncio(loop_scope="module")

NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"
# What only the edge sends or removes, and what differs from one request to the next.
OWN = {"date", "vary", "x-request-id", "hearthlink-chat-id", "transfer-encoding", "content-length"}


def node_token(pair: Pair) -> str:
    return pair.edge.services.upstreams.all[0].address.token


async def both(pair: Pair, path: str, payload: Any) -> list[tuple[int, dict[str, str], bytes]]:
    """(status, headers, body) from the edge and from the node; the request's id is the same."""
    found = []
    for url, key in ((pair.url, pair.key), (pair.node.listener.url, node_token(pair))):
        headers = pair.bearer(key) | {"X-Request-Id": "same-request-id"}
        async with pair.client.post(url + path, json=payload, headers=headers) as response:
            told = {name.lower(): value for name, value in response.headers.items() if name.lower() not in OWN}
            found.append((response.status, told, await response.read()))
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [NATIVE, OPENAI])
@pytest.mark.parametrize(
    "script",
    ["normal", "split_every_byte", "crlf", "reasoning", "usage_missing", "llamacpp_context", "html", "loading"],
)
async def test_both_ways_give_the_same(
    shared_pair: Pair, shared_runtime: FakeRuntime, script: str, path: str, stream: bool
) -> None:
    shared_runtime.script = script
    edge, node = await both(shared_pair, path, question(stream=stream, model="default"))
    edge_headers, node_headers = edge[1], node[1]
    if not stream or edge[0] != 200:  # the node forbids caches on whole answers too
        node_headers = {name: value for name, value in node_headers.items() if name in edge_headers}
    assert (edge[0], edge_headers, edge[2]) == (node[0], node_headers, node[2])


@pytest.mark.parametrize("path", [NATIVE, OPENAI])
@pytest.mark.parametrize("script", ["error_data", "eof_without_done", "reset_mid_stream"])
async def test_a_cut_stream_ends_in_the_same_error(
    shared_pair: Pair, shared_runtime: FakeRuntime, script: str, path: str
) -> None:
    shared_runtime.script = script
    edge, node = await both(shared_pair, path, question(stream=True, model="default"))
    assert events_of(edge[2])[-1] == events_of(node[2])[-1]
    assert b"[DONE]" not in node[2]


async def test_the_token_is_asked_for(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    url = shared_pair.node.listener.url
    for path in ("/v1/models", "/v1/models/fake-model", "/v1/chat/types"):
        async with shared_pair.client.get(url + path) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (401, "missing_token")
        async with shared_pair.client.get(url + path, headers=shared_pair.bearer(node_token(shared_pair))) as response:
            assert response.status == 200
    for key, code in ((None, "missing_token"), (shared_pair.key, "invalid_token"), ("hln_wrong", "invalid_token")):
        headers = {} if key is None else shared_pair.bearer(key)
        async with shared_pair.client.post(url + NATIVE, json=question(), headers=headers) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (401, code)
    assert not shared_runtime.chats


async def test_health_and_metrics_are_open(shared_pair: Pair) -> None:
    url = shared_pair.node.listener.url
    async with shared_pair.client.get(url + "/healthz") as response:
        health = await response.json()
        assert (response.status, health["status"], health["model"]) == (200, "ok", "fake-model")
        assert health["broken_chat_types"] == {}
    async with shared_pair.client.get(url + "/livez") as response:
        assert response.status == 200
    async with shared_pair.client.get(url + "/metrics") as response:
        text = await response.text()
        assert "hearthlink_node_slots 4.0" in text
        assert "hearthlink_node_running 0.0" in text
    for path, begins in (("/nope", True), ("/v1/messages/nope", False)):
        async with shared_pair.client.get(url + path) as response:
            error = (await response.json())["error"]
        assert (response.status, error["code"]) == (404, "not_found")
        assert ("begins at /v1/" in error["message"]) is begins
