"""The anonymous door: pages on listed origins are let in without a name, and the others are told why not."""

from __future__ import annotations

import pytest

from edge.doors import anonymous
from edge.doors.pages import Page
from edge.plans import built_in
from edge.principals import Principal, anonymous_id, day_of, link_id
from shared.contract.errors import ApiError
from tests.pair import ORIGIN, Pair

SECRET = b"s" * 32
APP = "https://app.example.com"
ALLOWED = [APP, "http://127.0.0.1:8700"]


def enter(
    origin: str | None, fetch_site: str | None = "cross-site", ip: str = "203.0.113.7", day: int = 20_000
) -> Principal:
    page, plan = Page(origin, fetch_site), built_in()["anonymous"]
    return anonymous.enter(page, ip=ip, allowed_origins=ALLOWED, plan=plan, secret=SECRET, day=day)


@pytest.mark.parametrize("fetch_site", [None, "same-origin", "same-site", "cross-site"])
@pytest.mark.parametrize("origin", ALLOWED)
def test_a_listed_origin_gets_in(origin: str, fetch_site: str | None) -> None:
    principal = enter(origin, fetch_site)
    assert (principal.kind, principal.plan, principal.scopes) == ("anonymous", "anonymous", ("chat",))
    assert principal.origin == origin
    assert len(principal.id) == 22


@pytest.mark.case("B29")
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


def test_nobody_is_let_in_whom_nobody_counts() -> None:
    """While the store cannot count, an anonymous caller would have no limit."""
    page, plan = Page(APP, None), built_in()["anonymous"]
    for counted, code in ((False, "overloaded"), (True, None)):
        try:
            anonymous.enter(
                page, ip="203.0.113.7", allowed_origins=ALLOWED, plan=plan, secret=SECRET, day=1, counted=counted
            )
        except ApiError as error:
            assert (error.code, error.status) == (code, 503) and error.retry_after
        else:
            assert code is None


def test_a_program_may_come_without_a_page_where_it_shows_who_it_is() -> None:
    assert Page(None, None).listed_or_program(ALLOWED) is None
    assert Page(APP, "cross-site").listed_or_program(ALLOWED) == APP
    for page in (Page(None, "same-origin"), Page("https://evil.example", None), Page(APP, "none")):
        with pytest.raises(ApiError, match=r"edge\.allowed_origins"):
            page.listed_or_program(ALLOWED)


def test_what_a_browser_says_is_read_from_its_headers() -> None:
    headers = [(b"host", b"x"), (b"origin", APP.encode()), (b"sec-fetch-site", b"same-site"), (b"accept", b"*/*")]
    assert Page.read(headers) == Page(APP, "same-site")
    assert Page.read([]) == Page(None, None)
    assert Page.read([(b"origin", APP.encode()), (b"origin", b"null")]).origin == APP
    assert Page.read([(b"origin", b"https://\xe9")]).origin == "https://é"


async def test_the_door_is_shut_while_the_store_cannot_count(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await pair.token()
    monkeypatch.setattr(type(pair.edge.services.store), "answering", property(lambda store: False))
    url, headers = pair.url + "/v1/token", {"Origin": ORIGIN}
    async with pair.client.post(url, json={}, headers=headers) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (503, "overloaded")
        assert int(response.headers["Retry-After"]) > 0
    async with pair.post("/v1/token", {}) as response:
        assert response.status == 200, "a key still opens"
