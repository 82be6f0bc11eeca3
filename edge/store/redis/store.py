"""``store.Store`` on a server that many edges share: one script decides and takes, so that no limit is overrun.

    in memory   keys, revocations, limits of single callers (read again half a second after a change), refusals that
                hold for a while, this process's running answers
    by script   admit, requests, invites: one round trip each, within the budget; ends of answers go with the next
    the task    twice a second: is the server there, did the owner change something, what waits to be settled;
                every five seconds: this edge is alive, and what dead ones left behind is settled

While the server is away, ``alone`` says what goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loguru import logger

from edge.plans import Plan
from edge.principals import Principal, address_block
from edge.store import refusals
from edge.store.accounts import Reservation
from edge.store.errors import StoreError, StoreNotYet
from edge.store.ledger import Cost, Grant, bounded, revocable
from edge.store.records import Records
from edge.store.redis import records
from edge.store.redis.alone import Alone, WithoutStore, cannot_count
from edge.store.redis.counts import Counts
from edge.store.redis.data import Data
from edge.store.redis.invites import Invites
from edge.store.redis.question import Question
from edge.store.redis.remembered import Remembered
from edge.store.redis.scripts import ADMIT, BEAT, LEAVE, LOOK, RECORDS, REVOKE, STANDING
from edge.store.redis.server import NoAnswer, Server
from edge.store.redis.settlements import Settlements
from shared.contract.errors import ApiError
from shared.contract.usage import Usage
from shared.signing_keys import SigningKeys

# A change is promised within 1 s, and a server that is back is used after this long.
POLL_SECONDS = 0.5
# The server takes an edge for dead that was not heard of for 20 s (lua/common.lua).
BEAT_SECONDS = 5.0
# What a request waits for the server's reply.
BUDGET_SECONDS = 0.05
_CHECK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Chat:
    """One running answer. ``shared``: the server has a reservation of it, or may have."""

    reservation: Reservation
    shared: bool


class RedisStore:
    """The store at ``url``, of which one request waits ``budget`` seconds at most.

    ``now`` (Unix seconds) is used in place of the server's clock, ``monotonic`` (seconds) for what this process
    remembers.
    """

    def __init__(
        self,
        url: str,
        *,
        requests_per_minute_per_ip: int | None,
        abandoned_after: float = 3600.0,
        without_store: WithoutStore = "refuse",
        budget: float = BUDGET_SECONDS,
        now: Callable[[], float] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_ip = requests_per_minute_per_ip
        self.abandoned_after = abandoned_after
        self._now = now or time.time
        self._server = Server(url, budget, now)
        self._data = Data(self._server)
        self._alone = Alone(requests_per_minute_per_ip, without_store, self._now, monotonic)
        self._remembered = Remembered(monotonic)
        self._settlements = Settlements(self._server)
        self._chats: dict[str, _Chat] = {}  # by chat id, oldest first
        self._edge = secrets.token_hex(8)
        self._asked: set[str] = set()  # chat ids whose admission is on its way
        self._beaten = 0  # the server's moment of the last beat, in microseconds
        self._version = self._tokens_version = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Connect, make the data where there is none, begin the task. Raises StoreError, and StoreNotYet for a server
        that is away."""
        await self._server.open()
        try:
            await self._data.begin(self._edge)
            self._records = Records(SigningKeys.new(), self._now)
            await self._read_records()
            await self._beat()
        except NoAnswer as error:
            await self._server.close()
            text = f"The store {self._server.name} cannot be used: {error}."
            raise (StoreNotYet(text, math.inf) if error.away else StoreError(text)) from None
        except BaseException:
            await self._server.close()
            raise
        self._invites = Invites(self._server, self._data.secret, self._now)
        self._tasks = [
            asyncio.create_task(self._keep(), name="store: upkeep"),
            asyncio.create_task(self._settlements.run(), name="store: settlements"),
        ]

    async def close(self) -> None:
        """Settle what still runs at its estimate, so that it does not wait for another edge to do it. Idempotent."""
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        try:
            with contextlib.suppress(NoAnswer):
                if self._server.answering:
                    await self._settlements.write_all()
                    await self._server.probe(LEAVE, self._edge)
        finally:
            await self._server.close()

    @property
    def records(self) -> Records:
        return self._records

    @property
    def pseudonym_key(self) -> bytes:
        return self._data.secret

    @property
    def problem(self) -> str | None:
        if self._server.fault is not None:
            text = f"The store {self._server.name} does not answer ({self._server.fault}): callers with a quota are"
            return f"{text} refused or counted by each edge alone, and nobody new is let in."
        return self._data.fault

    @property
    def answering(self) -> bool:
        return self._server.answering and self._data.fault is None

    def lookup(self, text: str) -> Principal:
        return self._records.keys.lookup(text)

    async def enter_invite(self, text: str, ip: str, origin: str | None) -> Principal:
        if not self.answering:
            raise cannot_count()
        return await self._invites.enter(text, ip, origin)

    async def renew_guest(self, guest: Principal) -> Principal:
        if self._records.revoked(guest) or guest.id in self._records.principals:
            raise refusals.invite_not_valid()
        return await self._invites.renew(guest)

    # Ledger: what each promises stands there.

    def refusal(self, ip: str | None, principal: Principal, plan: Plan) -> ApiError | None:
        if (error := self._known_refusal(self._question(ip, principal, plan, 1))) is not None:
            return error
        return None if self.answering else self._alone.refusal(ip, principal, plan, 1)

    async def admit(self, ip: str | None, principal: Principal, plan: Plan, cost: Cost, chat_id: str) -> Grant:
        if chat_id in self._chats:
            raise ValueError("This chat id was admitted already.")
        tokens = bounded(cost.tokens)
        question = self._question(ip, principal, plan, tokens)
        shared = self.answering  # then the server may have taken it even when no reply comes
        grant = await self._take(question, chat_id)
        if grant is None:
            grant = self._take_alone(ip, question)
        reservation = self._alone.reserve(principal.id, plan, tokens, self.abandoned_after)
        self._chats[chat_id] = _Chat(reservation, shared)
        return grant

    async def charge_request(self, ip: str | None, principal: Principal, plan: Plan) -> Grant:
        question = self._question(ip, principal, plan, None)
        grant = await self._take(question, "")
        return self._take_alone(ip, question) if grant is None else grant

    async def settle(self, chat_id: str, usage: Usage | None) -> bool:
        tokens = 0 if usage is None else bounded(usage.total_tokens)
        chat = self._chats.pop(chat_id, None)
        if chat is not None:
            self._end(chat_id, chat, tokens)
            if tokens > chat.reservation.tokens:  # more than the server counts on: it has to know before it admits more
                with contextlib.suppress(NoAnswer):
                    await self._settlements.write(chat_id, tokens)
            return True
        if chat_id in self._settlements:
            return False
        try:
            return await self._settlements.write(chat_id, tokens)  # another edge's, which cannot settle it any more
        except NoAnswer:
            return False

    def revoked(self, principal: Principal) -> bool:
        return self._records.revoked(principal)

    async def revoke(self, principal: Principal) -> None:
        jti, end = revocable(principal)
        self._records.tokens[jti] = end
        try:
            await self._server.call(REVOKE, jti, end)
        except NoAnswer:
            raise cannot_count() from None

    async def usage_today(self, principal: Principal, plan: Plan) -> dict[str, Any]:
        if not self.answering:
            raise cannot_count()
        try:
            await self._settlements.write_some()
            now, ahead, used, held, running, version = await self._server.call(STANDING, principal.id)
        except NoAnswer:
            raise cannot_count() from None
        if version != self._version:
            self._remembered.clear()  # what is shown here holds from now on
        return Counts.of(now, ahead, 0, used, held, running).usage(plan)

    def _question(self, ip: str | None, principal: Principal, plan: Plan, tokens: int | None) -> Question:
        if ip is None or plan.requests_per_minute is None or self._per_ip is None:
            return Question(principal, plan, tokens, None, None)
        return Question(principal, plan, tokens, address_block(ip), self._per_ip)

    def _known_refusal(self, question: Question) -> ApiError | None:
        """What is refused for sure, without asking."""
        principal, plan = question.principal, question.plan
        if self.revoked(principal):
            return refusals.token_revoked()
        if plan.requests_per_minute == 0:
            return refusals.caller_rate(plan, 0.0)
        if (error := question.known(self._remembered)) is not None or question.tokens is None:
            return error
        return self._alone.sure_refusal(principal.id, plan)

    async def _take(self, question: Question, chat_id: str) -> Grant | None:
        """Take a request, and an answer where one starts, from the server; None when it counts as away. Raises
        ApiError."""
        if (error := self._known_refusal(question)) is not None:
            raise error
        if not self.answering:
            return None
        arguments = question.arguments(self._now(), self._edge, chat_id)
        ended, along = self._settlements.along()
        self._asked.add(chat_id)
        try:
            reply = await self._server.call(ADMIT, self._data.id, *arguments, *along)
        except NoAnswer:
            if self.answering:  # so that others count there, as this one may be already
                raise cannot_count() from None
            return None
        finally:
            self._asked.discard(chat_id)
        verdict, wait, *numbers = reply
        if verdict == "lost":
            self._data.lose()
            return None
        self._settlements.written(ended)
        counts = Counts.of(*numbers)
        grant = counts.grant(question.plan, question.per_address)
        question.remember(self._remembered, verdict, counts, grant)
        if verdict != "ok":
            raise question.refusal(verdict, int(wait) / 1_000_000, counts, grant)
        return grant

    def _take_alone(self, ip: str | None, question: Question) -> Grant:
        if (error := self._alone.refusal(ip, question.principal, question.plan, question.tokens)) is not None:
            raise error
        return self._alone.take_request(ip, question.principal, question.plan)

    def _end(self, chat_id: str, chat: _Chat, tokens: int) -> None:
        self._alone.settle(chat.reservation, tokens)
        self._remembered.forget(("streams", chat.reservation.principal_id))
        if chat.shared:
            self._settlements.add(chat_id, tokens)

    # The task

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        beat_at, check_at = loop.time() + BEAT_SECONDS, loop.time() + _CHECK_SECONDS
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._server.failed.wait()
            self._server.failed.clear()
            now = loop.time()
            try:
                self._upkeep()
                if now >= beat_at or not self.answering:
                    await self._beat()
                    beat_at = now + BEAT_SECONDS
                await self._look()
                await self._settlements.write_all()
                if now >= check_at:
                    self._data.look_at(await self._server.info())
                    check_at = now + _CHECK_SECONDS
            except NoAnswer:
                self._server.failed.clear()  # or it would be tried again at once, and again
            except Exception as error:  # whatever it was, an edge that stops being alive would go unnoticed
                logger.error("The store {} is not kept up ({}): trying again", self._server.name, repr(error))

    def _upkeep(self) -> None:
        self._remembered.sweep()
        self._alone.sweep()
        while self._chats:
            chat_id, chat = next(iter(self._chats.items()))
            if not self._alone.abandoned(chat.reservation):
                return
            del self._chats[chat_id]
            self._end(chat_id, chat, chat.reservation.tokens)

    async def _beat(self) -> None:
        """Say that this edge is alive; give back what the server holds for it and nobody here knows of."""
        data, now, last, swept, *chats = await self._server.probe(BEAT, self._edge, self._data.id)
        if swept:
            logger.warning("{} answers ran at an edge that is gone: counted at their estimate", swept)
        if not self._data.seen(data):
            return
        if 0 < last < self._beaten < now:  # it was started from a copy, or another took over that lacked the end
            text = "The store {} has the data of {:.1f} s ago: what was counted and decided since is lost"
            logger.error(text, self._server.name, (self._beaten - last) / 1_000_000)
        self._beaten = now
        # Admitted, but the reply did not come in time, or nobody waited for it any more.
        for chat_id in chats:
            if not (chat_id in self._chats or chat_id in self._asked or chat_id in self._settlements):
                self._settlements.add(chat_id, 0)

    async def _look(self) -> None:
        data, version, tokens_version, tokens = await self._server.probe(LOOK, self._tokens_version)
        if not self._data.seen(data):
            return
        if version != self._version:
            await self._read_records()
        elif tokens_version != self._tokens_version:
            self._records.tokens = records.revoked_tokens(tokens)
            self._tokens_version = tokens_version

    async def _read_records(self) -> None:
        self._version, self._tokens_version, *found = await self._server.probe(RECORDS)
        records.fill(self._records, found)
        self._remembered.clear()  # limits may be others now, or what was used reset
