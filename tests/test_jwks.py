"""The keys of an issuer: found, kept, asked for again when they rotate, and served on while the issuer is down."""

from __future__ import annotations

import asyncio
import ssl
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from joserfc.jwk import generate_key

from edge.doors.jwks import IssuerUnavailable, Jwks
from tests.certificates import Authority
from tests.fake_issuer import CERTIFICATES, DISCOVERY, FakeIssuer, rsa_key
from tests.waiting import wait_until

HALF_A_MINUTE, TEN_MINUTES, DAY = 30, 600, 86_400


class Clock:
    """Seconds; a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def issuer() -> AsyncIterator[FakeIssuer]:
    async with FakeIssuer() as issuer:
        yield issuer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def keys_of(issuer: FakeIssuer, clock: Clock | None = None, url: str | None = None) -> AsyncIterator[Jwks]:
    keys = Jwks(issuer.url, url, monotonic=clock or Clock())
    try:
        yield keys
    finally:
        await keys.close()


async def has(keys: Jwks, kid: str | None, algorithm: str = "RS256") -> bool:
    """As far as the edge knows: for one that it does not, the issuer is not asked all the time."""
    try:
        return await keys.find(kid, algorithm) is not None
    except IssuerUnavailable as error:
        if error.retry_after is None:
            raise
        return False


async def test_keys_are_found_by_discovery_or_where_they_are_said_to_be(issuer: FakeIssuer) -> None:
    async with keys_of(issuer) as keys:
        assert await has(keys, "first")
    assert issuer.asked == [DISCOVERY, "/jwks"]
    async with keys_of(issuer, url=issuer.url + CERTIFICATES) as keys:
        assert await has(keys, "first")
    assert issuer.asked[2:] == [CERTIFICATES]


async def test_a_key_is_asked_for_once_however_many_wait(issuer: FakeIssuer) -> None:
    issuer.hold()
    async with keys_of(issuer) as keys:
        waiting = [asyncio.create_task(has(keys, "first")) for _ in range(20)]
        await wait_until(lambda: issuer.asked)
        waiting[0].cancel()  # the one who asked first leaves, and the others get their answer
        issuer.release()
        assert all(await asyncio.gather(*waiting[1:]))
        assert await has(keys, "first")
    assert issuer.asked == [DISCOVERY, "/jwks"]


async def test_a_rotated_key_is_found_at_once(issuer: FakeIssuer, clock: Clock) -> None:
    async with keys_of(issuer, clock) as keys:
        assert await has(keys, "first")
        clock.now += HALF_A_MINUTE
        issuer.rotate("second", keep=True)
        assert await has(keys, "second") and await has(keys, "first")
        assert len(issuer.asked) == 4


async def test_key_ids_that_are_made_up_ask_the_issuer_twice_a_minute(issuer: FakeIssuer, clock: Clock) -> None:
    async with keys_of(issuer, clock) as keys:
        assert await has(keys, "first")
        for second in range(1, 121):
            clock.now += 1
            if second % HALF_A_MINUTE:
                with pytest.raises(IssuerUnavailable) as caught:
                    await keys.find(f"made-up-{second}", "RS256")
                assert caught.value.retry_after == HALF_A_MINUTE - second % HALF_A_MINUTE
            else:
                assert not await has(keys, f"made-up-{second}"), "the issuer was asked, and has no such key"
            assert not await has(keys, "first", "ES256"), "this one is known, and signs nothing of the kind"
    assert issuer.asked.count("/jwks") == 1 + 120 // HALF_A_MINUTE


async def test_a_new_key_is_found_though_somebody_else_invented_one_before(issuer: FakeIssuer, clock: Clock) -> None:
    """Whoever comes with it meanwhile is told to come back, and not that it is wrong."""
    async with keys_of(issuer, clock) as keys:
        assert not await has(keys, "made-up")
        issuer.rotate("second")
        clock.now += 10
        with pytest.raises(IssuerUnavailable) as caught:
            await keys.find("second", "RS256")
        assert caught.value.retry_after is not None
        clock.now += caught.value.retry_after
        assert await has(keys, "second")


async def test_a_key_that_was_taken_back_opens_nothing_ten_minutes_later(issuer: FakeIssuer, clock: Clock) -> None:
    async with keys_of(issuer, clock) as keys:
        assert await has(keys, "first")
        issuer.rotate("second")
        clock.now += TEN_MINUTES
        assert await has(keys, "first"), "it is asked for no more often than that"
        clock.now += 1
        assert not await has(keys, "first")


async def test_keys_serve_on_for_a_day_while_the_issuer_is_down(issuer: FakeIssuer, clock: Clock) -> None:
    async with keys_of(issuer, clock) as keys:
        assert await has(keys, "first")
        await issuer.stop()
        clock.now += TEN_MINUTES + 1
        assert await has(keys, "first")
        with pytest.raises(IssuerUnavailable, match="cannot be reached"):
            await keys.find("second", "RS256")
        clock.now += DAY
        with pytest.raises(IssuerUnavailable):
            await keys.find("first", "RS256")
        await issuer.start()
        clock.now += HALF_A_MINUTE
        assert await has(keys, "first")


async def test_nobody_waits_for_an_issuer_that_is_known_to_be_down(issuer: FakeIssuer, clock: Clock) -> None:
    async with keys_of(issuer, clock) as keys:
        assert await has(keys, "first")
        issuer.answers["/jwks"] = web.Response(status=500)
        clock.now += TEN_MINUTES + 1
        assert await has(keys, "first")
        issuer.hold()
        clock.now += HALF_A_MINUTE
        assert await asyncio.wait_for(has(keys, "first"), 2), "while the issuer is asked again"
        await wait_until(lambda: issuer.asked.count(DISCOVERY) == 3)


@pytest.mark.parametrize(
    ("path", "answer", "why"),
    [
        ("/jwks", lambda: web.Response(status=503), "HTTP 503"),
        ("/jwks", lambda: web.Response(status=302, headers={"Location": DISCOVERY}), "HTTP 302"),
        ("/jwks", lambda: web.Response(text="<html>"), "JSON object"),
        ("/jwks", lambda: web.Response(text="[" * 100_000), "JSON object"),
        ("/jwks", lambda: web.Response(text='{"keys": [' + " " * 300_000 + "]}"), "256 KiB"),
        ("/jwks", lambda: {"keys": []}, "no key"),
        ("/jwks", lambda: {"keys": "first"}, "no key"),
        ("/jwks", lambda: {}, "no key"),
        (DISCOVERY, lambda: None, "HTTP 404"),
        (DISCOVERY, lambda: {"issuer": "https://other.example.org", "jwks_uri": "https://other.example.org/jwks"},
         "other.example.org"),
        (DISCOVERY, lambda: {"issuer": None}, "not of"),
    ],
)  # fmt: skip
async def test_an_issuer_that_does_not_answer_as_one_is_told_from_one_without_the_key(
    issuer: FakeIssuer, path: str, answer: Any, why: str
) -> None:
    issuer.answers[path] = answer()
    async with keys_of(issuer) as keys:
        with pytest.raises(IssuerUnavailable, match=why):
            await keys.find("first", "RS256")


@pytest.mark.parametrize("where", ["http://198.51.100.7/jwks", "file:///etc/passwd", "//x", None, "https://u:p@x/jwks"])
async def test_keys_come_over_https_only(issuer: FakeIssuer, where: str | None) -> None:
    issuer.answers[DISCOVERY] = {"issuer": issuer.url, "jwks_uri": where}
    async with keys_of(issuer) as keys:
        with pytest.raises(IssuerUnavailable, match="jwks_uri"):
            await keys.find("first", "RS256")


async def test_odd_keys_do_not_take_the_others_with_them(issuer: FakeIssuer) -> None:
    good = {**rsa_key("good").as_dict(private=False), "kid": "good"}
    odd = [
        7,
        {},
        {"kty": "AKP", "alg": "ML-DSA-44", "kid": "a"},
        {"kty": "RSA", "kid": "b"},
        {"kty": "RSA", "kid": "c", "n": "!", "e": []},
        {"kty": "EC", "kid": "d", "crv": "P-1", "x": "AA", "y": "AA"},
        {**good, "kid": "e", "use": "enc"},
        {"kty": "RSA", "kid": "f", "n": urlsafe_b64encode(b"\xc5" * 128).decode().rstrip("="), "e": "AQAB"},
        {"kty": "oct", "kid": "g", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldC0"},
    ]
    issuer.answers["/jwks"] = {"keys": [*odd, good]}
    async with keys_of(issuer) as keys:
        assert await has(keys, "good")
        for kid in "abcdefg":
            assert not await has(keys, kid), kid


async def test_a_key_signs_what_it_was_published_for(issuer: FakeIssuer) -> None:
    elliptic, edwards = generate_key("EC", "P-256", {"kid": "ec"}), generate_key("OKP", "Ed25519", {"kid": "ed"})
    bound = {**rsa_key("first").as_dict(private=False), "alg": "RS256", "kid": "bound"}
    issuer.publish(elliptic, edwards, bound, {**rsa_key("second").as_dict(private=False), "kid": "free"})
    fits = {"ec": ["ES256"], "ed": ["EdDSA"], "bound": ["RS256"], "free": ["RS256", "RS384", "RS512", "PS256"]}
    async with keys_of(issuer) as keys:
        for kid, algorithms in fits.items():
            found = [name for name in (*fits["free"], "ES256", "ES384", "EdDSA") if await has(keys, kid, name)]
            assert found == algorithms, kid


async def test_without_a_key_id_the_only_fitting_key_is_meant(issuer: FakeIssuer) -> None:
    elliptic = generate_key("EC", "P-256", {"kid": "ec"})
    issuer.publish(elliptic, rsa_key("first"), rsa_key("second"))
    async with keys_of(issuer) as keys:
        assert await has(keys, None, "ES256")
        assert not await has(keys, None, "RS256")


async def test_closing_ends_a_question_under_way(issuer: FakeIssuer) -> None:
    issuer.hold()
    async with keys_of(issuer) as keys:
        before = asyncio.all_tasks()
        keys.ask()
        (question,) = asyncio.all_tasks() - before
        await wait_until(lambda: issuer.asked)
    assert question.cancelled()


async def test_a_set_is_read_up_to_a_bound(issuer: FakeIssuer) -> None:
    public = rsa_key("first").as_dict(private=False)
    issuer.answers["/jwks"] = {"keys": [{**public, "kid": str(number)} for number in range(101)]}
    async with keys_of(issuer) as keys:
        assert await has(keys, "99")
        assert not await has(keys, "100")


async def test_an_issuer_whose_certificate_nobody_vouches_for_is_not_believed(tmp_path: Path) -> None:
    made = Authority(tmp_path).issue("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(made.certificate), str(made.key))
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.json_response({})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        keys = Jwks(f"https://127.0.0.1:{runner.addresses[0][1]}")
        with pytest.raises(IssuerUnavailable, match=r"(?i)certificate"):
            await keys.find("first", "RS256")
        await keys.close()
    finally:
        await runner.cleanup()
    assert asked == []
