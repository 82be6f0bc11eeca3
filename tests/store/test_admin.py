"""The contract of ``admin.Admin``: what the owner decides, and that a running store knows of it soon."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from edge.plans import Plan
from edge.principals import Principal
from edge.store.admin import Admin, Standing
from edge.store.errors import AdminError, NoSuchError
from edge.store.keys import KeyInfo
from edge.store.ledger import Cost
from edge.store.records import Maintenance
from edge.store.store import Store
from shared.contract.errors import ApiError
from tests.store.callers import IP, becomes, caller, refused, spend, used
from tests.store.kinds import Clock
from tests.waiting import wait_until

MakeStore = Callable[..., Awaitable[Store]]
DAY = 86_400
PLAN = Plan("test", requests_per_minute=10, tokens_per_day=1000)


def opens(store: Store, text: str) -> bool:
    try:
        return bool(store.lookup(text))
    except ApiError:
        return False


async def seen(condition: Callable[[], object]) -> None:
    """A second is promised; this machine may have other work."""
    await wait_until(condition)


# API keys


async def test_a_key_opens_until_it_is_revoked(store: Store, admin: Admin) -> None:
    info, text = await admin.create_key("ci", "member", ["chat", "admin"])
    await seen(lambda: opens(store, text))
    holder = store.lookup(text)
    assert holder == Principal(info.principal_id, "key", "member", ("chat", "admin"))
    assert not store.revoked(holder)
    assert (await admin.revoke_key("ci")).id == info.id
    await seen(lambda: not opens(store, text))
    assert store.revoked(holder)
    assert (await refused(store.charge_request(IP, holder, PLAN))).code == "token_revoked"
    [listed] = await admin.list_keys()
    assert (listed.name, listed.revoked_at is not None) == ("ci", True)
    with pytest.raises(NoSuchError, match="No living key"):
        await admin.revoke_key("ci")


async def test_a_key_ends(store: Store, admin: Admin, clock: Clock) -> None:
    _, text = await admin.create_key("ci", "member", ["chat"], int(clock.unix) + 60)
    await seen(lambda: opens(store, text))
    clock.advance(61)
    assert not opens(store, text)


async def test_a_name_is_one_living_keys(admin: Admin) -> None:
    await admin.create_key("ci", "member", ["chat"])
    with pytest.raises(AdminError, match="already"):
        await admin.create_key("ci", "member", ["chat"])
    await admin.revoke_key("ci")
    await admin.create_key("ci", "member", ["chat"])
    with pytest.raises(AdminError, match="not a name"):
        await admin.create_key("a b", "member", ["chat"])
    assert [info.name for info in await admin.list_keys()] == ["ci", "ci"]


@pytest.mark.parametrize("shown", ["name", "id", "principal", "text"])
async def test_a_key_is_revoked_by_any_of_its_names(admin: Admin, shown: str) -> None:
    info, text = await admin.create_key("ci", "member", ["chat"])
    await admin.create_key("kept", "member", ["chat"])
    which = {"name": "ci", "id": info.id, "principal": info.principal_id, "text": text}[shown]
    assert (await admin.revoke_key(which)).name == "ci"
    with pytest.raises(NoSuchError) as caught:
        await admin.revoke_key(which)
    assert text[17:] not in str(caught.value)
    assert [info.name for info in await admin.list_keys() if info.revoked_at is None] == ["kept"]


async def test_the_list_shows_everything_but_the_secret(admin: Admin, clock: Clock) -> None:
    now = int(clock.unix)
    _, text = await admin.create_key("first", "owner", ["chat", "admin"])
    clock.advance(1)
    info, _ = await admin.create_key("second", "member", ["chat"], now + 99)
    clock.advance(1)
    await admin.revoke_key("second")
    assert await admin.list_keys() == [
        KeyInfo(text[4:16], "first", "owner", ("chat", "admin"), now),
        KeyInfo(info.id, "second", "member", ("chat",), now + 1, now + 99, now + 2),
    ]


async def test_keys_made_at_once_are_all_there(admin: Admin) -> None:
    made = await asyncio.gather(*(admin.create_key(f"key-{n}", "member", ["chat"]) for n in range(20)))
    assert {info.id for info in await admin.list_keys()} == {info.id for info, _ in made}


# Invites


async def test_an_invite_lets_so_many_in(store: Store, admin: Admin, clock: Clock) -> None:
    ends = int(clock.unix) + DAY
    info, text = await admin.create_invite("member", 2, ends, "beta")
    guest = await store.enter_invite(text, "192.0.2.1", "http://app.test")
    assert (guest.kind, guest.plan, guest.origin, guest.expires_at) == ("invite", "member", "http://app.test", ends)
    again = await store.enter_invite(text, "192.0.2.1", "http://app.test")
    assert again.id == guest.id
    await store.enter_invite(text, "192.0.2.2", "http://app.test")
    error = await refused(store.enter_invite(text, "192.0.2.3", "http://app.test"))
    assert (error.code, error.param) == ("invalid_token", "invite")
    assert (await store.renew_guest(guest)).id == guest.id
    [listed] = await admin.list_invites()
    assert (listed.id, listed.name, listed.uses, listed.used) == (info.id, "beta", 2, 2)


@pytest.mark.case("B27")
async def test_fifty_at_once_spend_exactly_the_uses_of_an_invite(store: Store, admin: Admin, clock: Clock) -> None:
    _, text = await admin.create_invite("member", 7, int(clock.unix) + DAY)
    results = await asyncio.gather(
        *(store.enter_invite(text, f"192.0.2.{n}", None) for n in range(50)), return_exceptions=True
    )
    assert sum(isinstance(result, Principal) for result in results) == 7
    assert {result.code for result in results if isinstance(result, ApiError)} == {"invalid_token"}
    assert (await admin.list_invites())[0].used == 7


async def test_a_revoked_invite_lets_nobody_in_or_go_on(store: Store, admin: Admin, clock: Clock) -> None:
    _, text = await admin.create_invite("member", 5, int(clock.unix) + DAY, "beta")
    guest = await store.enter_invite(text, "192.0.2.1", None)
    await admin.revoke_invite("beta")
    assert (await refused(store.enter_invite(text, "192.0.2.2", None))).code == "invalid_token", "at once"
    await seen(lambda: store.revoked(guest))
    assert (await refused(store.renew_guest(guest))).code == "invalid_token"
    with pytest.raises(NoSuchError, match="No living invite"):
        await admin.revoke_invite("beta")


async def test_an_invite_is_revoked_by_any_of_its_names(admin: Admin, clock: Clock) -> None:
    for which in (lambda text: "beta", lambda text: text[4:16], lambda text: text):
        info, text = await admin.create_invite("member", 1, int(clock.unix) + DAY, "beta")
        assert (await admin.revoke_invite(which(text))).id == info.id
        with pytest.raises(NoSuchError, match="No living invite") as caught:
            await admin.revoke_invite(which(text))
        assert text[17:] not in str(caught.value)


async def test_an_invite_ends(store: Store, admin: Admin, clock: Clock) -> None:
    _, text = await admin.create_invite("member", 5, int(clock.unix) + 60)
    guest = await store.enter_invite(text, "192.0.2.1", None)
    clock.advance(61)
    assert (await refused(store.enter_invite(text, "192.0.2.1", None))).code == "invalid_token"
    assert (await refused(store.renew_guest(guest))).code == "invalid_token"


async def test_guesses_are_counted_by_network(store: Store, admin: Admin, clock: Clock) -> None:
    _, text = await admin.create_invite("member", 5, int(clock.unix) + DAY)
    for number in range(5):
        wrong = await refused(store.enter_invite(text[:-1] + "!", f"2001:db8:77:2::{number}", None))
        assert wrong.code == "invalid_token"
    error = await refused(store.enter_invite(text, "2001:db8:77:2:ffff::1", None))
    assert (error.code, error.param) == ("rate_limited", "invite") and error.retry_after is not None
    await store.enter_invite(text, "2001:db8:77:3::1", None)
    clock.advance(61)
    await store.enter_invite(text, "2001:db8:77:2:ffff::1", None)


async def test_only_the_whole_secret_is_an_invite(store: Store, admin: Admin, clock: Clock) -> None:
    """An id can be read in lists and logs; with another invite's secret, or a drawn one, it lets nobody in."""
    ends = int(clock.unix) + DAY
    (info, text), (_, other) = [await admin.create_invite("member", 5, ends) for _ in range(2)]
    start, secret = text.split(info.id)
    for wrong in (other.rpartition(other.split("_")[1])[2], "_" + secret[1:][::-1]):
        assert (await refused(store.enter_invite(start + info.id + wrong, IP, None))).code == "invalid_token"
    assert [listed.used for listed in await admin.list_invites()] == [0, 0]
    await store.enter_invite(text, IP, None)


async def test_invites_of_no_use_are_not_made(admin: Admin, clock: Clock) -> None:
    ends = int(clock.unix) + DAY
    await admin.create_invite("member", 1, ends, "beta")
    for uses, end, name in (
        (0, ends, None),
        (1, int(clock.unix), None),
        (1, ends, "a b"),
        (1, ends, "0123456789ab"),
        (1, ends, "beta"),
        (10_001, ends, None),
        (1, int(clock.unix) + 367 * DAY, None),
    ):
        with pytest.raises(AdminError):
            await admin.create_invite("member", uses, end, name)
    assert len(await admin.list_invites()) == 1


# Revocations


async def test_one_token_is_revoked(store: Store, admin: Admin, clock: Clock) -> None:
    ends = int(clock.unix) + 600
    token, other = caller(jti="one", expires_at=ends), caller(jti="other", expires_at=ends)
    await admin.revoke_token("one", ends)
    await seen(lambda: store.revoked(token))
    assert not store.revoked(other)
    assert (await refused(store.admit(IP, token, PLAN, Cost(1), "a"))).code == "token_revoked"


async def test_a_clock_that_is_behind_takes_no_revocation_back(store: Store, admin: Admin, clock: Clock) -> None:
    issued = int(clock.unix)
    await admin.revoke_principal("caller")
    await admin.revoke_everyone()
    clock.unix -= 60
    await admin.revoke_principal("caller")
    await admin.revoke_everyone()
    assert (await admin.standing("caller")).revoked_at == issued
    await seen(lambda: store.revoked(caller("other", issued_at=issued)))


async def test_all_tokens_of_a_caller_are_revoked_that_were_out(store: Store, admin: Admin, clock: Clock) -> None:
    now = int(clock.unix)
    before, after = caller(issued_at=now), caller(issued_at=now + 1, jti="later")
    other = caller("other", issued_at=now)
    await admin.revoke_principal("caller")
    await seen(lambda: store.revoked(before))
    assert not store.revoked(after) and not store.revoked(other)
    early = store.refusal(IP, before, PLAN)
    assert early is not None and (early.code, early.status) == ("token_revoked", 401)
    assert (await refused(store.charge_request(IP, before, PLAN))).code == "token_revoked"
    await store.charge_request(IP, after, PLAN)
    assert (await admin.standing("caller")).revoked_at == now


async def test_revoking_a_keys_principal_revokes_the_key(store: Store, admin: Admin) -> None:
    info, text = await admin.create_key("ci", "member", ["chat"])
    await seen(lambda: opens(store, text))
    await admin.revoke_principal(info.principal_id)
    await seen(lambda: not opens(store, text))
    assert (await admin.list_keys())[0].revoked_at is not None


async def test_a_revoked_guest_does_not_come_back_with_the_invite(store: Store, admin: Admin, clock: Clock) -> None:
    _, text = await admin.create_invite("member", 5, int(clock.unix) + DAY)
    guest = await store.enter_invite(text, "192.0.2.1", None)
    await admin.revoke_principal(guest.id)
    await seen(lambda: guest.id in store.records.principals)
    assert (await refused(store.enter_invite(text, "192.0.2.1", None))).code == "invalid_token"
    assert (await refused(store.renew_guest(guest))).code == "invalid_token"
    assert (await store.enter_invite(text, "192.0.2.2", None)).id != guest.id


async def test_everyones_tokens_are_revoked_and_keys_open_still(store: Store, admin: Admin, clock: Clock) -> None:
    now = int(clock.unix)
    _, text = await admin.create_key("ci", "member", ["chat"])
    await seen(lambda: opens(store, text))
    await admin.revoke_everyone()
    await seen(lambda: store.revoked(caller("ann", issued_at=now)))
    assert store.revoked(caller("bob", issued_at=now - 500)) and not store.revoked(caller("bob", issued_at=now + 1))
    assert not store.revoked(store.lookup(text))


async def test_revocations_outlive_a_restart(make_store: MakeStore, admin: Admin, store: Store, clock: Clock) -> None:
    now = int(clock.unix)
    token = caller("ann", jti="one", expires_at=now + 600)
    await store.revoke(token)
    await admin.revoke_principal("bob")
    await store.close()
    again = await make_store()
    await seen(lambda: again.revoked(token) and again.revoked(caller("bob", issued_at=now)))
    assert not again.revoked(caller("ann", jti="other"))


# Callers


async def test_a_caller_has_limits_of_its_own(store: Store, admin: Admin) -> None:
    assert await admin.set_limits("caller", {"streams": 1}) == {"streams": 1}
    assert await admin.set_limits("caller", {"tokens_per_day": None}) == {"streams": 1, "tokens_per_day": None}
    await seen(lambda: store.records.limits.get("caller") == {"streams": 1, "tokens_per_day": None})
    assert (await admin.standing("caller")).limits == {"streams": 1, "tokens_per_day": None}
    await admin.clear_limits("caller")
    await seen(lambda: "caller" not in store.records.limits)
    with pytest.raises(NoSuchError):
        await admin.clear_limits("caller")


@pytest.mark.parametrize("changes", [{"speed": 3}, {"streams": -1}, {"streams": 10**16}, {"streams": 1.5}])
async def test_what_are_no_limits_are_refused(admin: Admin, changes: dict[str, int | None]) -> None:
    with pytest.raises(AdminError):
        await admin.set_limits("caller", changes)
    assert await admin.standings() == []


async def test_the_owner_sees_who_used_what(store: Store, admin: Admin) -> None:
    await spend(store, caller("ann"), PLAN, 10, "a")
    await spend(store, caller("bob"), PLAN, 70, "b")
    await store.admit(IP, caller("ann"), PLAN, Cost(500), "c")
    await admin.set_limits("cem", {"streams": 1})
    expected = [Standing("bob", 70, 0, 0), Standing("ann", 10, 500, 1), Standing("cem", 0, 0, 0, {"streams": 1})]
    await becomes(admin.standings, expected)
    assert await admin.standing("ann") == expected[1]
    assert await admin.standing("nobody") == Standing("nobody", 0, 0, 0)


async def test_usage_is_reset_and_running_answers_go_on(store: Store, admin: Admin) -> None:
    await spend(store, caller(), PLAN, 600, "a")
    await store.admit(IP, caller(), PLAN, Cost(300), "b")
    for _ in range(8):
        await store.charge_request(IP, caller(), PLAN)
    assert (await refused(store.charge_request(IP, caller(), PLAN))).code == "rate_limited"
    await spend(store, caller("other"), PLAN, 600, "c")
    await admin.reset_usage("caller")
    await becomes(lambda: used(store, PLAN, caller()), (0, 300))
    for _ in range(10):
        await store.charge_request(IP, caller(), PLAN)
    assert await used(store, PLAN, caller("other")) == (600, 0)
    assert await store.settle("b", None)
    await becomes(lambda: admin.standing("caller"), Standing("caller", 0, 0, 0))


# Maintenance and signing keys


async def test_maintenance_begins_and_ends(store: Store, admin: Admin) -> None:
    assert store.records.maintenance is await admin.maintenance() is None
    closed = Maintenance("Back at noon – soon.", 1_800_000_000, ends_answers=True)
    await admin.set_maintenance(closed)
    await seen(lambda: store.records.maintenance == closed)
    assert await admin.maintenance() == closed
    await admin.set_maintenance(None)
    await seen(lambda: store.records.maintenance is None)
    assert await admin.maintenance() is None


async def test_signing_keys_are_rotated(store: Store, admin: Admin, clock: Clock) -> None:
    before = store.records.signing_keys
    assert await admin.signing_keys() == before
    rotated = await admin.rotate_signing_keys(600)
    assert rotated.current == before.next and before.current in rotated.verifying
    await seen(lambda: store.records.signing_keys == rotated)
    assert await admin.signing_keys() == rotated
    with pytest.raises(AdminError, match="a moment ago"):
        await admin.rotate_signing_keys(600)
    clock.advance(601)
    assert before.current not in (await admin.rotate_signing_keys(600)).verifying


# How it ends


async def test_what_is_closed_may_be_closed_again(store: Store, admin: Admin) -> None:
    await admin.close()
    await admin.close()
    await store.close()
    await store.close()
