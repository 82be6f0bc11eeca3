"""The owner's side of the store that many edges share."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edge.store import invites, keys
from edge.store.admin import Standing, checked_limits
from edge.store.errors import AdminError, NoSuchError, StoreError
from edge.store.invites import InviteInfo
from edge.store.keys import KeyInfo
from edge.store.records import Maintenance
from edge.store.redis.records import key_from, key_text, maintenance_from, pairs
from edge.store.redis.scripts import BEGIN, CALLERS, CHANGE, DECIDED, RESET, REVOKE, Script
from edge.store.redis.server import NoAnswer, Server
from shared.signing_keys import SigningKeys

# The owner waits rather than be told to try again.
_PATIENT_SECONDS = 5.0
# In place of an edge's name.
_NO_EDGE = ""
# Whoever else changes the same thing does it now and not for ever.
_TRIES = 10


@dataclass(frozen=True, slots=True)
class _Decided:
    """All that an owner decided, as it stands."""

    signing_keys: str
    maintenance: Maintenance | None
    keys: Mapping[str, str]
    principals: Mapping[str, str]
    limits: Mapping[str, str]
    invites: Mapping[str, str]
    used: Mapping[str, str]


class RedisAdmin:
    """``admin.Admin`` of the data in the server at ``url``, beside whatever edges use it. ``now`` (Unix seconds) is
    used in place of the server's clock and this machine's."""

    def __init__(self, url: str, *, now: Callable[[], float] | None = None) -> None:
        self._now = now or time.time
        self._server = Server(url, _PATIENT_SECONDS, now)

    async def open(self, *, make: bool = True) -> None:
        """The data is made where there is none, but for somebody who is only looking. Raises StoreError."""
        await self._server.open()
        if not make:
            return
        try:
            drawn = (secrets.token_hex(8), secrets.token_hex(32), SigningKeys.new().to_json())
            await self._ask(BEGIN, *drawn, _NO_EDGE)
        except BaseException:
            await self._server.close()
            raise

    async def close(self) -> None:
        await self._server.close()

    async def create_key(
        self, name: str, plan: str, scopes: Sequence[str], expires: int | None = None
    ) -> tuple[KeyInfo, str]:
        new = keys.draw(name, plan, scopes, expires, int(self._now()))
        free = ["HSETNX", "key-names", name, new.info.id]
        if not await self._change(["HSET", "keys", new.info.id, key_text(new.info, new.digest)], when=(free, "1")):
            raise keys.name_taken(name)
        return new.info, new.text

    async def list_keys(self) -> list[KeyInfo]:
        return [info for info, _ in _keys(await self._decided())]

    async def revoke_key(self, which: str) -> KeyInfo:
        kept = _keys(await self._decided())
        info = replace(keys.find([info for info, _ in kept], which), revoked_at=int(self._now()))
        digest = next(digest for known, digest in kept if known.id == info.id)
        await self._change(["HSET", "keys", info.id, key_text(info, digest)], ["HDEL", "key-names", info.name])
        return info

    async def create_invite(
        self, plan: str, uses: int, expires: int, name: str | None = None
    ) -> tuple[InviteInfo, str]:
        new = invites.draw(plan, uses, expires, name, int(self._now()))
        info = new.info
        kept = ["HSET", "invites", info.id, _invite_text(info, new.digest)]
        free = None if name is None else (["HSETNX", "invite-names", name, info.id], "1")
        if not await self._change(kept, when=free):
            raise invites.name_taken(name)
        return info, new.text

    async def list_invites(self) -> list[InviteInfo]:
        return [info for info, _ in _invites(await self._decided())]

    async def revoke_invite(self, which: str) -> InviteInfo:
        kept = _invites(await self._decided())
        info = replace(invites.find([info for info, _ in kept], which), revoked_at=int(self._now()))
        digest = next(digest for known, digest in kept if known.id == info.id)
        names = [] if info.name is None else [["HDEL", "invite-names", info.name]]
        revoked = ["SADD", "revoked-invites", info.id]
        await self._change(["HSET", "invites", info.id, _invite_text(info, digest)], revoked, *names)
        return info

    async def standing(self, principal_id: str) -> Standing:
        used, held, running = await self._callers(principal_id)
        return _standing(principal_id, used, held, running, await self._decided())

    async def standings(self) -> list[Standing]:
        used, held, running = await self._callers("")
        decided = await self._decided()
        # The scripts keep plans' sums under names that begin with a space, and an empty one to know the day by.
        ids = {whom for whom in (*used, *held, *running, *decided.limits) if whom and not whom.startswith(" ")}
        found = [_standing(whom, used, held, running, decided) for whom in ids]
        return sorted(found, key=lambda one: (-one.used, -one.reserved, one.principal))

    async def set_limits(self, principal_id: str, changes: Mapping[str, int | None]) -> Mapping[str, int | None]:
        wanted = checked_limits(changes)
        for _ in range(_TRIES):
            before = (await self._decided()).limits.get(principal_id, "")
            own = (json.loads(before) if before else {}) | wanted
            kept = ["HSET", "limits", principal_id, json.dumps(own)]
            if await self._change(kept, when=(["HGET", "limits", principal_id], before)):
                return own
        raise _contended()

    async def clear_limits(self, principal_id: str) -> None:
        if not await self._change(when=(["HDEL", "limits", principal_id], "1")):
            raise NoSuchError(f"{principal_id!r} has no limits of its own: its plan's hold.")

    async def reset_usage(self, principal_id: str) -> None:
        await self._ask(RESET, principal_id)

    async def revoke_token(self, jti: str, expires: int) -> None:
        await self._ask(REVOKE, jti, expires)

    async def revoke_principal(self, principal_id: str) -> None:
        commands = [["HMAX", "revoked-principals", principal_id, str(int(self._now()))]]
        key_id = keys.key_of(principal_id)
        for info, digest in _keys(await self._decided()):
            if info.id == key_id and info.revoked_at is None:
                revoked = replace(info, revoked_at=int(self._now()))
                commands += [["HSET", "keys", info.id, key_text(revoked, digest)], ["HDEL", "key-names", info.name]]
        await self._change(*commands)

    async def revoke_everyone(self) -> None:
        await self._change(["HMAX", "meta", "everyone", str(int(self._now()))])

    async def maintenance(self) -> Maintenance | None:
        return (await self._decided()).maintenance

    async def set_maintenance(self, maintenance: Maintenance | None) -> None:
        if maintenance is None:
            await self._change(["HDEL", "meta", "maintenance"])
        else:
            await self._change(["HSET", "meta", "maintenance", json.dumps(asdict(maintenance))])

    async def signing_keys(self) -> SigningKeys:
        return SigningKeys.from_json((await self._decided()).signing_keys)

    async def rotate_signing_keys(self, longest: int) -> SigningKeys:
        for _ in range(_TRIES):
            before = (await self._decided()).signing_keys
            try:
                rotated = SigningKeys.from_json(before).rotated(int(self._now()), longest)
            except ValueError as error:
                raise AdminError(str(error)) from None
            kept = ["HSET", "meta", "signing_keys", rotated.to_json()]
            if await self._change(kept, when=(["HGET", "meta", "signing_keys"], before)):
                return rotated
        raise _contended()

    async def _decided(self) -> _Decided:
        signing_keys, maintenance, *tables = await self._ask(DECIDED)
        return _Decided(signing_keys, maintenance_from(maintenance), *map(pairs, tables))

    async def _callers(self, principal_id: str) -> list[dict[str, int]]:
        """Used, held and running, by principal id: of all, or of one."""
        tables = await self._ask(CALLERS, principal_id)
        return [{whom: int(count) for whom, count in pairs(table).items()} for table in tables]

    async def _change(self, *commands: Sequence[str], when: tuple[Sequence[str], str] | None = None) -> bool:
        """Do all of ``commands``, if the command ``when[0]`` replies ``when[1]``; whether it was done. Every edge looks
        at its records again."""
        first, expected = ("", "") if when is None else (json.dumps(when[0]), when[1])
        (done,) = await self._ask(CHANGE, first, json.dumps(commands), expected, once=when is not None)
        return bool(done)

    async def _ask(self, script: Script, *args: str | int, once: bool = False) -> list[Any]:
        try:
            return await self._server.probe(script, *args, seconds=_PATIENT_SECONDS, once=once)
        except NoAnswer as error:
            raise StoreError(
                f"The store {self._server.name} cannot be used ({error}). Start that server, or correct edge.store."
            ) from None


def _keys(decided: _Decided) -> list[tuple[KeyInfo, bytes]]:
    """Oldest first."""
    found = [key_from(key_id, text) for key_id, text in decided.keys.items()]
    return sorted(found, key=lambda one: (one[0].created_at, one[0].name))


def _invites(decided: _Decided) -> list[tuple[InviteInfo, bytes]]:
    """Oldest first."""
    found: list[tuple[InviteInfo, bytes]] = []
    for invite_id, text in decided.invites.items():
        fields = json.loads(text)
        digest = bytes.fromhex(fields.pop("digest"))
        found.append((InviteInfo(**{**fields, "used": int(decided.used.get(invite_id, 0))}), digest))
    return sorted(found, key=lambda one: (one[0].created_at, one[0].id))


def _invite_text(info: InviteInfo, digest: bytes) -> str:
    return json.dumps({**asdict(info), "digest": digest.hex()})


def _standing(
    whom: str, used: Mapping[str, int], held: Mapping[str, int], running: Mapping[str, int], decided: _Decided
) -> Standing:
    own, revoked_at = decided.limits.get(whom), decided.principals.get(whom)
    return Standing(
        whom,
        used.get(whom, 0),
        held.get(whom, 0),
        running.get(whom, 0),
        json.loads(own) if own else None,
        int(revoked_at) if revoked_at else None,
    )


def _contended() -> AdminError:
    return AdminError("Somebody else keeps changing the same thing right now. Please try again.")
