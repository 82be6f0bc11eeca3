"""``hearthlink model pull`` from a hub that redirects, cuts and falls silent."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
from pathlib import Path

import pytest

from hearthlink.models.meter import Meter
from tests import command_line, fake_hub
from tests.fake_hub import NOBODY, FakeHub, cut, header, refuse, stall
from tests.pulling import CONTENT, MODEL, Pull, gguf, left
from tests.waiting import wait_until

TOKEN = "hf_verysecret"

# -- what goes well ---------------------------------------------------------------------------------------------------


async def test_a_model_is_pulled_checked_and_noted(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    status, out, err = await pull()
    assert status == 0, err
    assert out == f"{shelf / 'tiny.gguf'}\n" and (shelf / "tiny.gguf").read_bytes() == CONTENT
    assert left(shelf) == ["tiny.gguf", "tiny.gguf.json"]
    note = json.loads((shelf / "tiny.gguf.json").read_text())
    assert note["commit"] == hub.commit and note["files"][0]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert "tiny: 300 kB to load." in err and "hearthlink up --model hf:acme/tiny/tiny.gguf" in err
    assert hub.hub.gets()[0].path == f"/acme/tiny/resolve/{hub.commit}/tiny.gguf"  # what was described, not a branch
    assert hub.store.gets()[0].headers["accept-encoding"] == "identity"


async def test_a_model_that_is_here_is_only_asked_about(hub: FakeHub, pull: Pull) -> None:
    await pull()
    before = len(hub.store.asked)
    status, _, err = await pull()
    assert status == 0 and "is ready" in err and "to load" not in err and len(hub.store.asked) == before


async def test_the_token_is_shown_to_the_hub_alone(hub: FakeHub, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    hub.store.twists += [cut(1000), refuse(503)]
    status, out, err = await pull()
    assert status == 0, err
    assert {asked.headers.get("authorization") for asked in hub.hub.asked} == {f"Bearer {TOKEN}"}
    assert hub.store.asked and not any("authorization" in asked.headers for asked in hub.store.asked)
    assert TOKEN not in out + err and "Signature" not in out + err


async def test_a_renamed_repository_is_followed_with_the_token(
    hub: FakeHub, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.put("acme/renamed/tiny.gguf", CONTENT)
    hub.hub.heads = True
    moved = refuse(307, Location=f"/acme/renamed/resolve/{hub.commit}/tiny.gguf")
    hub.hub.twists += [moved, fake_hub.as_it_is, moved]
    assert (await pull())[0] == 0


async def test_a_hub_without_a_store_is_enough(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    """Caching mirrors send the file themselves, and tell neither hash nor commit."""
    hub.hub.heads = True
    mirror = fake_hub.Reply(200, {"ETag": '"1"'}, CONTENT, len(CONTENT))
    hub.hub.twists += [lambda _: mirror, lambda _: mirror]
    status, _, err = await pull()
    assert status == 0 and not hub.store.asked, err
    assert json.loads((shelf / "tiny.gguf.json").read_text())["commit"] == "main"


@pytest.mark.parametrize("name", ["http_proxy", "ALL_PROXY"])
async def test_loopback_is_asked_without_a_proxy(pull: Pull, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, NOBODY)
    assert (await pull())[0] == 0


async def test_other_hubs_are_asked_through_the_proxy(
    hub: FakeHub, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", hub.url)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.test/mirror/")
    status, _, err = await pull()
    assert status == 0, err
    assert [asked.path for asked in hub.hub.asked] == [
        f"http://hub.test/mirror/acme/tiny/resolve/{revision}/tiny.gguf" for revision in ("main", hub.commit)
    ]
    assert [asked.path.partition("?")[0] for asked in hub.store.asked] == ["/acme/tiny/tiny.gguf"]


# -- going on ---------------------------------------------------------------------------------------------------------


async def test_a_cut_file_goes_on_where_it_was_cut(hub: FakeHub, pull: Pull, shelf: Path, pauses: list[float]) -> None:
    hub.store.twists += [cut(100_000), cut(50_000)]
    status, _, err = await pull()
    assert status == 0 and (shelf / "tiny.gguf").read_bytes() == CONTENT, err
    first, second, third = hub.store.gets()
    assert "range" not in first.headers and second.headers["range"] == "bytes=100000-"
    assert third.headers["range"] == "bytes=150000-"
    assert second.headers["if-range"] == hub.files["acme/tiny/tiny.gguf"].store_etag
    assert len(pauses) == 2 and "Trying again in" in err


async def test_the_next_run_goes_on_where_the_last_ended(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.store.twists += [cut(100_000), *[refuse(503)] * 5]
    status, out, err = await pull()
    assert (status, out) == (5, "") and "HTTP 503" in err and "tried 6 times" in err
    assert "100 kB are kept; the same command goes on from there." in err
    assert left(shelf) == ["tiny.gguf.part", "tiny.gguf.part.json"]
    status, _, err = await pull()
    assert status == 0 and "going on from 100 kB of 300 kB" in err
    assert hub.store.gets()[-1].headers["range"] == "bytes=100000-"
    assert (shelf / "tiny.gguf").read_bytes() == CONTENT and left(shelf) == ["tiny.gguf", "tiny.gguf.json"]


async def test_a_part_of_another_file_is_not_gone_on_with(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.store.twists += [cut(100_000), *[refuse(503)] * 5]
    await pull()
    hub.commit = "d" * 40
    hub.put("acme/tiny/tiny.gguf", gguf(seed=2))
    assert (await pull())[0] == 0
    assert "range" not in hub.store.gets()[-1].headers
    assert (shelf / "tiny.gguf").read_bytes() == gguf(seed=2)


@pytest.mark.parametrize("heeds_if_range", [True, False])
async def test_a_part_of_another_copy_in_the_store_is_begun_again(
    hub: FakeHub, pull: Pull, shelf: Path, heeds_if_range: bool
) -> None:
    blob = hub.files["acme/tiny/tiny.gguf"]
    hub.store.twists += [cut(100_000), *[refuse(503)] * 5]
    await pull()
    part = shelf / "tiny.gguf.part"
    part.write_bytes(CONTENT[:50_000] + bytes(50_000))  # what the store sent was of another copy
    if heeds_if_range:
        blob.store_etag = '"another"'
    else:
        hub.store.twists.append(header("ETag", '"another"'))
    status, _, err = await pull()
    assert status == 0 and (shelf / "tiny.gguf").read_bytes() == CONTENT, err
    assert ("beginning again" in err) is not heeds_if_range


async def test_a_damaged_part_is_found_out_and_thrown_away(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.store.twists += [cut(100_000), *[refuse(503)] * 5]
    await pull()
    (shelf / "tiny.gguf.part").write_bytes(CONTENT[:50_000] + bytes(50_000))
    status, _, err = await pull()
    assert status == 1 and "thrown away" in err and left(shelf) == []
    assert (await pull())[0] == 0


async def test_a_part_that_is_too_long_is_begun_again(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.store.twists += [cut(100_000), *[refuse(503)] * 5]
    await pull()
    (shelf / "tiny.gguf.part").write_bytes(CONTENT + b"more")
    status, _, err = await pull()
    assert status == 0 and (shelf / "tiny.gguf").read_bytes() == CONTENT, err


async def test_a_store_that_knows_no_ranges_is_begun_again(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.store.twists += [cut(100_000), lambda _: fake_hub.Reply(200, {}, CONTENT, len(CONTENT))]
    assert (await pull())[0] == 0 and (shelf / "tiny.gguf").read_bytes() == CONTENT
    hub.put("acme/tiny/other.gguf", CONTENT)
    hub.store.twists += [cut(100_000), *[lambda _: fake_hub.Reply(200, {}, CONTENT[:200_000], len(CONTENT))] * 9]
    status, _, err = await pull("hf:acme/tiny/other.gguf")
    assert status == 1 and "had to begin again 3 times" in err


async def test_416_begins_again(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.store.twists += [cut(100_000), refuse(416)]
    status, _, err = await pull()
    assert status == 0 and (shelf / "tiny.gguf").read_bytes() == CONTENT
    assert "range" not in hub.store.gets()[-1].headers and "beginning again" in err


async def test_a_silent_store_is_left(hub: FakeHub, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hearthlink.models.hub._SILENT_SECONDS", 0.2)
    hub.store.twists.append(stall(100_000))
    status, _, err = await pull()
    assert status == 0 and "was silent for too long" in err
    assert hub.store.gets()[-1].headers["range"] == "bytes=100000-"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_stopped_pull_can_be_gone_on_with(
    hub: FakeHub, pull: Pull, tmp_path: Path, shelf: Path, number: signal.Signals
) -> None:
    hub.store.twists.append(stall(100_000))
    process = await command_line.start("model", "pull", MODEL, state=tmp_path, environ={"HF_ENDPOINT": hub.url})
    part = shelf / "tiny.gguf.part"
    await wait_until(lambda: part.exists() and part.stat().st_size == 100_000, command_line.PATIENCE)

    status, _, err = await pull()  # a second one beside it
    assert status == 5 and f"Another hearthlink is pulling or removing {MODEL}" in err

    process.send_signal(number)
    ended = await command_line.finish(process)
    if number is signal.SIGINT:
        assert ended.status == 130 and "Stopped. 100 kB are kept" in ended.err and "Traceback" not in ended.err
    assert (await pull())[0] == 0 and hub.store.gets()[-1].headers["range"] == "bytes=100000-"
    assert left(shelf) == ["tiny.gguf", "tiny.gguf.json"]


# -- what the person sees ---------------------------------------------------------------------------------------------


def test_without_a_terminal_there_is_a_line_every_five_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with Meter(clock=lambda: now) as meter:
        meter.begin("big", 1_000_000_000, 100_000_000)
        for _ in range(12):
            now += 1
            meter.advance(20_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "big: going on from 100 MB of 1.00 GB.",
        "big: 200 MB of 1.00 GB (20 %), 20.0 MB/s, 40 s left",
        "big: 300 MB of 1.00 GB (30 %), 20.0 MB/s, 35 s left",
    ]


async def test_on_a_terminal_there_is_a_bar(hub: FakeHub, tmp_path: Path) -> None:
    hub.store.twists.append(stall(150_000))
    ours, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *command_line.COMMAND,
        *("model", "pull", MODEL),
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=command_line.environment(tmp_path, {"HF_ENDPOINT": hub.url, "TERM": "xterm", "COLUMNS": "100"}),
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = bytearray()

    def read() -> bool:
        try:
            shown.extend(os.read(ours, 65536))
        except OSError:
            return False
        return b"150.0/300.0 kB" in shown

    try:
        await wait_until(read, command_line.PATIENCE, what=lambda: shown[-300:])
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(command_line.PATIENCE):
            assert await process.wait() == 130
        read()
    finally:
        if process.returncode is None:
            process.kill()
        os.close(ours)
    assert b"tiny" in shown and b"\x1b[?25h" in shown  # the cursor is back
