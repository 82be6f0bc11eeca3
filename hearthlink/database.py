"""The store of the edge on this machine, for the verbs that read and change it beside a running edge."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from hearthlink import options
from hearthlink.output import Failure, Status

if TYPE_CHECKING:
    from edge.store.admin import Admin
    from shared.settings import Settings

Answer = TypeVar("Answer")


def administer(settings: Settings, work: Callable[[Admin], Awaitable[Answer]]) -> Answer:
    """What ``work`` gives, done to the store of these settings: the database in the local state, made when it is not
    there, or the server that several edges share. Raises Failure, for what ``work`` raises too."""
    import asyncio

    from edge.store.errors import AdminError, NoSuchError, StoreError
    from edge.store.opening import admin_from
    from shared.state import StateError

    state = options.state_of(settings)

    async def run() -> Answer:
        async with admin_from(settings, state) as admin:
            return await work(admin)

    try:
        return asyncio.run(run())
    except NoSuchError as error:
        raise Failure(str(error), Status.NOT_FOUND) from None
    except AdminError as error:
        raise Failure(str(error), Status.USAGE) from None
    except (StateError, StoreError) as error:
        raise Failure(str(error)) from None


def record(settings: Settings, act: str, target: str) -> None:
    """Write the audit line of what was done, where a process beside the edge can. After what it did is shown: this may
    fail, and raises Failure then."""
    from shared.audit_sink import AuditError, record_act

    try:
        record_act(settings.audit, act, target)
    except AuditError as error:
        raise Failure(str(error)) from None


def moment(at: int | None) -> str:
    """``at`` (Unix seconds) to the minute, in UTC; "-" for none, or for one that no calendar has."""
    try:
        return "-" if at is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))
    except (ValueError, OverflowError, OSError):
        return "-"
