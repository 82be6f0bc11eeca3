"""The owner's side of the SQLite store: a connection of its own, on a thread of its own that no loop waits for."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from edge.store.admin import Standing, checked_limits
from edge.store.errors import AdminError, NoSuchError, StoreError
from edge.store.invites import InviteInfo
from edge.store.keys import KeyInfo
from edge.store.records import Maintenance
from edge.store.sqlite import callers, invites, keys, records
from edge.store.sqlite.database import open_for_admin
from shared.signing_keys import SigningKeys
from shared.state import StateDir, StateError

_Answer = TypeVar("_Answer")


class SQLiteAdmin:
    """``admin.Admin`` of the database and the signing keys of ``state``, beside whatever edge runs on them. ``open`` it
    before use, ``close`` it after. ``now`` gives Unix seconds."""

    def __init__(self, state: StateDir, *, now: Callable[[], float] = time.time) -> None:
        self._state = state
        self._now = now
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, "store: admin")  # one, which the connection belongs to
        self._closed = False

    async def open(self) -> None:
        """The database is made when it is not there. Raises StoreError."""
        await self._do(lambda connection: None)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._let_go)
        finally:
            self._thread.shutdown(wait=False)

    async def create_key(
        self, name: str, plan: str, scopes: Sequence[str], expires: int | None = None
    ) -> tuple[KeyInfo, str]:
        return await self._do(lambda connection: keys.create(connection, name, plan, scopes, expires, now=self._now))

    async def list_keys(self) -> list[KeyInfo]:
        return await self._do(keys.list_keys)

    async def revoke_key(self, which: str) -> KeyInfo:
        return await self._do(lambda connection: keys.revoke(connection, which, now=self._now))

    async def create_invite(
        self, plan: str, uses: int, expires: int, name: str | None = None
    ) -> tuple[InviteInfo, str]:
        return await self._do(lambda connection: invites.create(connection, plan, uses, expires, name, now=self._now))

    async def list_invites(self) -> list[InviteInfo]:
        return await self._do(invites.list_invites)

    async def revoke_invite(self, which: str) -> InviteInfo:
        return await self._do(lambda connection: invites.revoke(connection, which, now=self._now))

    async def standing(self, principal_id: str) -> Standing:
        return await self._do(lambda connection: callers.standing(connection, principal_id, self._now()))

    async def standings(self) -> list[Standing]:
        return await self._do(lambda connection: callers.standings(connection, self._now()))

    async def set_limits(self, principal_id: str, changes: Mapping[str, int | None]) -> Mapping[str, int | None]:
        wanted = checked_limits(changes)
        return await self._do(lambda connection: callers.set_limits(connection, principal_id, wanted))

    async def clear_limits(self, principal_id: str) -> None:
        if not await self._do(lambda connection: callers.clear_limits(connection, principal_id)):
            raise NoSuchError(f"{principal_id!r} has no limits of its own: its plan's hold.")

    async def reset_usage(self, principal_id: str) -> None:
        await self._do(lambda connection: callers.reset_usage(connection, principal_id, self._now()))

    async def revoke_token(self, jti: str, expires: int) -> None:
        await self._do(lambda connection: records.revoke_token(connection, jti, expires))

    async def revoke_principal(self, principal_id: str) -> None:
        await self._do(lambda connection: callers.revoke(connection, principal_id, self._now()))

    async def revoke_everyone(self) -> None:
        await self._do(lambda connection: records.revoke_everyone(connection, int(self._now())))

    async def maintenance(self) -> Maintenance | None:
        return await self._do(records.maintenance)

    async def set_maintenance(self, maintenance: Maintenance | None) -> None:
        await self._do(lambda connection: records.set_maintenance(connection, maintenance))

    async def signing_keys(self) -> SigningKeys:
        return await self._do(lambda connection: self._state.signing_keys())

    async def rotate_signing_keys(self, longest: int) -> SigningKeys:
        return await self._do(lambda connection: self._rotate(longest))

    async def _do(self, work: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._in_thread, work)

    # In the thread

    def _in_thread(self, work: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        try:
            if self._connection is None:
                self._connection = open_for_admin(self._state.database)
            return work(self._connection)
        except StateError as error:
            raise StoreError(str(error)) from None
        except sqlite3.Error as error:
            text = f"The database in {self._state.path} cannot be used ({error}). Stop what holds it, then try again."
            raise StoreError(text) from None

    def _rotate(self, longest: int) -> SigningKeys:
        try:
            return self._state.rotate_signing_keys(int(self._now()), longest)
        except ValueError as error:
            raise AdminError(str(error)) from None

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
