"""What the owner sees of a node at work: events as they happen, captured on demand, and what Prometheus is told."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from node.events import Events
from node.metrics import Metrics
from shared.state import StateDir
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import refuse
from tests.pair import Pair, running_pair
from tests.waiting import wait_until

SECRET = "the colour of my grandmother's bicycle"


async def _events(stream: aiohttp.StreamReader, until: str) -> list[dict[str, Any]]:
    """Events of a stream up to the first of kind ``until``."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        async for line in stream:
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
                if found[-1]["kind"] == until:
                    break
    return found


async def _chat(pair: Pair, **more: Any) -> str:
    payload = {"messages": [{"role": "user", "content": SECRET}], "stream": True, **more}
    async with pair.post("/v1/chat", payload) as response:
        assert response.status == 200, await response.text()
        return await response.text()


async def _watching(pair: Pair, watchers: int) -> None:
    await wait_until(lambda: len(pair.node.services.events._watchers) == watchers)


async def test_events_tell_the_story_of_a_request_without_what_was_said(pair: Pair, runtime: FakeRuntime) -> None:
    admin = await pair.new_key(scopes=("admin",))
    async with pair.get("/admin/events", key=admin) as stream:
        assert stream.content_type == "text/event-stream"
        await _watching(pair, 1)
        await _chat(pair)
        events = await _events(stream.content, "finished")
    assert [event["kind"] for event in events] == ["request", "started", "first_token", "finished"]
    assert len({event["chat_id"] for event in events}) == 1
    request, *_, finished = events
    assert (request["surface"], request["stream"], finished["outcome"]) == ("chat", True, "stop")
    assert finished["usage"]["completion_tokens"] > 0
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)
    assert SECRET not in json.dumps(events) and "content" not in request
    await _watching(pair, 0)


async def test_whoever_watches_holds_up_no_drain(pair: Pair) -> None:
    """The stream ends by itself, long before the 20 seconds that answers have."""
    async with pair.get("/admin/events", key=await pair.new_key(scopes=("admin",))) as stream:
        await _watching(pair, 1)
        async with asyncio.timeout(5):
            await pair.node.drain()
            await stream.content.read()


async def test_an_error_is_told_by_its_code(pair: Pair, runtime: FakeRuntime) -> None:
    admin = await pair.new_key(scopes=("admin",))
    async with pair.get("/admin/events", key=admin) as stream:
        await _watching(pair, 1)
        runtime.script = refuse(400, {"error": {"message": f"no: {SECRET}", "type": "invalid_request_error"}})
        async with pair.post("/v1/chat", {"messages": [{"role": "user", "content": "hi"}]}) as response:
            assert response.status == 400
        events = await _events(stream.content, "finished")
    codes = [event["code"] for event in events if event["kind"] == "error"]
    assert codes == [events[-1]["outcome"]] == ["invalid_request"]
    assert pair.node.services.metrics.to_json()["errors"] == {"invalid_request": 1.0}
    assert SECRET not in json.dumps(events), "a runtime's own words may quote the prompt"


async def test_what_is_said_is_told_while_captured_and_forgotten_after(pair: Pair, runtime: FakeRuntime) -> None:
    admin = await pair.new_key(scopes=("admin",))
    async with pair.post("/admin/events/capture", {"minutes": 5}, key=admin) as response:
        assert await response.json() == {"capturing": True, "minutes": 5.0}
    await _chat(pair)
    json_please = {"Accept": "application/json"}
    async with pair.get("/admin/events", key=admin, headers=json_please) as response:
        remembered = await response.json()
    assert remembered["capturing"] and SECRET in json.dumps(remembered["events"])
    async with pair.post("/admin/events/capture", {"minutes": 0}, key=admin) as response:
        assert (await response.json())["capturing"] is False
    await _chat(pair)
    async with pair.get("/admin/events?recent", key=admin) as stream:
        replayed = await _events(stream.content, "finished")
    async with pair.get("/admin/events", key=admin, headers=json_please) as response:
        remembered = (await response.json())["events"]
    kinds = [event["kind"] for event in remembered]
    assert kinds[0] == "runtime" and kinds.count("finished") == 2, "the events stay"
    assert SECRET not in json.dumps([*replayed, *remembered])


async def test_what_a_watcher_may_ask_is_bounded(pair: Pair) -> None:
    admin = await pair.new_key(scopes=("admin",))
    for minutes in (-1, 61, "long"):
        async with pair.post("/admin/events/capture", {"minutes": minutes}, key=admin) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_request")
    for path in ("/admin/events", "/admin/metrics"):
        async with pair.get(path) as response:
            assert response.status == 403, "a key that may chat is not the owner's"


async def test_metrics_as_json_count_what_prometheus_counts(pair: Pair, runtime: FakeRuntime) -> None:
    await _chat(pair)
    await _chat(pair, stream=False)
    async with pair.get("/admin/metrics", key=await pair.new_key(scopes=("admin",))) as response:
        told = await response.json()
    assert told["lanes"] == [{"lane": "shared", "slots": 4, "running": 0, "queued": 0}]
    counted = told["metrics"]
    assert counted["answers"] == {"chat": {"stop": 2.0}}
    assert counted["tokens"]["written"] > 0
    for name, times in (("first_token_seconds", 2), ("queue_seconds", 2), ("inter_token_seconds", 1)):
        assert counted[name]["count"] == times, name
    assert counted["disk_free_bytes"]["state"] > 0
    async with pair.client.get(pair.node.listener.url + "/metrics") as response:
        text = await response.text()
    assert 'hearthlink_node_answers_total{outcome="stop",surface="chat"} 2.0' in text
    assert 'hearthlink_node_lane_slots{lane="shared"} 4.0' in text
    assert "hearthlink_node_queue_seconds_count 2.0" in text
    assert 'hearthlink_node_disk_free_bytes{folder="models"}' in text


async def test_a_folder_that_cannot_be_looked_at_costs_only_its_own_metric(tmp_path: Path) -> None:
    """Its name is too long for any disk, which is an error as that of a share that is away."""
    async with FakeRuntime() as runtime:
        settings = {"runtime": {"url": runtime.url, "models": str(tmp_path / ("x" * 300) / "models")}}
        async with (
            running_pair(node=settings) as pair,
            pair.client.get(pair.node.listener.url + "/metrics") as response,
        ):
            text = await response.text()
    assert response.status == 200 and 'disk_free_bytes{folder="state"}' in text
    assert 'folder="models"' not in text


def test_loads_are_counted_from_what_is_told_of_them() -> None:
    metrics = Metrics()
    events = Events(metrics.heard)
    events.publish("load", model="m", by="owner")
    events.publish("loaded", model="m", by="owner", seconds=3.0)
    events.publish("load_failed", model="n", by="request", code="runtime_error")
    events.publish("unloaded", model="m", by="idle")
    told = metrics.to_json()
    assert told["loads"] == {"loaded": {"owner": 1.0}, "load_failed": {"request": 1.0}, "unloaded": {"idle": 1.0}}
    assert told["load_seconds"]["count"] == 1 and told["load_seconds"]["mean"] == 3.0
    assert 2.5 < told["load_seconds"]["p50"] <= 5


@pytest.mark.parametrize(("values", "p50", "p95"), [([], None, None), ([0.4] * 100, 0.375, 0.4875), ([999], 120, 120)])
def test_quantiles_are_read_off_the_buckets(values: list[float], p50: float | None, p95: float | None) -> None:
    """As PromQL's histogram_quantile: evenly within a bucket, and the last bound for what is beyond it."""
    metrics = Metrics()
    for value in values:
        metrics.first_token.observe(value)
    told = metrics.to_json()["first_token_seconds"]
    assert (told["count"], told["p50"], told["p95"]) == (len(values), p50, p95)


async def test_a_watcher_that_does_not_read_loses_the_oldest_and_is_told() -> None:
    events = Events()
    with events.watching() as watcher:
        for _ in range(1010):
            events.publish("started")
        assert await anext(watcher) == {"kind": "lost", "events": 10}
        assert (await anext(watcher))["seq"] == 11


async def test_the_page_names_every_metric(pair: Pair) -> None:
    page = (Path(__file__).parent.parent / "docs" / "debugging.md").read_text()
    table = page.partition("## Prometheus")[2]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    counted = pair.node.services.metrics.to_json()
    counters = {"answers", "errors", "tokens", "loads"}
    assert named == {f"{name}_total" if name in counters else name for name in counted}


async def test_what_is_remembered_of_what_was_said_is_bounded() -> None:
    events = Events()
    events.capture(60)
    with events.watching() as watcher:
        for number in range(100):
            events.publish("request", number=number, content={"messages": "x" * (64 << 10)})
        held = [event for event in events.recent() if "content" in event]
        assert len(events.recent()) == 100 and [event["number"] for event in held] == list(range(37, 100))
        unread = [await anext(watcher) for _ in range(100)]
        assert unread == events.recent(), "what waits for a watcher is bounded with it"
    events.capture(0)


async def test_a_long_conversation_is_left_out_of_what_is_captured(pair: Pair, runtime: FakeRuntime) -> None:
    """What counts is what the model is asked, not the message that the caller sent."""
    events = pair.node.services.events
    events.capture(60)
    for _ in range(4):
        async with pair.post("/api/chat", {"message": "w" * 30_000, "conversation_id": "c"}) as response:
            await response.read()
    asked = [event["content"] for event in events.recent() if event["kind"] == "request"]
    assert "messages" in asked[0] and list(asked[-1]) == ["left_out"]
    events.capture(0)


async def test_watching_ends_when_the_node_goes() -> None:
    events = Events()
    with events.watching() as watcher:
        events.publish("started")
        events.end()
        assert (await anext(watcher))["kind"] == "started"
        assert [event async for event in watcher] == []


async def test_whoever_watches_at_the_nodes_own_address_sees_the_end_of_the_stream(pair: Pair) -> None:
    token = {"Authorization": f"Bearer {StateDir(pair.state).node_token()}"}
    async with pair.client.get(pair.node.listener.url + "/admin/events", headers=token) as stream:
        await _watching(pair, 1)
        await pair.node.drain()
        await stream.content.read()  # which raises where a stream is cut


async def test_capturing_ends_by_itself_and_what_was_said_is_forgotten() -> None:
    events = Events()
    with events.watching() as watcher:
        events.capture(0.02)
        events.publish("request", content=SECRET)
        assert events.recent()[0]["content"] == SECRET
        await wait_until(lambda: not events.capturing)
        events.publish("finished", content=SECRET)
        unread = [await anext(watcher), await anext(watcher)]
    assert [event["kind"] for event in events.recent()] == ["request", "finished"]
    assert SECRET not in json.dumps([*events.recent(), *unread])
