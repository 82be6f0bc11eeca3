"""The door for people of the tailnet: what a grant gives, who is believed, and where nobody is."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import json
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from edge import serve_listener
from edge.api.caller import plan_of
from edge.app import Edge, run_edge
from edge.client_address import UNKNOWN, behind_serve
from edge.doors.grants import Granted, example, merge, read
from edge.plans import LIMITS, Plan, built_in
from edge.principals import Principal, address_block, tailnet_id
from edge.store.records import Maintenance
from edge.store.sqlite import invites
from edge.store.sqlite.database import open_for_admin
from edge.tokens import Tokens
from shared.asgi import listening
from shared.asgi.listener import CannotListen, Listener
from shared.state import StateDir
from tests.fake_localapi import FakeLocalAPI, text
from tests.pair import ANY_PORT, ORIGIN, create_key, settings_for
from tests.tailnet.shapes import whois
from tests.waiting import HANGS, wait_until

CAPABILITY = "hearthlink.internal/cap/tester"
LOGIN = "anna@example.com"
PHONE = "100.64.0.7"
NAME = "edge.tail.test"
PLANS = {
    **built_in(),
    "beta": Plan("beta", 30, 2, 50_000, 512, models=("small",)),
    "gamma": Plan("gamma", 30, 2, 50_000, 512, models=("large", "huge"), chat_types=("poet",)),
}

# -- what a grant gives -----------------------------------------------------------------------------------------------

limits = st.dictionaries(st.sampled_from(LIMITS), st.one_of(st.integers(0, 10**12), st.just("unlimited")))
values = st.fixed_dictionaries(
    {},
    optional={
        "plan": st.sampled_from(sorted(PLANS)),
        "roles": st.lists(st.sampled_from(["chat", "admin"]), max_size=3),
        "role": st.sampled_from(["chat", "admin"]),
        "limits": limits,
    },
)
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["plan", "roles", "role", "limits", "x", *LIMITS]), inner, max_size=3),
    ),
    max_leaves=8,
)


def at_least(more: Granted, less: Granted) -> bool:
    def reaches(name: str) -> bool:
        most, least = more.limits[name], less.limits[name]
        return most is None or (least is not None and most >= least)

    def lists(granted: Granted) -> Plan:
        return functools.reduce(Plan.with_lists_of, granted.plans)

    together = lists(more).with_lists_of(lists(less))
    return more.scopes >= less.scopes and all(map(reaches, LIMITS)) and lists(more) == together


@given(st.lists(values, min_size=1, max_size=4))
def test_each_grant_adds_and_their_order_says_nothing(granted: list[dict[str, Any]]) -> None:
    merged = merge(granted, PLANS).granted
    assert merged is not None
    assert all(merge(order, PLANS).granted == merged for order in itertools.permutations(granted))
    assert all(at_least(merged, read(value, PLANS)) for value in granted)
    for name in LIMITS:
        assert merged.limits[name] in [read(value, PLANS).limits[name] for value in granted]


@given(values, st.lists(junk, max_size=3))
def test_what_is_not_understood_gives_nothing(value: dict[str, Any], others: list[object]) -> None:
    good = [other for other in others if not merge([other], PLANS).faults]
    merged = merge([value, *others], PLANS)
    assert len(merged.faults) == len(others) - len(good)
    assert merged.granted == merge([value, *good], PLANS).granted


def test_a_grant_without_a_value_gives_nothing() -> None:
    assert merge([], PLANS).granted is None


def test_what_a_value_leaves_out_is_the_plans() -> None:
    assert read({}, PLANS) == Granted((PLANS["member"],), frozenset({"chat"}), PLANS["member"].limits())
    beta = read({"plan": "beta", "limits": {"streams": 9, "tokens_per_day": "unlimited"}}, PLANS)
    assert beta.limits == {**PLANS["beta"].limits(), "streams": 9, "tokens_per_day": None}


def test_a_role_counts_where_the_plan_may_hold_it() -> None:
    assert read({"plan": "owner", "roles": ["admin"]}, PLANS).scopes == {"chat", "admin"}
    assert read({"plan": "owner"}, PLANS).scopes == {"chat"}
    assert read({"plan": "beta", "roles": ["chat", "admin"]}, PLANS).scopes == {"chat"}
    with pytest.raises(ValueError, match="may not hold"):
        read({"plan": "mute"}, {**PLANS, "mute": Plan("mute", scopes=())})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("member", "no object"),
        ({"plan": "delta"}, "no plan 'delta' here: there are anonymous, beta, gamma, member, owner"),
        ({"plan": ["beta"]}, "no plan"),
        ({"limit": {"streams": 1}}, "'limit' is no field"),
        ({"roles": "admin"}, "roles are not understood"),
        ({"roles": ["root"]}, "roles are not understood"),
        ({"limits": [1]}, "limits are no object"),
        ({"limits": {"stream": 1}}, "'stream' is no limit"),
        ({"limits": {"streams": "2"}}, "limit streams is not understood"),
        ({"limits": {"streams": None}}, "limit streams is not understood"),
        ({"limits": {"streams": True}}, "limit streams is not understood"),
        ({"limits": {"streams": -1}}, "limit streams is not understood"),
    ],
)
def test_a_fault_is_named(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(value, PLANS)


def test_the_example_for_a_policy_is_read_as_a_grant() -> None:
    line = example(LOGIN, "tag:edge", 443, CAPABILITY)
    assert (line["src"], line["dst"], line["ip"]) == ([LOGIN], ["tag:edge"], ["tcp:443"])
    assert example("anna", "tag:edge", 443, CAPABILITY)["src"] == ["anna@"]
    assert example("autogroup:member", "tag:edge", 443, CAPABILITY)["src"] == ["autogroup:member"]
    assert merge(line["app"][CAPABILITY], PLANS).granted == read({"plan": "member"}, PLANS)


# -- what the token carries -------------------------------------------------------------------------------------------


def test_the_limits_travel_in_the_token() -> None:
    tokens = Tokens(["k" * 43], 600)
    given_limits = {"requests_per_minute": 30, "streams": None, "tokens_per_day": 0, "tokens_per_request": 10**12}
    person = Principal(tailnet_id(b"s", LOGIN), "tailnet", "beta", ("chat", "admin"), limits=given_limits)
    assert tokens.verify(tokens.mint(person)[0]).limits == given_limits
    assert tokens.verify(tokens.mint(Principal("a", "key", "beta", ("chat",)))[0]).limits is None


def test_what_grants_give_together_fits_into_a_token() -> None:
    """Plans are named by 32 characters, tailnets by 63 in each part of a name."""
    plans = {f"{number:032}": Plan(f"{number:032}", 10**12, 1, 1, 1, models=(f"m{number}",)) for number in range(12)}
    merged = merge([{"plan": name} for name in plans], plans)
    assert merged.granted is not None and len(merged.granted.plans) == 8
    assert "more than 8 plans" in merged.faults[0] and f"{0:032}" in merged.faults[0]
    plan, *more = merged.granted.plans
    origin = f"https://{'a' * 63}.{'b' * 63}.ts.net:65535"
    names = tuple(other.name for other in more)
    person = Principal(
        tailnet_id(b"s", LOGIN), "tailnet", plan.name, ("chat", "admin"), origin=origin,
        limits=dict.fromkeys(LIMITS, 10**12), more_plans=names,
    )  # fmt: skip
    tokens = Tokens(["k" * 43], 600)
    assert tokens.verify(tokens.mint(person)[0]).more_plans == names


def test_a_person_is_a_pseudonym_of_the_login() -> None:
    assert tailnet_id(b"s", LOGIN) == tailnet_id(b"s", LOGIN) != tailnet_id(b"s", "anna@example.org")
    assert "anna" not in tailnet_id(b"s", LOGIN)


# -- whose address it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "caller"),
    [
        ([b"100.64.0.7"], "100.64.0.7"),
        ([b"fd7a:115c:a1e0::0007"], "fd7a:115c:a1e0::7"),
        ([b"100.64.0.7", b"100.64.0.8"], UNKNOWN),
        ([b"100.64.0.7, 100.64.0.8"], UNKNOWN),
        ([b"anna"], UNKNOWN),
        ([b"fe80::1%eth0"], UNKNOWN),
        ([], UNKNOWN),
    ],
)
def test_the_caller_behind_serve(lines: list[bytes], caller: str) -> None:
    assert behind_serve([(b"x-forwarded-for", line) for line in lines]) == caller


def test_machines_of_a_tailnet_are_counted_one_by_one() -> None:
    """A tailnet's IPv6 addresses are often in one /64; elsewhere a /64 is one customer."""
    assert address_block("fd7a:115c:a1e0::7") != address_block("fd7a:115c:a1e0::8")
    assert address_block("2001:db8::7") == address_block("2001:db8::8")


# -- an edge that Serve calls -----------------------------------------------------------------------------------------


@dataclass
class Served:
    """An edge with a listener for Serve, and the tailscaled it asks."""

    edge: Edge
    fake: FakeLocalAPI
    state: Path
    audit: list[dict[str, Any]] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        return self.state / "serve.sock"

    @asynccontextmanager
    async def client(self) -> AsyncIterator[aiohttp.ClientSession]:
        """As tailscaled connects, to the unix socket where there is one."""
        where = self.edge.services.serve
        connector = aiohttp.UnixConnector(str(self.socket)) if where == "unix" else aiohttp.TCPConnector()
        base = "http://localhost" if where == "unix" else f"http://{where}"
        async with aiohttp.ClientSession(base, connector=connector) as client:
            yield client

    async def mint(self, body: Any = None, **changes: str | None) -> tuple[int, dict[str, Any]]:
        """``POST /v1/token`` as Serve passes it on for the phone; ``changes`` are headers, None takes one away."""
        async with self.client() as client:
            headers = passed_on(**changes)
            async with client.post("/v1/token", json={} if body is None else body, headers=headers) as response:
                return response.status, await response.json()

    async def token(self, **changes: str | None) -> str:
        status, answer = await self.mint(**changes)
        assert status == 200, answer
        return answer["token"]

    def grant(self, *values: object, login: str = LOGIN) -> None:
        self.fake.whois[PHONE] = whois(7, "phone", user=2, login=login, capabilities={CAPABILITY: values})


def passed_on(**changes: str | None) -> dict[str, str]:
    """The headers of a page on the phone, as Serve passes them on."""
    headers = {
        "Tailscale-User-Login": LOGIN,
        "Tailscale-User-Name": "Anna",
        "X-Forwarded-For": PHONE,
        "X-Forwarded-Host": NAME,
        "X-Forwarded-Proto": "https",
        "Origin": f"https://{NAME}",
        "Sec-Fetch-Site": "same-origin",
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items() if value is not None}
    gone = {name.replace("_", "-") for name, value in changes.items() if value is None}
    return {name: value for name, value in headers.items() if name not in gone}


def mode_of(path: Path) -> int:
    """0 where nothing is."""
    return path.lstat().st_mode if path.exists() else 0


@asynccontextmanager
async def serving_edge(
    folder: Path, edge: Mapping[str, Any] | None = None, *, capability_version: int = 142, there: bool = True
) -> AsyncIterator[Served]:
    async with contextlib.AsyncExitStack() as stack:
        fake = FakeLocalAPI(folder)
        fake.capability_version = capability_version
        if there:
            await stack.enter_async_context(fake)
        state = folder / "state"
        state.mkdir(mode=0o700, exist_ok=True)
        sections: dict[str, Any] = {
            "edge": {
                "listen": ANY_PORT,
                "ops_listen": ANY_PORT,
                "allowed_origins": [ORIGIN],
                "serve": "unix",
                "upstreams": {"default": {"url": "ws://127.0.0.1:9/link"}},
                **(edge or {}),
            },
            "tailscale": {"socket": str(fake.path)},
            "plans": {"beta": {"requests_per_minute": 1000, "streams": 2, "tokens_per_day": 5000}},
        }
        audit: list[dict[str, Any]] = []
        running = await stack.enter_async_context(
            run_edge(settings_for(state, sections), lambda line: audit.append(dict(line)))
        )
        yield Served(running, fake, state, audit)


@pytest.fixture
def logged() -> Iterator[Callable[[str], list[str]]]:
    """The lines of one module from then on."""
    with contextlib.ExitStack() as stack:

        def listen(module: str) -> list[str]:
            lines: list[str] = []
            stack.callback(logger.remove, logger.add(lines.append, format="{level} {message}", filter=module))
            return lines

        yield listen


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving_edge(tmp_path) as served:
        served.grant({"plan": "beta", "limits": {"streams": 7}})
        yield served


async def test_a_person_is_let_in_with_no_form(served: Served) -> None:
    status, answer = await served.mint()
    assert status == 200
    who = {"id": tailnet_id(served.edge.services.pseudonym_key, LOGIN), "kind": "tailnet", "plan": "beta"}
    assert answer["principal"] == who
    limited = {"requests_per_minute": 1000, "streams": 7, "tokens_per_day": 5000, "tokens_per_request": 4096}
    assert answer["limits"] == limited
    async with served.client() as client:
        headers = passed_on(Authorization=f"Bearer {answer['token']}")
        async with client.get("/v1/me", headers=headers) as response:
            me = await response.json()
    assert (me["principal"], me["scopes"]) == (who, ["chat"])
    assert me["usage"]["streams"]["limit"] == 7
    assert served.audit[0]["login"] == LOGIN, "so that the owner knows who the pseudonym is"


async def test_a_program_of_theirs_needs_no_origin_and_is_locked_to_none(served: Served) -> None:
    token = await served.token(Origin=None, Sec_Fetch_Site=None)
    assert served.edge.services.tokens.verify(token).origin is None
    assert served.edge.services.tokens.verify(await served.token()).origin == f"https://{NAME}"


async def test_a_login_that_is_not_ascii_is_decoded(served: Served) -> None:
    login = "zoë@example.com"
    served.grant({}, login=login)
    assert (await served.mint(Tailscale_User_Login="=?utf-8?q?zo=C3=AB@example.com?="))[0] == 200
    long = "ж" * 40 + "@example.com"
    served.grant({}, login=long)
    words = [f"=?utf-8?q?{'=D0=B6' * 20}?=", f"=?utf-8?q?{'=D0=B6' * 20}@example.com?="]
    assert (await served.mint(Tailscale_User_Login=" ".join(words)))[0] == 200, "Go folds what is long"
    for broken in ("=?utf-8?q?zo=C3?=", "=?what?q?zo?=", "=?utf-8?q?zo"):
        assert (await served.mint(Tailscale_User_Login=broken))[0] in (401, 403)


async def test_without_a_grant_the_owner_is_told_what_to_add(served: Served) -> None:
    for capabilities in (None, {}, {CAPABILITY: []}, {"example.com/cap/other": [{}]}):
        served.fake.whois[PHONE] = whois(7, "phone", user=2, login=LOGIN, capabilities=capabilities)
        status, answer = await served.mint()
        assert (status, answer["error"]["code"]) == (403, "insufficient_scope")
        line = json.dumps(example(LOGIN, "tag:edge", 443, CAPABILITY))
        assert answer["error"]["message"].startswith(f"{LOGIN} has no grant") and line in answer["error"]["message"]


async def test_a_grant_that_is_wrong_is_refused_with_its_fault(served: Served) -> None:
    served.grant({"plan": "gamma"})
    status, answer = await served.mint()
    assert (status, answer["error"]["code"]) == (403, "insufficient_scope")
    assert "there is no plan 'gamma' here" in answer["error"]["message"]


async def test_a_change_of_the_policy_holds_from_the_next_token_on(served: Served) -> None:
    assert (await served.mint())[1]["limits"]["streams"] == 7
    served.grant({"plan": "owner", "roles": ["admin"]})
    token = await served.token()
    assert served.edge.services.tokens.verify(token).scopes == ("chat", "admin")
    served.grant()
    assert (await served.mint())[0] == 403


async def test_an_admin_gets_a_token_while_the_edge_is_closed_and_opens_it(served: Served) -> None:
    """Nobody else does, whatever they show: not with a grant, without one, or with a key."""
    maintenance = Maintenance.begun("Back soon.", time.time(), ends_answers=False)
    records, edge = served.edge.services.store.records, served.edge.services
    async with edge.admin() as admin:
        await admin.set_maintenance(maintenance)
    await wait_until(lambda: records.maintenance is not None)
    key = create_key(served.state, "owner", scopes=("chat", "admin"))
    for values, changes in (([{"plan": "beta"}], {}), ([], {}), ([{}], {"Authorization": f"Bearer {key}"})):
        served.grant(*values)
        status, answer = await served.mint(**changes)
        assert (status, answer["error"]["code"], answer["error"]["message"]) == (503, "maintenance", "Back soon.")
    served.grant({"plan": "owner", "roles": ["admin"]})
    assert (await served.mint({"invite": "hli_x"}))[0] in (400, 503)
    headers = passed_on(Authorization=f"Bearer {await served.token()}")
    async with served.client() as client:
        async with client.get("/v1/me", headers=headers) as response:
            assert response.status == 503
        async with client.delete("/admin/maintenance", headers=headers) as response:
            assert response.status == 200, await response.text()
    await wait_until(lambda: records.maintenance is None)


async def test_a_machine_without_a_person_is_told_to_use_a_key(served: Served) -> None:
    """Serve names nobody for a tagged machine, for the edge's own, and under Funnel."""
    status, answer = await served.mint(Tailscale_User_Login=None)
    assert (status, answer["error"]["code"]) == (401, "missing_token")
    served.fake.whois[PHONE] = whois(7, "ci", tags=["tag:ci"], capabilities={CAPABILITY: [{}]})
    for login in (LOGIN, "tagged-devices"):
        status, answer = await served.mint(Tailscale_User_Login=login)
        assert (status, answer["error"]["code"]) == (401, "missing_token"), "whatever the header says"


@pytest.mark.parametrize(
    "changes",
    [
        {"Tailscale_User_Login": "mallory@example.com"},
        {"Tailscale_User_Login": LOGIN.upper()},
        {"X_Forwarded_For": "100.64.0.99"},
        {"X_Forwarded_For": None},
        {"X_Forwarded_For": "127.0.0.1"},
        {"X_Forwarded_For": f"{PHONE}, {PHONE}"},
        {"X_Forwarded_For": f"{PHONE}%eth0"},
        {"X_Forwarded_For": "nodekey:0007"},
        {"X_Forwarded_Host": "[::1"},
    ],
)
async def test_who_is_not_who_the_headers_say_is_refused(served: Served, changes: dict[str, str | None]) -> None:
    status, answer = await served.mint(**changes)
    assert (status, answer["error"]["code"]) == (403, "address_not_allowed")


async def test_a_header_that_is_there_twice_is_refused(served: Served) -> None:
    async with served.client() as client:
        headers = [*passed_on().items(), ("Tailscale-User-Login", LOGIN)]
        async with client.post("/v1/token", json={}, headers=headers) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "address_not_allowed")


@pytest.mark.parametrize(
    "changes",
    [
        {"Origin": ORIGIN},
        {"Origin": "null"},
        {"Origin": f"http://{NAME}"},
        {"Origin": f"https://{NAME}:8443"},
        {"Origin": "https://gpu.tail.test"},
        {"X_Forwarded_Host": "evil.example", "Origin": "https://evil.example"},
        {"X_Forwarded_Host": "gpu.tail.test", "Origin": "https://gpu.tail.test"},
        {"X_Forwarded_Host": None, "Origin": None, "Sec_Fetch_Site": None},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": None, "Sec_Fetch_Site": "cross-site"},
    ],
)
async def test_only_our_own_page_may_ask_for_a_person(served: Served, changes: dict[str, str | None]) -> None:
    """A page elsewhere, even one on an allowed origin or on another machine of the tailnet, and a name that was made
    to point here."""
    status, answer = await served.mint(**changes)
    assert (status, answer["error"]["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize("host", [NAME, "edge", "EDGE.tail.test", f"{NAME}.", f"{NAME}:8443", "100.64.0.1"])
async def test_the_machine_has_several_names(served: Served, host: str) -> None:
    assert (await served.mint(X_Forwarded_Host=host, Origin=f"https://{host.lower()}"))[0] == 200
    plain = {"X_Forwarded_Proto": None, "Origin": f"http://{host.lower()}", "Sec_Fetch_Site": None}
    assert (await served.mint(X_Forwarded_Host=host, **plain))[0] == 200


async def test_funnel_gets_nothing_at_all(served: Served, logged: Callable[[str], list[str]]) -> None:
    """And no stranger is told what to do; the owner is, once."""
    key, lines = create_key(served.state), logged("edge.api.funnel")
    async with served.client() as client:
        for method, path in (("GET", "/"), ("GET", "/livez"), ("POST", "/v1/token"), ("GET", "/v1/me")):
            headers = passed_on(Tailscale_Funnel_Request="?1", Authorization=f"Bearer {key}")
            async with client.request(method, path, headers=headers) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (403, "address_not_allowed")
                assert "hearthlink" not in error["message"]
        assert len(lines) == 1 and "hearthlink setup tailnet --off" in lines[0] and "reset" not in lines[0]
        preflight = passed_on(Tailscale_Funnel_Request="?1", Origin=ORIGIN, Access_Control_Request_Method="POST")
        async with client.options("/v1/token", headers=preflight) as response:
            assert response.status == 403
        public = f"{served.edge.public.url}/livez"
    async with aiohttp.request("GET", public, headers={"Tailscale-Funnel-Request": "?1"}) as response:
        assert response.status == 200, "the public listener reads no header of Serve's"


@pytest.mark.case("B32")
async def test_forged_headers_do_nothing_on_the_other_listeners(served: Served) -> None:
    async with aiohttp.ClientSession() as client:
        for base in (served.edge.public.url, served.edge.ops.url):
            for changes in ({}, {"Origin": None, "Sec_Fetch_Site": None}):
                async with client.post(f"{base}/v1/token", json={}, headers=passed_on(**changes)) as response:
                    assert (response.status, (await response.json())["error"]["code"]) == (403, "origin_not_allowed")
            async with client.post(f"{base}/v1/token", json={}, headers=passed_on(Origin=ORIGIN)) as response:
                assert (await response.json())["principal"]["kind"] == "anonymous"
    assert not [asked for asked in served.fake.asked if "whois" in asked.path]


async def test_the_door_without_a_name_is_not_there(served: Served) -> None:
    """On the public listener a page on an allowed origin gets an anonymous token."""
    status, answer = await served.mint(Tailscale_User_Login=None, Origin=ORIGIN, Sec_Fetch_Site="cross-site")
    assert (status, answer["error"]["code"]) == (401, "missing_token")


async def test_keys_go_on_working(served: Served) -> None:
    key = create_key(served.state)
    async with asyncio.timeout(HANGS):  # a running edge looks for new keys once a second
        while (answer := await served.mint(Authorization=f"Bearer {key}", Tailscale_User_Login=None))[0] == 401:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert (answer[0], answer[1]["principal"]["kind"]) == (200, "key")


@pytest.mark.parametrize("who", ["nobody's", "without a grant"])
async def test_whom_it_does_not_know_may_show_an_invite(tmp_path: Path, who: str) -> None:
    """On the page as Serve serves it: it is asked for one, lets in with it, and renews."""
    async with serving_edge(tmp_path, {"invites": True}) as served:
        served.grant()
        login = None if who == "nobody's" else LOGIN
        status, answer = await served.mint(Tailscale_User_Login=login)
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (401, "missing_token", "invite")
        assert '{"invite":"hli_…"}' in answer["error"]["message"]
        assert who == "nobody's" or f"{LOGIN} has no grant" in answer["error"]["message"]
        with contextlib.closing(open_for_admin(StateDir(served.state).database)) as connection:
            invite = {"invite": invites.create(connection, "beta", 1, int(time.time()) + 600)[1]}
        for page in ({"Origin": "https://gpu.tail.test"}, {"Sec_Fetch_Site": "cross-site"}):
            status, answer = await served.mint(invite, Tailscale_User_Login=login, **page)
            assert (status, answer["error"]["code"]) == (403, "origin_not_allowed")
        status, answer = await served.mint(invite, Tailscale_User_Login=login)
        assert (status, answer["principal"]["kind"]) == (200, "invite"), answer
        bearer = f"Bearer {answer['token']}"
        assert served.edge.services.tokens.verify(answer["token"]).origin == f"https://{NAME}"
        status, answer = await served.mint(Tailscale_User_Login=login, Authorization=bearer)
        assert (status, answer["principal"]["kind"]) == (200, "invite"), answer
        assert (await served.mint(Origin="https://gpu.tail.test", Authorization=bearer))[0] == 403
        # A page that is listed may bring its guests here as well.
        assert (await served.mint(invite, Origin=ORIGIN, Sec_Fetch_Site="cross-site"))[0] == 401, "it is used up"


async def test_models_of_several_grants_are_all_there(served: Served) -> None:
    """Each of the two plans lists models of its own, and neither takes the other's away."""
    served.edge.services.plans = PLANS
    served.grant({"plan": "beta"}, {"plan": "gamma"})
    principal = served.edge.services.tokens.verify(await served.token())
    plan = plan_of(principal, served.edge.services)
    assert [model for model in ("small", "large", "huge", "other") if plan.allows_model(model)] == [
        "small",
        "large",
        "huge",
    ]
    assert plan.allows_chat_type("home") and plan.allows_chat_type("poet")
    served.edge.services.plans = {"gamma": PLANS["gamma"]}
    assert not plan_of(principal, served.edge.services).allows_model("small"), "a plan that is gone gives nothing"


async def test_each_caller_has_a_rate_of_its_own(served: Served) -> None:
    other = "fd7a:115c:a1e0::8"
    served.fake.whois[other] = whois(8, "laptop", user=3, login="bo@example.com", capabilities={CAPABILITY: [{}]})
    for _ in range(30):
        await served.token()
    assert (await served.mint())[1]["error"]["code"] == "rate_limited"
    assert (await served.mint(X_Forwarded_For=other, Tailscale_User_Login="bo@example.com"))[0] == 200


@pytest.mark.parametrize("trouble", ["gone", "refuses", "silent", "not logged in"])
async def test_when_tailscaled_cannot_say_nobody_is_let_in(served: Served, trouble: str) -> None:
    if trouble == "gone":
        await served.fake.stop()
    elif trouble == "refuses":
        served.fake.twist("whois", text(500, "broken"))
    elif trouble == "silent":
        served.fake.running.clear()
    else:
        served.fake.status["BackendState"] = "NeedsLogin"
    status, answer = await served.mint()
    assert (status, answer["error"]["code"]) == (503, "node_unavailable")
    assert "Tailscale" in answer["error"]["message"] and "Try again" in answer["error"]["message"]


async def test_the_socket_is_for_its_user_only_and_goes_with_the_edge(tmp_path: Path) -> None:
    async with serving_edge(tmp_path) as served:
        assert stat.S_IMODE(mode_of(served.socket)) == 0o600
    assert mode_of(served.socket) == 0


async def test_a_port_of_loopback_will_do(tmp_path: Path) -> None:
    async with serving_edge(tmp_path, {"serve": "127.0.0.1:0"}) as served:
        served.grant({})
        assert (served.edge.services.serve or "").startswith("127.0.0.1:")
        assert (await served.mint())[0] == 200


async def test_what_is_open_on_loopback_is_not_open_to_the_tailnet(tmp_path: Path) -> None:
    async with serving_edge(tmp_path, {"require_authentication": False}) as served, served.client() as client:
        async with client.get("/v1/me", headers=passed_on()) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (401, "missing_token")
        async with aiohttp.request("GET", f"{served.edge.public.url}/v1/me") as response:
            assert response.status == 200


# -- where it listens -------------------------------------------------------------------------------------------------


async def test_by_itself_it_listens_where_tailscaled_answers(tmp_path: Path) -> None:
    async with serving_edge(tmp_path, {"serve": "auto"}) as served:
        await wait_until(lambda: served.edge.services.serve == "unix")
        served.grant({})
        assert (await served.mint())[0] == 200


async def test_by_itself_it_leaves_an_old_tailscaled_alone(tmp_path: Path) -> None:
    async with serving_edge(tmp_path, {"serve": "auto"}, capability_version=130) as served:
        tailnet = served.edge.services.tailnet
        assert tailnet is not None
        async with asyncio.timeout(HANGS):
            await tailnet.until(lambda view: view.failure is None)
        await asyncio.sleep(0.05)
        assert (served.edge.services.serve, mode_of(served.socket)) == (None, 0)


async def test_without_tailscaled_nothing_of_a_tailnet_is_there(tmp_path: Path) -> None:
    async with serving_edge(tmp_path, {"serve": "auto"}, there=False) as served:
        services = served.edge.services
        assert (services.local, services.tailnet, services.serve) == (None, None, None)


async def test_by_itself_a_place_that_is_taken_is_no_reason_to_end(tmp_path: Path) -> None:
    """Where the socket was asked for, it is one."""
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "serve.sock").write_text("not a socket")
    async with serving_edge(tmp_path, {"serve": "auto"}) as served:
        tailnet = served.edge.services.tailnet
        assert tailnet is not None
        async with asyncio.timeout(HANGS):
            await tailnet.until(lambda view: view.failure is None)
        await asyncio.sleep(0.05)
        assert served.edge.services.serve is None
    with pytest.raises(CannotListen, match="is no socket"):
        async with serving_edge(tmp_path, {"serve": "unix"}):
            pass


async def test_by_itself_it_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Callable[[str], list[str]]
) -> None:
    """Whatever the system says, once; an edge that was started twice, or is short of files, is there when that has
    passed, and ends as it should."""
    lines, failing, bind = logged("edge.serve_listener"), [True], listening.bind

    def short_of_files(listener: Listener) -> socket.socket:
        if failing and listener.path:
            raise OSError(errno.EMFILE, "Too many open files")
        return bind(listener)

    monkeypatch.setattr(listening, "bind", short_of_files)
    monkeypatch.setattr(serve_listener, "_TRY_AGAIN", 0.05)
    async with serving_edge(tmp_path, {"serve": "auto"}) as served:
        await wait_until(lambda: lines)
        await asyncio.sleep(0.2)
        assert served.edge.services.serve is None
        assert len(lines) == 1 and "Tailscale Serve cannot reach this edge" in lines[0] and "open files" in lines[0]
        failing.clear()
        await wait_until(lambda: served.edge.services.serve == "unix")
    failing.append(True)
    async with serving_edge(tmp_path, {"serve": "auto"}):
        await wait_until(lambda: len(lines) > 2)
