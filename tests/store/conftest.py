"""Fixtures of the contract that every store keeps. A test that takes one of these runs once for each kind of store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from edge.store.admin import Admin
from edge.store.store import Store
from tests.store.kinds import KINDS, Clock, Place


@pytest.fixture(params=list(KINDS))
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Data of its own for each test."""
    async with KINDS[request.param]() as place:
        yield place


@pytest.fixture
def clock(place: Place) -> Clock:
    return place.clock


@pytest.fixture
async def make_store(place: Place) -> AsyncIterator[Callable[..., Awaitable[Store]]]:
    """``await make_store(**options)``: an open store, closed after the test if not before."""
    opened: list[Store] = []

    async def make(**options: object) -> Store:
        store = place.store(**options)
        await store.open()
        opened.append(store)
        return store

    yield make
    for store in reversed(opened):
        await store.close()


@pytest.fixture
async def store(make_store: Callable[..., Awaitable[Store]]) -> Store:
    return await make_store()


@pytest.fixture
async def second(store: Store, make_store: Callable[..., Awaitable[Store]]) -> Store:
    """Another edge's store on the data of ``store``, for tests of ``SHARED_KINDS``."""
    return await make_store()


@pytest.fixture
async def admin(place: Place, store: Store) -> AsyncIterator[Admin]:
    """The owner, beside the edge of ``store``."""
    opened = place.admin()
    await opened.open()
    yield opened
    await opened.close()
