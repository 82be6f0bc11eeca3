"""What holds after every case, however hostile: nothing is left under way, nothing broke, nobody was counted twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.pair import Pair
from tests.waiting import wait_until

# Tasks of a link and of the store that end and are made again all the time.
_COME_AND_GO = 4


@asynccontextmanager
async def unharmed(pair: Pair) -> AsyncIterator[None]:
    """Let the block do its worst to ``pair``. Raises AssertionError when within 5 s there is not what there was before:
    no work, no reservation, no more tasks; and when the edge met an error of its own or wrote two lines of one
    request."""
    tasks = len(asyncio.all_tasks()) + _COME_AND_GO
    yield
    await pair.idle()
    await wait_until(lambda: len(asyncio.all_tasks()) <= tasks, what=asyncio.all_tasks)
    lines = Counter(line["request_id"] for line in pair.audit)
    assert not [request_id for request_id, count in lines.items() if count > 1]
    async with pair.client.get(pair.ops_url + "/metrics") as response:
        assert "internal_error" not in await response.text()
