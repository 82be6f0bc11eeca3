"""No prompt, answer, token or key in any log at any level, nor on the edge's disk."""

from __future__ import annotations

import json
import secrets
import signal
from pathlib import Path
from typing import Any

import pytest

from shared.state import StateDir
from tests.fake_runtime import Exchange, FakeRuntime
from tests.fake_scripts import DONE, chunk, role_chunk
from tests.pair import ORIGIN, question, revoke_key
from tests.processes import Processes, running_processes
from tests.raw_http import RawClient

NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"


def mark(what: str) -> str:
    return f"{what}-{secrets.token_hex(8)}"


def database(state: Path) -> bytes:
    """The edge's database with all that belongs to it."""
    return b"".join(path.read_bytes() for path in state.glob("edge.db*"))


async def told(pair: Processes, path: str, payload: Any, headers: dict[str, str]) -> bytes:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    headers = {"Content-Type": "application/json", **headers}
    async with pair.client.post(pair.url + path, data=body, headers=headers) as response:
        return await response.read()


@pytest.mark.case("B28")
async def test_no_log_holds_what_was_said_or_who_may(tmp_path: Path) -> None:
    prompt, answer, fact, later = mark("PROMPT"), mark("ANSWER"), mark("FACT"), mark("LATER")

    async def speaks(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.send(role_chunk() + chunk({"content": answer}) + chunk({"content": later}))
        await exchange.send(chunk({}, "stop") + DONE)
        await exchange.end_stream()

    async def repeats(exchange: Exchange) -> None:
        """A runtime that quotes what it was sent, as templates and validators do."""
        await exchange.respond(400, {"error": {"message": f"cannot render {prompt}", "type": "x", "param": prompt}})

    async def repeats_in_stream(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.send(role_chunk() + chunk({"content": answer}))
        await exchange.send(b"data: {broken " + prompt.encode() + b"\n\n")
        await exchange.end_stream()

    async def cut(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.send(role_chunk() + chunk({"content": answer}))
        await exchange.reset()

    environ = {"HEARTHLINK_LOGS__LEVEL": "DEBUG"}
    async with FakeRuntime(speaks) as runtime, running_processes(runtime.url, tmp_path, environ=environ) as pair:
        page = {"Origin": ORIGIN}
        token = json.loads(await told(pair, "/v1/token", {}, page))["token"]
        bearer, as_key = page | {"Authorization": f"Bearer {token}"}, {"X-API-Key": pair.key}
        asked = question(prompt, chat_type="whereToGo", metadata={"city": fact}, stop=[fact])
        for script in (speaks, repeats, repeats_in_stream, cut):
            runtime.script = script
            for headers in (bearer, as_key):
                for stream in (False, True):
                    await told(pair, NATIVE, asked | {"stream": stream}, headers)
        assert len(runtime.chats) >= 16
        assert fact in runtime.chats[0].body.decode()
        runtime.script = speaks
        assert answer in (await told(pair, OPENAI, question(prompt, model="chat:home"), as_key)).decode()

        # What is refused, in every place where a secret could be quoted.
        await told(pair, NATIVE, b'{"messages": "' + prompt.encode(), as_key)
        await told(pair, NATIVE, question(prompt, **{fact: prompt}), as_key)
        await told(pair, NATIVE, question(prompt, chat_type=prompt), as_key)
        await told(pair, OPENAI, question(prompt, model=prompt), as_key)
        await told(
            pair, NATIVE, asked, as_key | {"User-Agent": prompt, "Referer": prompt, "X-Request-Id": f"no {prompt}"}
        )
        await told(pair, f"{NATIVE}?token={token}&key={pair.key}", asked, as_key)
        await told(pair, NATIVE, asked, {"Authorization": f"Bearer {token[:-2]}xx"})
        await told(pair, NATIVE, asked, {"Authorization": f"Bearer {pair.key}x"})
        await told(pair, NATIVE, asked, {"Authorization": f"Basic {pair.key}"})
        await told(pair, f"/{prompt}/{pair.key}", asked, as_key)
        for request in (f"GARBAGE {prompt} {token}\r\n\r\n", f"GET /livez HTTP/1.1\r\nX {prompt}: {pair.key}\r\n\r\n"):
            async with await RawClient.connect(pair.url) as raw:
                await raw.send(request.encode())
                await raw.head()
        async with await RawClient.connect(pair.url) as raw:  # one who leaves in mid-stream
            await raw.post(NATIVE, asked | {"stream": True}, as_key)
            await raw.head()
            raw.reset()
        async with pair.client.get(
            pair.node.url + "/v1/models", headers={"Authorization": f"Bearer {token}"}
        ) as refused:
            assert refused.status == 401
        await runtime.kill()
        await told(pair, NATIVE, asked, as_key)
        revoke_key(tmp_path, pair.key)
        for process in (pair.edge, pair.node):
            process.signal(signal.SIGTERM)
            assert await process.exit_status(10) == 0

        state = StateDir(tmp_path)
        logs = {process.module: process.text() for process in (pair.edge, pair.node)}
        assert sum('"event":"request"' in line for line in logs["edge"].splitlines()) > 20
        secrets_of = {
            "prompt": prompt,
            "answer": answer,
            "second word": later,
            "metadata": fact,
            "token": token,
            "token's claims": token.removeprefix("hlt_").split(".")[0],
            "token's signature": token.rpartition(".")[2],
            "key": pair.key,
            "key's secret": pair.key[len("hlk_000000000000_") :],
            "node token": state.node_token(),
            **{f"signing key {number}": key for number, key in enumerate(state.signing_keys().verifying)},
        }
        for name, log in logs.items():
            for what, secret in secrets_of.items():
                assert secret not in log, f"the {what} stands in the log of the {name}"
        disk = database(tmp_path)
        for what in ("prompt", "answer", "second word", "metadata", "token", "key", "key's secret", "node token"):
            assert secrets_of[what].encode() not in disk, f"the {what} stands in the database"
