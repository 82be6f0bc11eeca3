"""Bodies and credentials that mean harm: refused with the right code, quoting nothing, the node untouched."""

from __future__ import annotations

import base64
import json
import string
import time
import uuid
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import pytest
import pytest_asyncio
from itsdangerous import Signer

from edge.principals import Principal
from edge.tokens import Tokens
from shared.state import StateDir
from tests.fake_runtime import FakeRuntime
from tests.invariants import unharmed
from tests.pair import ORIGIN, Pair, from_elsewhere, question
from tests.raw_http import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="module")

NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"
MIB = 1 << 20
SECRET = "a sentence that nobody may see again"


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_is_left(shared_pair: Pair) -> AsyncIterator[None]:
    async with unharmed(shared_pair):
        yield


async def refused(
    pair: Pair, path: str, body: bytes, headers: dict[str, str] | None = None, method: str = "POST"
) -> tuple[int, dict[str, Any]]:
    """(status, error) of a raw body with the owner's key."""
    headers = {"Content-Type": "application/json", **from_elsewhere(), **pair.bearer(), **(headers or {})}
    async with await RawClient.connect(pair.url) as raw:
        await raw.request(method, path, headers, body)
        head = await raw.head()
        answer = await raw.json()
        assert head.headers["x-request-id"] == answer["request_id"]
        return head.status, answer["error"]


def said(content: str) -> bytes:
    return b'{"messages":[{"role":"user","content":%s}]}' % content.encode()


@pytest.mark.case("A1", "A2", "A4", "A5", "A13")
@pytest.mark.parametrize("path", [NATIVE, OPENAI, "/v1/token"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{", id="cut"),
        pytest.param(b"not json", id="text"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'"text"', id="string"),
        pytest.param(b"null", id="null"),
        pytest.param(b"5", id="number"),
        pytest.param(b"{} {}", id="two values"),
        pytest.param(b"{'messages': []}", id="single quotes"),
        pytest.param(b'{"a":' * 65 + b"1" + b"}" * 65, id="65 levels"),
        pytest.param(b'{"a":[NaN]}', id="NaN"),
        pytest.param(b'{"a":Infinity}', id="Infinity"),
        pytest.param(b'{"a":-Infinity}', id="-Infinity"),
        pytest.param(b'{"a":1e400}', id="beyond a double"),
        pytest.param(b'{"a":1,"a":2}', id="duplicate key"),
        pytest.param(b'{"a":{"b":1,"b":2}}', id="duplicate key below"),
        pytest.param(b'{"a":1,"\\u0061":2}', id="duplicate key, escaped"),
        pytest.param(b'{"a":"\xff"}', id="invalid UTF-8"),
        pytest.param(b'{"a":"\xed\xa0\x80"}', id="surrogate in UTF-8"),
        pytest.param(b'{"a":"\\ud800"}', id="lone surrogate"),
        pytest.param(b'{"a":"\\udc00\\ud800"}', id="surrogates swapped"),
        pytest.param(b'{"\\ud800":1}', id="lone surrogate in a key"),
        pytest.param(b'{"a":"\\u0000"}', id="NUL"),
        pytest.param(b'{"a":"\x00"}', id="raw NUL"),
        pytest.param(b'{"a":"\n"}', id="raw line break"),
        pytest.param('{"a":1}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'\xef\xbb\xbf{"a":1}', id="BOM"),
        pytest.param(b'{"a":01}', id="leading zero"),
        pytest.param(b'{"a":1,}', id="trailing comma"),
    ],
)
async def test_what_is_not_one_plain_json_object(
    shared_pair: Pair, shared_runtime: FakeRuntime, path: str, body: bytes
) -> None:
    status, error = await refused(shared_pair, path, body)
    assert (status, error["type"], error["code"]) == (400, "invalid_request_error", "invalid_json")
    assert not shared_runtime.chats


@pytest.mark.case("A3", "A4")
@pytest.mark.parametrize("path", [NATIVE, OPENAI])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 100_000, id="lists"),
        pytest.param(b'{"a":' * 100_000, id="objects"),
        pytest.param(b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="closed lists"),
        pytest.param(b'{"metadata":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, id="closed objects"),
        pytest.param(b'{"seed":' + b"9" * 5000 + b"}", id="5,000 digits"),
    ],
)
async def test_depth_and_digits(shared_pair: Pair, shared_runtime: FakeRuntime, path: str, body: bytes) -> None:
    status, error = await refused(shared_pair, path, body)
    assert (status, error["code"]) == (400, "invalid_json")
    assert not shared_runtime.chats


@pytest.mark.case("A18")
@pytest.mark.parametrize("path", [NATIVE, OPENAI])
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_tokens", [0, -1, 1_000_001, 1e308, True, "5", 1.5, [], {}]),
        ("temperature", [-0.1, 2.1, 1e308, "hot", True, []]),
        ("top_p", [0, -1, 1.1, "x", True]),
        ("stop", [["a"] * 5, [""], ["x" * 65], [1], 5, {}, ""]),
        ("seed", [2**63, -(2**63) - 1, 1.5, "x", True]),
        ("stream", ["yes", 1, 0, [], "true"]),
        ("model", ["", "has space", "x" * 257, 5, [], "new\nline"]),
        ("messages", [[], {}, "hi", None, [5], [{}], [{"role": "user"}], [{"content": "x"}]]),
        (
            "messages",
            [[{"role": "tool", "content": "x"}], [{"role": "", "content": "x"}], [{"role": 5, "content": "x"}]],
        ),
        (
            "messages",
            [[{"role": "user", "content": None}], [{"role": "user", "content": 5}], question()["messages"] * 513],
        ),
        ("metadata", [[], "x", 5]),
    ],
)
async def test_values_out_of_bounds(
    shared_pair: Pair, shared_runtime: FakeRuntime, path: str, field: str, values: list[Any]
) -> None:
    for value in values:
        status, error = await refused(shared_pair, path, json.dumps(question(**{field: value})).encode())
        assert (status, error["code"]) == (400, "invalid_request"), value
        assert error["param"].split(".")[0] == field
        assert error["message"]
    assert not shared_runtime.chats


@pytest.mark.case("A18")
@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (NATIVE, {"n_discard": -1}, "n_discard"),
        (NATIVE, {"chat_template": "{{ x }}"}, "chat_template"),
        (NATIVE, {"system": SECRET}, "system"),
        (NATIVE, {"messages": [{"role": "user", "content": "x", "name": "ann"}]}, "messages.0.name"),
        (NATIVE, {"chat_type": "x" * 65}, "chat_type"),
        (NATIVE, {"chatType": 5}, "chatType"),
        (NATIVE, {"client_id": "a b"}, "client_id"),
        (NATIVE, {"clientId": "x" * 65}, "clientId"),
        (NATIVE, {"metadata": {"city": "x" * 4096}}, "metadata"),
        (OPENAI, {"n": 2}, "n"),
        (OPENAI, {"n": 10**9}, "n"),
        (OPENAI, {"max_completion_tokens": 0}, "max_completion_tokens"),
        (OPENAI, {"stream_options": []}, "stream_options"),
        (OPENAI, {"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        (OPENAI, {"user": 5}, "user"),
        ("/v1/token", {"messages": []}, "messages"),
        ("/v1/token", {"invite": "hli_x"}, "invite"),
    ],
)
async def test_fields_that_are_unknown_or_of_a_wrong_type(
    shared_pair: Pair, shared_runtime: FakeRuntime, path: str, fields: dict[str, Any], param: str
) -> None:
    body = fields if path == "/v1/token" else question(**fields)
    status, error = await refused(shared_pair, path, json.dumps(body).encode())
    assert (status, error["code"], error["param"]) == (400, "invalid_request", param)
    assert not shared_runtime.chats


async def test_a_refusal_never_quotes_what_was_said(shared_pair: Pair) -> None:
    for body in (
        {"messages": [{"role": SECRET, "content": SECRET}]},
        {"messages": [{"role": "user", "content": {"a": SECRET}}]},
        {"messages": SECRET},
        question(SECRET, stop=[SECRET * 9]),
        question(SECRET, temperature=SECRET),
    ):
        for path in (NATIVE, OPENAI):
            _, error = await refused(shared_pair, path, json.dumps(body).encode())
            assert SECRET not in json.dumps(error)
    _, error = await refused(shared_pair, NATIVE, said('"' + SECRET) + b'"')
    assert SECRET not in json.dumps(error)


@pytest.mark.case("A15", "A16")
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": ""},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "br"},
        {"Content-Encoding": "identity, gzip"},
    ],
)
async def test_another_media_type(shared_pair: Pair, shared_runtime: FakeRuntime, headers: dict[str, str]) -> None:
    for path in (NATIVE, OPENAI, "/v1/token"):
        status, error = await refused(shared_pair, path, said('"hi"'), headers)
        assert (status, error["code"]) == (415, "unsupported_media_type")
    assert not shared_runtime.chats


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/json;charset=UTF-8"]
)
async def test_json_by_other_spellings_is_json(shared_pair: Pair, kind: str) -> None:
    async with await RawClient.connect(shared_pair.url) as raw:
        await raw.request("POST", NATIVE, {"Content-Type": kind, **shared_pair.bearer()}, said('"hi"'))
        assert (await raw.head()).status == 200


@pytest.mark.case("A6")
async def test_a_body_over_the_limit(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    fitting = said('"hi"').ljust(MIB)
    headers = {"Content-Type": "application/json", **from_elsewhere(), **shared_pair.bearer()}
    async with await RawClient.connect(shared_pair.url) as raw:
        await raw.request("POST", OPENAI, headers, fitting)
        assert (await raw.head()).status == 200
    shared_runtime.chats.clear()
    for path, size in ((NATIVE, MIB), (OPENAI, MIB), ("/v1/token", 4096)):
        async with await RawClient.connect(shared_pair.url) as raw:  # the length alone is enough, nothing is read
            await raw.request("POST", path, {"Content-Length": str(size + 1), **headers})
            head = await raw.head()
            assert (head.status, (await raw.json())["error"]["code"]) == (413, "payload_too_large")
    assert not shared_runtime.chats


@pytest.mark.case("A6")
@pytest.mark.parametrize(("path", "limit"), [(NATIVE, MIB), ("/v1/token", 4096)])
async def test_a_chunked_body_over_the_limit_is_refused_while_it_is_read(
    shared_pair: Pair, path: str, limit: int
) -> None:
    headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked", **shared_pair.bearer()}
    headers |= from_elsewhere()
    async with await RawClient.connect(shared_pair.url) as raw:
        await raw.request("POST", path, headers)
        await raw.send((b"1000\r\n" + b"x" * 4096 + b"\r\n") * (limit // 4096))
        await raw.send(b"1\r\nx\r\n")  # one byte over it, and no end of the body
        head = await raw.head()
        assert (head.status, (await raw.json())["error"]["code"]) == (413, "payload_too_large")


# -- credentials ------------------------------------------------------------------------------------------------------


def _signed(pair: Pair, salt: bytes, claims: dict[str, Any]) -> str:
    keys = pair.edge.services.store.records.signing_keys.verifying
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    signer = Signer(keys, salt=salt, key_derivation="hmac", digest_method=sha256)
    return "hlt_" + signer.sign(payload).decode()


def _tokens(pair: Pair, at: float = 0.0, keys: list[str] | None = None) -> str:
    """A token of the edge's own making, as if minted ``at`` seconds from now."""
    tokens = Tokens(keys or pair.edge.services.store.records.signing_keys.verifying, 600, now=lambda: time.time() + at)
    return tokens.mint(Principal("somebody", "token", "owner", ("chat",)))[0]


def _other_last(token: str) -> list[str]:
    """The same signature bits with other spare bits at the end, which lenient decoders read as the same."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    at = alphabet.index(token[-1])
    return [token[:-1] + alphabet[at ^ spare] for spare in (1, 2, 3)]


async def status_of(pair: Pair, authorization: str, method: str = "GET", path: str = "/v1/me", **headers: str) -> Any:
    async with await RawClient.connect(pair.url) as raw:
        await raw.request(method, path, {"Authorization": authorization, **headers})
        head = await raw.head()
        answer = await raw.json()
        if head.status == 401:
            assert head.headers["www-authenticate"].startswith("Bearer")
        return head.status, answer.get("error", {}).get("code")


@pytest.mark.case("B24")
async def test_a_token_of_ours_opens(shared_pair: Pair) -> None:
    """What makes the refusals below mean something."""
    assert await status_of(shared_pair, f"Bearer {_tokens(shared_pair)}") == (200, None)
    claims = {"sub": "a", "kind": "token", "plan": "owner", "scp": ["chat"], "jti": "j", "iat": 1, "exp": 2**40}
    assert await status_of(shared_pair, f"Bearer {_signed(shared_pair, b'hearthlink.access.v1', claims)}") == (
        200,
        None,
    )
    assert await status_of(shared_pair, f"bearer {_tokens(shared_pair, at=20)}") == (200, None)  # a clock that is ahead


@pytest.mark.case("B19", "B20", "B21", "B22")
async def test_tokens_that_are_forged_or_for_something_else(shared_pair: Pair) -> None:
    token = _tokens(shared_pair)
    payload, _, signature = token.removeprefix("hlt_").rpartition(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    richer = base64.urlsafe_b64encode(json.dumps(claims | {"sub": "root"}).encode()).rstrip(b"=").decode()
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    bad = [
        _tokens(shared_pair, keys=["another key"]),
        f"hlt_{richer}.{signature}",
        _signed(shared_pair, b"hearthlink.invite.v1", claims),
        _signed(shared_pair, b"itsdangerous.Signer", claims),
        f"{unsigned}.{payload}.",
        f"hlt_{unsigned}.{payload}.",
        *_other_last(token),
        token + "=",
        token + "A",
        token[:-1],
        token[4:],
        token.upper(),
        token.replace("hlt_", "hli_"),
        token.replace(".", "%2e"),
        token.replace(".", ".."),
        f"hlt_{payload}=.{signature}",
        f"hlt_{payload[:5]}-{payload[5:]}.{signature}",
        "hlt_" + "A" * 4096 + "." + signature,
        "hlt_.",
        "hlt_",
        "' OR 1=1 --",
        shared_pair.key[:-1],
        shared_pair.key + "A",
        shared_pair.key.upper(),
        shared_pair.key[:-43] + "A" * 43,
        "hlk_000000000000_" + "A" * 43,
        StateDir(shared_pair.state).node_token(),
    ]
    for text in bad:
        assert await status_of(shared_pair, f"Bearer {text}") == (401, "invalid_token"), text


@pytest.mark.case("B23", "B24")
async def test_tokens_of_another_time(shared_pair: Pair) -> None:
    assert await status_of(shared_pair, f"Bearer {_tokens(shared_pair, at=-601)}") == (401, "token_expired")
    assert await status_of(shared_pair, f"Bearer {_tokens(shared_pair, at=300)}") == (401, "invalid_token")


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic YTpi", "Token x", "Bearer a b", "Bearer a,b", "\xff"]
)
async def test_another_scheme(shared_pair: Pair, header: str) -> None:
    assert await status_of(shared_pair, header) == (401, "invalid_token")


async def test_two_credentials_are_one_too_many(shared_pair: Pair) -> None:
    both = await status_of(shared_pair, f"Bearer {shared_pair.key}", **{"X-API-Key": shared_pair.key})
    assert both == (400, "invalid_request")


@pytest.mark.case("B28")
async def test_a_credential_in_the_url_gives_no_token(shared_pair: Pair) -> None:
    for query in ("invite=hli_x", f"key={shared_pair.key}"):
        for credential in ({}, shared_pair.bearer()):
            url = f"{shared_pair.url}/v1/token?{query}"
            async with shared_pair.client.post(url, json={}, headers={"Origin": ORIGIN, **credential}) as response:
                assert response.status == 400, query


@pytest.mark.case("B28")
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_credential_in_the_url_is_refused(shared_pair: Pair, method: str) -> None:
    path = {"GET": "/v1/me", "POST": NATIVE, "DELETE": NATIVE + "/" + uuid.uuid4().hex}[method]
    for query in (
        f"token={_tokens(shared_pair)}",
        "access_token=x",
        f"api_key={shared_pair.key}",
        "a=1&apikey=x",
        f"q={shared_pair.key}",
        "HLT_x=1",
        "x=hln_y",
    ):
        status, code = await status_of(shared_pair, f"Bearer {shared_pair.key}", method, f"{path}?{query}")
        assert (status, code) == (400, "invalid_request"), query
    assert shared_pair.key not in json.dumps(shared_pair.audit)


@pytest.mark.case("B29")
@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "http://evil.test",
        ORIGIN + ".evil.test",
        ORIGIN.upper(),
        ORIGIN + ":81",
        ORIGIN + "/",
        "https" + ORIGIN[4:],
    ],
)
async def test_only_pages_on_a_listed_origin_get_a_token(shared_pair: Pair, origin: str | None) -> None:
    headers = from_elsewhere() | ({"Origin": origin} if origin is not None else {})
    async with shared_pair.client.post(shared_pair.url + "/v1/token", json={}, headers=headers) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (403, "origin_not_allowed")
        assert "edge.allowed_origins" in error["message"]


async def test_an_address_typed_by_a_person_gets_no_token(shared_pair: Pair) -> None:
    for site, status in (("none", 403), ("cross-site", 200), ("same-origin", 200), ("nonsense", 403)):
        headers = {"Origin": ORIGIN, "Sec-Fetch-Site": site, **from_elsewhere()}
        async with shared_pair.client.post(shared_pair.url + "/v1/token", json={}, headers=headers) as response:
            assert response.status == status, site


@pytest.mark.case("B29")
async def test_a_pages_token_is_locked_to_its_origin(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    token = await shared_pair.token()
    for origin, status in ((None, 403), ("http://evil.test", 403), ("null", 403), (ORIGIN, 200)):
        headers = {} if origin is None else {"Origin": origin}
        async with shared_pair.post(NATIVE, question(), key=token, headers=headers) as response:
            assert response.status == status
            if status == 403:
                assert (await response.json())["error"]["code"] == "origin_not_allowed"
    assert len(shared_runtime.chats) == 1
    for origin, status in ((None, 200), ("http://evil.test", 403)):  # a browser sends no Origin with its own GET
        headers = {} if origin is None else {"Origin": origin}
        async with shared_pair.get("/v1/me", key=token, headers=headers) as response:
            assert response.status == status
