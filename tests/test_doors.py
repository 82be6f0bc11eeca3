"""Doors: who is let in without a name, who with a key, and what the others are told."""

from __future__ import annotations

import pytest

from edge.doors import anonymous, api_key
from edge.doors.credentials import credential
from edge.plans import built_in
from edge.principals import Principal, anonymous_id, day_of, link_id
from shared.contract.errors import ApiError

SECRET = b"s" * 32
APP = "https://app.example.com"
ALLOWED = [APP, "http://127.0.0.1:8700"]


def enter(
    origin: str | None, fetch_site: str | None = "cross-site", ip: str = "203.0.113.7", day: int = 20_000
) -> Principal:
    plan = built_in()["anonymous"]
    return anonymous.enter(origin, fetch_site, ip=ip, allowed_origins=ALLOWED, plan=plan, secret=SECRET, day=day)


@pytest.mark.parametrize("fetch_site", [None, "same-origin", "same-site", "cross-site"])
@pytest.mark.parametrize("origin", ALLOWED)
def test_a_listed_origin_gets_in(origin: str, fetch_site: str | None) -> None:
    principal = enter(origin, fetch_site)
    assert (principal.kind, principal.plan, principal.scopes) == ("anonymous", "anonymous", ("chat",))
    assert principal.origin == origin
    assert len(principal.id) == 22


@pytest.mark.parametrize(
    "origin",
    [None, "", "null", "https://evil.example", APP + "/", APP + ":443", APP + ".evil.example",
     "https://evil.example#" + APP, "https://APP.example.com", "http://app.example.com", "https://a.app.example.com", "https://app.example.com:8443",
     "http://127.0.0.1", "http://localhost:8700", "*", APP + " ", f"{APP}, {APP}", "https://app.example.com\0"],
)  # fmt: skip
def test_any_other_origin_is_refused_and_told_the_setting(origin: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        enter(origin)
    assert (caught.value.code, caught.value.status) == ("origin_not_allowed", 403)
    assert "edge.allowed_origins" in caught.value.message


@pytest.mark.parametrize("fetch_site", ["none", "", "Same-Origin", "cross-site, none"])
def test_a_listed_origin_that_no_page_sent_is_refused(fetch_site: str) -> None:
    with pytest.raises(ApiError, match="Sec-Fetch-Site"):
        enter(APP, fetch_site)


def test_only_what_looks_like_an_origin_is_shown() -> None:
    with pytest.raises(ApiError, match=r"https://evil\.example"):
        enter("https://evil.example")
    with pytest.raises(ApiError) as caught:
        enter("https://x\r\nset-cookie: <script>")
    assert "script" not in caught.value.message and "\n" not in caught.value.message


def test_a_fresh_token_is_not_a_fresh_caller() -> None:
    assert enter(APP).id == enter(APP).id
    assert enter(APP, ip="2001:db8:1:2::7").id == enter(APP, ip="2001:db8:1:2:aaaa::9").id  # one customer's /64
    assert enter(APP, ip="::ffff:203.0.113.7").id == enter(APP).id


def test_callers_differ_by_address_origin_day_and_secret() -> None:
    ids = {
        enter(APP).id,
        enter("http://127.0.0.1:8700").id,
        enter(APP, ip="203.0.113.8").id,
        enter(APP, ip="2001:db8:1:3::7").id,
        enter(APP, day=20_001).id,
        anonymous_id(b"t" * 32, "203.0.113.7", APP, 20_000),
        link_id(SECRET, enter(APP).id),
    }
    assert len(ids) == 7


def test_a_node_sees_a_stable_pseudonym() -> None:
    seen_by_the_node = link_id(SECRET, "someone@example.com")
    assert seen_by_the_node == link_id(SECRET, "someone@example.com") != link_id(b"t" * 32, "someone@example.com")
    assert len(seen_by_the_node) == 22 and "someone" not in seen_by_the_node


def test_the_day_turns_at_midnight_utc() -> None:
    assert day_of(86_399.999) == 0
    assert day_of(86_400.0) == 1


@pytest.mark.parametrize(
    ("authorization", "key", "found"),
    [
        (None, None, None),
        ("Bearer hlt_abc.def", None, "hlt_abc.def"),
        ("bearer  hlk_abc", None, "hlk_abc"),
        (None, "hlk_abc", "hlk_abc"),
    ],
)
def test_one_credential_is_found(authorization: str | None, key: str | None, found: str | None) -> None:
    assert credential(authorization, key) == found


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "hlt_abc",
        "Bearer a b",
        "Bearer a,Bearer b",
        "Bearer a\n",
        "Bearer\ta",
    ],
)
def test_other_authorization_is_refused(authorization: str) -> None:
    with pytest.raises(ApiError) as caught:
        credential(authorization, None)
    assert caught.value.code == "invalid_token"
    assert "dXNlcjpwYXNz" not in caught.value.message


def test_two_credentials_are_refused_even_when_they_agree() -> None:
    with pytest.raises(ApiError) as caught:
        credential("Bearer hlk_abc", "hlk_abc")
    assert caught.value.code == "invalid_request"
    assert "hlk_abc" not in caught.value.message


def test_the_door_for_keys() -> None:
    holder = Principal("key_0123456789ab", "key", "owner", ("chat",))
    assert api_key.enter("hlk_anything", {"hlk_anything": holder}.__getitem__) is holder


@pytest.mark.parametrize(
    ("shown", "code"), [(None, "missing_token"), ("hlt_abc", "invalid_token"), ("", "invalid_token")]
)
def test_the_door_for_keys_looks_up_only_keys(shown: str | None, code: str) -> None:
    def never(text: str) -> Principal:
        raise AssertionError("looked up what is no key")

    with pytest.raises(ApiError) as caught:
        api_key.enter(shown, never)
    assert (caught.value.code, caught.value.status) == (code, 401)
