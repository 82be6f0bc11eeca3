"""Each way in which asking tailscaled fails, and that its error says what is missing and what to do."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from shared.tailscale.bus import Mask
from shared.tailscale.client import LocalClient
from shared.tailscale.errors import (
    Changed,
    NotAllowed,
    NotAnswering,
    NotRunning,
    NotSupported,
    RateLimited,
    Refused,
    TailscaleError,
    UnexpectedAnswer,
    Unreachable,
)
from shared.tailscale.socket import Endpoint
from shared.tailscale.states import State, not_running
from tests.fake_localapi import FakeLocalAPI, Reply, error, text
from tests.waiting import wait_until

ME = pwd.getpwuid(os.geteuid()).pw_name
_NOBODY = 65534  # a user without rights, on every Linux
SERVED = {"TCP": {"80": {"HTTP": True}}}

Call = Callable[[LocalClient], Awaitable[object]]


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeLocalAPI]:
    async with FakeLocalAPI(tmp_path) as fake:
        yield fake


@pytest.fixture
async def client(fake: FakeLocalAPI) -> AsyncIterator[LocalClient]:
    async with LocalClient(str(fake.path), seconds=5) as client:
        yield client


async def test_no_socket(tmp_path: Path) -> None:
    async with LocalClient(str(tmp_path / "none.sock")) as client:
        with pytest.raises(Unreachable, match=r"none\.sock.*TS_SOCKET"):
            await client.status()


async def test_a_socket_that_nobody_listens_at(fake: FakeLocalAPI, client: LocalClient) -> None:
    await fake.stop()
    with pytest.raises(Unreachable, match=r"does not run.*systemctl start tailscaled"):
        await client.status()


async def test_a_socket_in_a_closed_folder(fake: FakeLocalAPI, client: LocalClient) -> None:
    await client.status()  # loads all that another user could not read
    await client.close()
    root = os.geteuid() == 0
    fake.path.parent.chmod(0)
    if root:
        os.seteuid(_NOBODY)
    try:
        with pytest.raises(Unreachable, match="may not open"):
            await client.status()
    finally:
        if root:
            os.seteuid(0)
        fake.path.parent.chmod(0o700)


async def test_a_client_finds_its_way_back(fake: FakeLocalAPI, client: LocalClient) -> None:
    await client.status()
    await fake.stop()
    with pytest.raises(Unreachable):
        await client.status()
    await fake.restart()
    assert (await client.status()).state is State.RUNNING


async def test_an_app_that_comes_back_elsewhere_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeLocalAPI(tmp_path, token="feed") as old, FakeLocalAPI(tmp_path, token="beef") as new:
        where = [Endpoint(port=old.port, token="feed")]
        monkeypatch.setattr("shared.tailscale.client.find", lambda _: where[0])
        async with LocalClient() as client:
            await client.status()
            await old.stop()
            with pytest.raises(Unreachable):
                await client.status()
            where[0] = Endpoint(port=new.port, token="beef")
            await client.status()


async def test_a_tailscaled_that_ends_while_it_answers(fake: FakeLocalAPI, client: LocalClient) -> None:
    async def hang_up() -> None:
        for writer in fake._connections.values():
            writer.transport.abort()

    fake.before("status", hang_up)
    with pytest.raises(Unreachable, match="hung up"):
        await client.status()


async def test_a_tailscaled_that_boots_accepts_and_is_silent(fake: FakeLocalAPI, client: LocalClient) -> None:
    fake.running.clear()
    assert await client.ready() is False
    async with LocalClient(str(fake.path), seconds=0.05) as hasty:
        with pytest.raises(NotAnswering, match=r"0\.05 s: it starts"):
            await hasty.status()
        with pytest.raises(NotAnswering):
            async with hasty.watch(Mask.INITIAL_STATE):
                pass
    fake.running.set()
    assert await client.ready() is True


async def test_a_deadline_of_the_caller_stays_the_callers(fake: FakeLocalAPI, client: LocalClient) -> None:
    fake.running.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.status()


async def test_cancelled_requests_leave_the_client_usable(fake: FakeLocalAPI, client: LocalClient) -> None:
    fake.running.clear()
    waiting = [asyncio.create_task(client.status()) for _ in range(80)]  # more than may be under way at once
    await wait_until(lambda: len(fake._connections) >= 60)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    fake.running.set()
    assert (await client.status()).state is State.RUNNING


@pytest.mark.parametrize(
    ("lacking", "call", "right", "advice"),
    [
        ({"write"}, lambda c: c.change_prefs(ShieldsUp=True), "write", f"sudo tailscale set --operator={ME}"),
        ({"write"}, lambda c: _serve(c, "http://127.0.0.1:1"), "write", f"sudo tailscale set --operator={ME}"),
        ({"local admin"}, lambda c: _serve(c, "unix:/run/x.sock"), "local admin", "be root, or an operator"),
        ({"write", "cert"}, lambda c: c.certificate("a.ts.net"), "cert", f"TS_PERMIT_CERT_UID={ME}"),
        ({"read"}, lambda c: c.status(), "read", "status access denied"),
    ],
)
async def test_a_missing_right_is_named(
    fake: FakeLocalAPI, client: LocalClient, lacking: set[str], call: Call, right: str, advice: str
) -> None:
    fake.rights -= lacking
    with pytest.raises(NotAllowed) as caught:
        await call(client)
    assert caught.value.right == right
    assert advice in str(caught.value)


async def _serve(client: LocalClient, target: str) -> None:
    config = {**SERVED, "Web": {"edge.tail.test:80": {"Handlers": {"/": {"Proxy": target}}}}}
    await client.set_serve_config(config, (await client.serve_config()).etag)


@pytest.mark.parametrize("said", [text(401, "auth required"), text(403, "bad password")])
async def test_a_wrong_token_is_named(fake: FakeLocalAPI, client: LocalClient, said: Reply) -> None:
    fake.twist("status", said)
    with pytest.raises(NotAllowed, match="token of its own user") as caught:
        await client.status()
    assert caught.value.right == "token"


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (text(404, "404 page not found"), NotSupported, "too old"),
        (text(501, "not supported by this server"), NotSupported, "control server"),
        (text(503, "no backend"), NotRunning, "not ready"),
        (text(400, "bad mask"), Refused, "bad mask"),
        (Reply(400, {"Error": "can't do that"}), Refused, "refused 'prefs': can't do that"),
        (error("updating config: netMap is nil"), NotRunning, "sudo tailscale up"),
        (error("updating config: port is already served"), Refused, "port is already served"),
        (text(403, "invalid localapi request"), UnexpectedAnswer, "does not take requests"),
        (Reply(502), Refused, "status 502"),
        (text(500, "line one\nline two " + "x" * 2000), Refused, "line one line two x"),
    ],
)
async def test_what_tailscaled_refuses(
    fake: FakeLocalAPI, client: LocalClient, answer: Reply, kind: type[TailscaleError], words: str
) -> None:
    fake.twist("prefs", answer)
    with pytest.raises(kind) as caught:
        await client.prefs()
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


async def test_a_changed_serve_configuration(fake: FakeLocalAPI, client: LocalClient) -> None:
    found = await client.serve_config()
    fake.serve = {"TCP": {"443": {"HTTPS": True}}}
    with pytest.raises(Changed):
        await client.set_serve_config(SERVED, found.etag)
    assert fake.serve == {"TCP": {"443": {"HTTPS": True}}}


async def test_a_serve_configuration_is_never_overwritten_blindly(fake: FakeLocalAPI, client: LocalClient) -> None:
    fake.twist("serve-config", Reply(200, "null"))
    with pytest.raises(UnexpectedAnswer, match="version"):
        await client.serve_config()
    with pytest.raises(ValueError, match="ETag"):
        await client.set_serve_config(SERVED, "")


@pytest.mark.parametrize(
    ("headers", "seconds"), [({"Retry_After": "600"}, 600), ({}, 3600), ({"Retry_After": "-"}, 3600)]
)
async def test_a_certificate_authority_that_wants_peace(
    fake: FakeLocalAPI, client: LocalClient, headers: dict[str, str], seconds: float
) -> None:
    fake.certificate = text(429, "too many certificates", **headers)
    with pytest.raises(RateLimited, match="too many certificates") as caught:
        await client.certificate("edge.tail.test")
    assert caught.value.retry_after == seconds


async def test_a_tailnet_without_certificates(client: LocalClient) -> None:
    with pytest.raises(NotSupported, match="HTTPS certificates"):
        await client.certificate("edge.tail.test")


@pytest.mark.parametrize("body", ["", "<html>", "[1]", '"text"', "7"])
async def test_an_answer_that_is_not_an_object(fake: FakeLocalAPI, client: LocalClient, body: str) -> None:
    fake.twist("status", Reply(200, body))
    with pytest.raises(UnexpectedAnswer):
        await client.status()


async def test_a_caller_without_a_name_is_not_let_pass_for_somebody(fake: FakeLocalAPI, client: LocalClient) -> None:
    fake.whois["100.64.0.9"] = {"Node": None, "UserProfile": None, "CapMap": None}
    with pytest.raises(UnexpectedAnswer):
        await client.whois("100.64.0.9")


@pytest.mark.parametrize("body", ["", "-----BEGIN CERTIFICATE-----\nAQ==\n-----END CERTIFICATE-----\n"])
async def test_a_certificate_without_its_key(fake: FakeLocalAPI, client: LocalClient, body: str) -> None:
    fake.certificate = Reply(200, body)
    with pytest.raises(UnexpectedAnswer):
        await client.certificate("edge.tail.test")


@pytest.mark.parametrize("state", [*(state for state in State if state is not State.RUNNING), None])
def test_each_state_but_one_has_its_sentence(state: State | None) -> None:
    problem = not_running(state)
    assert problem is not None
    assert problem.state == (state or "")
    assert len(str(problem)) > 40


def test_running_is_no_problem_until_the_key_expires() -> None:
    assert not_running(State.RUNNING) is None
    expired = not_running(State.RUNNING, expired=True)
    assert expired is not None
    assert "--force-reauth" in str(expired)


def test_states_are_read_as_name_and_as_number() -> None:
    assert [State.read(number) for number in range(-1, 8)] == [None, *State, None]
    assert State.read("NeedsLogin") is State.NEEDS_LOGIN
    assert State.read("Flying") is State.read(None) is State.read(True) is None
