"""Tokens of an issuer: what is signed, meant for this edge and not over is believed, and nothing else."""

from __future__ import annotations

import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey, generate_key

from edge.doors.jwks import Jwks
from edge.doors.jwt import MAX_JWT_CHARS, JwtVerifier
from shared.contract.errors import ApiError
from tests.fake_issuer import AUDIENCE, FakeIssuer, rsa_key

ALGORITHMS = ("RS256", "ES256", "EdDSA")


@pytest.fixture
async def issuer() -> AsyncIterator[FakeIssuer]:
    async with FakeIssuer() as issuer:
        yield issuer


@pytest.fixture
async def verifier(issuer: FakeIssuer) -> AsyncIterator[JwtVerifier]:
    keys = Jwks(issuer.url)
    yield JwtVerifier(issuer.url, [AUDIENCE, "also-this"], ALGORITHMS, keys)
    await keys.close()


async def refusal(verifier: JwtVerifier, text: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await verifier.claims(text)
    error = caught.value
    assert error.code in ("invalid_token", "token_expired") and error.status == 401
    assert len(text) < 24 or text[:24] not in error.message, "nothing of a token is repeated"
    return error


async def test_claims_are_what_was_signed(issuer: FakeIssuer, verifier: JwtVerifier) -> None:
    claims = await verifier.claims(issuer.token(sub="auth0|7", plan="beta"))
    assert (claims["sub"], claims["plan"], claims["iss"]) == ("auth0|7", "beta", issuer.url)
    assert await verifier.claims(issuer.token(aud=["another", "also-this"]))
    assert await verifier.claims(issuer.token(head={"typ": None}))
    assert await verifier.claims(issuer.token(head={"typ": "JWT", "x5t": "AA", "unheard": "of"}))
    assert await verifier.claims(issuer.token(head={"kid": None})), "the issuer has one key"


@pytest.mark.parametrize(
    "key", [generate_key("EC", "P-256", {"kid": "ec"}), generate_key("OKP", "Ed25519", {"kid": "ed"})]
)
async def test_other_algorithms(issuer: FakeIssuer, verifier: JwtVerifier, key: Key) -> None:
    issuer.publish(key)
    algorithm = "ES256" if isinstance(key, ECKey) else "EdDSA"
    assert await verifier.claims(issuer.token(key=key, algorithm=algorithm))
    other = (
        generate_key("EC", "P-256", {"kid": "ec"})
        if isinstance(key, ECKey)
        else OKPKey.generate_key("Ed25519", {"kid": "ed"})
    )
    await refusal(verifier, issuer.token(key=other, algorithm=algorithm))


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": None},
        {"iss": "https://other.example.org"},
        {"iss": ["x"]},
        {"aud": None},
        {"aud": "https://chat.example.org/"},
        {"aud": []},
        {"aud": {"also-this": 1}},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": True},
        {"exp": float("inf")},
        {"nbf": time.time() + 3600},
        {"iat": time.time() + 3600},
        {"cnf": {"jkt": "AA"}},
    ],
)
async def test_a_token_for_somebody_else_is_refused(
    issuer: FakeIssuer, verifier: JwtVerifier, claims: dict[str, Any]
) -> None:
    assert (await refusal(verifier, issuer.token(**claims))).code == "invalid_token"


@pytest.mark.parametrize("ago", [0, 1, 20, 3600])
async def test_an_end_is_an_end(issuer: FakeIssuer, verifier: JwtVerifier, ago: int) -> None:
    assert (await refusal(verifier, issuer.token(exp=int(time.time()) - ago))).code == "token_expired"


async def test_an_issuer_whose_clock_is_a_little_ahead_is_forgiven(issuer: FakeIssuer, verifier: JwtVerifier) -> None:
    assert await verifier.claims(issuer.token(iat=time.time() + 20, nbf=time.time() + 20))


async def test_a_public_key_is_no_shared_secret(issuer: FakeIssuer, verifier: JwtVerifier) -> None:
    """The oldest trick: HMAC with the text of the public key, which everybody has."""
    signed = f"{part({'alg': 'HS256', 'kid': 'first'})}.{issuer.token().split('.')[1]}"
    for secret in (issuer.key.as_pem(private=False), issuer.key.as_der(private=False)):
        forged = urlsafe_b64encode(hmac.digest(secret, signed.encode(), "sha256")).decode().rstrip("=")
        assert "another algorithm" in (await refusal(verifier, f"{signed}.{forged}")).message


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256"])
async def test_only_the_named_algorithms(issuer: FakeIssuer, verifier: JwtVerifier, algorithm: str) -> None:
    assert "another algorithm" in (await refusal(verifier, issuer.token(algorithm=algorithm))).message


@pytest.mark.case("B21")
@pytest.mark.parametrize("name", ["none", "None", "NONE", "", "HS256", "rs256", None, 7, ["RS256"]])
async def test_no_algorithm_at_all(issuer: FakeIssuer, verifier: JwtVerifier, name: Any) -> None:
    payload = issuer.token().split(".")[1]
    for signature in ("", "AA", issuer.token().split(".")[2]):
        head = part({"alg": name, "kid": "first"})
        await refusal(verifier, f"{head}.{payload}.{signature}")


@pytest.mark.parametrize("typ", ["logout+jwt", "dpop+jwt", "secevent+jwt", "", 7])
async def test_a_token_for_another_purpose_is_refused(issuer: FakeIssuer, verifier: JwtVerifier, typ: Any) -> None:
    assert "another purpose" in (await refusal(verifier, issuer.token(head={"typ": typ}))).message


@pytest.mark.parametrize("crit", [["exp"], ["b64"], []])
async def test_a_head_that_has_to_be_understood_is_refused(
    issuer: FakeIssuer, verifier: JwtVerifier, crit: list[str]
) -> None:
    assert "another purpose" in (await refusal(verifier, issuer.token(head={"crit": crit, "exp": 7}))).message


@pytest.mark.parametrize(
    "head",
    [
        {"kid": 7},
        {"kid": ["first"]},
        {"kid": "second"},
        {"jwk": {"kty": "oct"}, "kid": "mine"},
        {"jku": "https://evil.example/jwks", "kid": "mine"},
        {"x5u": 7},
    ],
)
async def test_a_head_that_brings_or_names_another_key_is_refused(
    issuer: FakeIssuer, verifier: JwtVerifier, head: dict[str, Any]
) -> None:
    await refusal(verifier, issuer.token(head=head))
    assert issuer.asked.count("/jwks") <= 1


async def test_a_token_is_bounded(issuer: FakeIssuer, verifier: JwtVerifier) -> None:
    assert await verifier.claims(issuer.token(groups="a" * 5000))
    await refusal(verifier, issuer.token(groups="a" * MAX_JWT_CHARS))


@pytest.mark.case("B19")
async def test_another_key_of_the_same_name_is_refused(issuer: FakeIssuer, verifier: JwtVerifier) -> None:
    stranger = RSAKey.import_key({**rsa_key("second").as_dict(private=True), "kid": "first"})
    assert "signature" in (await refusal(verifier, issuer.token(key=stranger))).message


async def test_no_change_of_a_token_is_accepted(issuer: FakeIssuer, verifier: JwtVerifier) -> None:
    text = issuer.token()
    head, payload, signature = text.split(".")
    for changed in (
        f"{head}.{part({'iss': issuer.url, 'aud': AUDIENCE, 'sub': 'eve', 'exp': int(time.time()) + 300})}.{signature}",
        f"{head}.{payload}.{signature[:-4]}",
        f"{head}.{payload}.",
        f"{head}..{signature}",
        f"{head}.{payload}.{signature}.{signature}",
        f"{head}.{payload}.{signature}=",
        f" {text}",
        f"{text}\n",
        text.swapcase(),
    ):
        await refusal(verifier, changed)
    assert await verifier.claims(text)


async def test_a_payload_that_two_readers_could_take_for_two_things_is_refused(
    issuer: FakeIssuer, verifier: JwtVerifier
) -> None:
    await refusal(verifier, issuer.token(sub="a\0b"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="ascii"), max_size=99) | st.from_regex(r"[\w-]{1,40}(\.[\w-]{0,40}){0,4}"))
async def test_no_other_text_is_accepted(verifier: JwtVerifier, text: str) -> None:
    await refusal(verifier, text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["alg", "b64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
HEADS = JSON | st.fixed_dictionaries(
    {"alg": st.just("RS256") | JSON}, optional=dict.fromkeys(("kid", "typ", "b64", "crit", "jwk", "x5c"), JSON)
)
CLAIMS = JSON | st.dictionaries(st.sampled_from(["iss", "aud", "exp", "nbf", "iat", "sub", "cnf", "jti"]), JSON)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head=HEADS, payload=CLAIMS)
@example(head=["alg"], payload={})
@example(head="alg", payload={})
async def test_no_head_and_no_claims_of_any_kind_raise_anything_else(
    issuer: FakeIssuer, verifier: JwtVerifier, head: Any, payload: Any
) -> None:
    """Whatever JSON a stranger writes; and what the issuer itself signed, but for whom it lets in by that."""
    signature = issuer.token().rpartition(".")[2]
    await no_claims(verifier, f"{part(head)}.{part(payload)}.{signature}")
    if isinstance(payload, dict):
        await refusal(verifier, issuer.token(**{"aud": "somebody-else", **payload, "iss": None}))


async def no_claims(verifier: JwtVerifier, text: str) -> None:
    """An unknown key is not looked for twice in half a minute, and nobody is told that it is not there."""
    with pytest.raises(ApiError) as caught:
        await verifier.claims(text)
    assert caught.value.code in ("invalid_token", "token_expired", "node_unavailable")


async def test_a_key_that_may_be_new_is_nobodys_wrong_token(issuer: FakeIssuer, verifier: JwtVerifier) -> None:
    assert await verifier.claims(issuer.token())
    issuer.rotate("second")
    with pytest.raises(ApiError) as caught:
        await verifier.claims(issuer.token())
    error = caught.value
    assert (error.code, error.status) == ("node_unavailable", 503) and error.retry_after is not None
    assert 20 < error.retry_after <= 30


async def test_an_issuer_that_cannot_be_asked_is_nobodys_wrong_token(issuer: FakeIssuer, verifier: JwtVerifier) -> None:
    text = issuer.token()
    await issuer.stop()
    with pytest.raises(ApiError) as caught:
        await verifier.claims(text)
    assert (caught.value.code, caught.value.status) == ("node_unavailable", 503)


def part(value: Any) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
