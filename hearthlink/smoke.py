"""``hearthlink smoke URL``: does an edge do what it promises, seen from here? Its exit status is for CI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hearthlink import options
from hearthlink.output import Failure, Status, print_json, printable

if TYPE_CHECKING:
    from hearthlink.client import EdgeClient

_CHECK_SECONDS = 120.0  # a model that has to be loaded first answers within this, or the check has failed
_STOPPED_SECONDS = 5.0
_QUESTION = "It is raining and we have two kids with us. Where shall we go?"
_SHORT, _LONG = 32, 512  # tokens
# A stream whose words all arrive in its last twentieth, after at least a second of silence, was held back on its way.
_HELD_BACK_SECONDS = 1.0
_HELD_BACK_SHARE = 0.05
_FEW_EVENTS = 5  # of a short answer nobody can tell

Outcome = Literal["ok", "failed", "skipped"]
_MARKS = {"ok": "[ok]", "failed": "[x] ", "skipped": "[-] "}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the result; ``ms`` is how long it took."""

    name: str
    outcome: Outcome
    ms: float
    detail: str

    def __str__(self) -> str:
        return f"{_MARKS[self.outcome]} {self.name:<7}{self.ms:>7.0f} ms  {self.detail}"


def smoke(
    url: Annotated[str, typer.Argument(help="The edge, as its callers see it.", show_default=False)],
    key: Annotated[
        str | None, typer.Option("--key", envvar="HEARTHLINK_SMOKE_KEY", help="An API key; - reads standard input.")
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", envvar="HEARTHLINK_SMOKE_TOKEN", help="A token; - reads standard input.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Check an edge: does it answer, stream, stop and remember?

    It looks at health, token, chat, stream, cancel and conversations. Exit status 0 when all are well, else 1.

    Without key or token it goes in as a page on URL would; that origin has to be in edge.allowed_origins. Behind
    Cloudflare Access it shows the service token in CF_ACCESS_CLIENT_ID and CF_ACCESS_CLIENT_SECRET to CF_ACCESS_HOST.
    """
    credentials = (options.read_secret(key, "key"), options.read_secret(token, "token"))
    checks = asyncio.run(_run(url, *credentials, show=(lambda check: None) if json else _show))
    good = all(check.outcome == "ok" for check in checks)
    if json:
        print_json({"url": url, "ok": good, "checks": [asdict(check) for check in checks]})
    if not good:
        raise typer.Exit(Status.FAILED)


def _show(check: Check) -> None:
    print(printable(str(check)), flush=True)


async def _run(url: str, key: str | None, token: str | None, show: Callable[[Check], None]) -> list[Check]:
    from hearthlink.client import EdgeClient

    async with EdgeClient(url, {}) as edge:
        return await _Smoke(edge, key, token, show).run()


@dataclass(slots=True)
class _Smoke:
    """The checks in their order; what needs the token is skipped without one."""

    edge: EdgeClient
    key: str | None
    token: str | None
    show: Callable[[Check], None]
    done: list[Check] = field(default_factory=list)

    async def run(self) -> list[Check]:
        await self._check("health", self._health)
        let_in = await self._check("token", self._token)
        for name, work in (
            ("chat", self._chat),
            ("stream", self._stream),
            ("cancel", self._cancel),
            ("memory", self._memory),
        ):
            if let_in:
                await self._check(name, work)
            else:
                self._add(Check(name, "skipped", 0.0, "needs the token"))
        return self.done

    async def _check(self, name: str, work: Callable[[], Awaitable[str]]) -> bool:
        began = time.monotonic()
        outcome: Outcome = "failed"
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                detail = await work()
            outcome = "ok"
        except TimeoutError:
            detail = f"No answer within {_CHECK_SECONDS:.0f} s. The edge's log may say why."
        except Failure as failure:
            if failure.status is Status.USAGE:
                raise
            detail = str(failure)
        except (KeyError, IndexError, TypeError):
            detail = "The answer lacks what an edge of this version says. Upgrade the older one of both."
        self._add(Check(name, outcome, round((time.monotonic() - began) * 1000, 1), detail))
        return outcome == "ok"

    def _add(self, check: Check) -> None:
        self.done.append(check)
        self.show(check)

    async def _health(self) -> str:
        health = await self.edge.health()
        return f"{health['status']}, version {health['version']}"

    async def _token(self) -> str:
        if self.token is not None:
            self.edge.use({"Authorization": f"Bearer {self.token}"})
            me = _object(await self.edge.ask("GET", "/v1/me"))
            return f"given, plan {me['principal']['plan']}"
        if self.key is not None:
            self.edge.use({"Authorization": f"Bearer {self.key}"})
        elif not self.edge.behind_access:  # there the edge knows a program by its service token
            self.edge.use({"Origin": self.edge.origin})
        minted = _object(await self._minted())
        self.edge.use({"Authorization": f"Bearer {minted['token']}"})
        return f"plan {minted['principal']['plan']}, for {minted['expires_in']} s"

    async def _minted(self) -> Any:
        try:
            return await self.edge.ask("POST", "/v1/token", {})
        except Failure as failure:
            if self.key is not None or not self.edge.behind_access:
                raise
            raise Failure(
                f"{failure} It was asked with the service token in CF_ACCESS_CLIENT_ID and CF_ACCESS_CLIENT_SECRET"
                " alone. Where Cloudflare Access is a gate and no door of the edge, give --key too.",
                failure.status,
            ) from None

    async def _chat(self) -> str:
        answer = _object(await self.edge.ask("POST", "/v1/chat", {**_question(_SHORT), "stream": False}))
        text = answer["choices"][0]["message"]["content"]
        if not text:
            raise Failure("The answer has no words.", request_id=answer.get("request_id", ""))
        return f"{answer['usage']['completion_tokens']} tokens from {answer['model']}"

    async def _stream(self) -> str:
        began = time.monotonic()
        at: list[float] = []
        async with self.edge.stream(_question(_SHORT)) as answer:
            async for part in answer.parts():
                if part.text:
                    at.append(time.monotonic() - began)
        if not at:
            raise Failure("The stream had no words in it.", request_id=answer.request_id)
        held_back = at[0] > _HELD_BACK_SECONDS and at[-1] - at[0] < _HELD_BACK_SHARE * at[-1]
        if held_back and len(at) >= _FEW_EVENTS:
            raise Failure(
                f"All {len(at)} events came at once, after {at[0]:.1f} s: something between here and the edge collects"
                " them. Turn buffering off there (nginx: proxy_buffering off)."
            )
        first, last = at[0] * 1000, at[-1] * 1000
        return f"{len(at)} events, the first after {first:.0f} ms, the last after {last:.0f} ms, then [DONE]"

    async def _cancel(self) -> str:
        async with self.edge.stream(_question(_LONG)) as answer:
            stopped = await self.edge.stop(answer.chat_id)
            words = 0
            try:
                async with asyncio.timeout(_STOPPED_SECONDS):
                    async for part in answer.parts():
                        words += bool(part.text)
            except TimeoutError:
                raise Failure(
                    f"The answer went on for {_STOPPED_SECONDS:.0f} s after DELETE /v1/chat/ID.",
                    request_id=answer.request_id,
                ) from None
        events = "1 event" if words == 1 else f"{words} events"
        if stopped:
            return f"stopped after {events}"
        return f"the answer ({events}) was over before it could be stopped"

    async def _memory(self) -> str:
        """Two questions in one conversation, which is read and deleted."""
        asked = {"message": _QUESTION, "chat_type": "whereToGo", "max_tokens": _SHORT, "stream": False}
        try:
            first = _object(await self.edge.ask("POST", "/api/chat", asked))
        except Failure as failure:
            if failure.status is Status.NOT_FOUND:
                return "the node keeps no conversations"
            raise
        conversation = first["conversation_id"]
        second = _object(await self.edge.ask("POST", "/api/chat", {**asked, "conversation_id": conversation}))
        path = f"/api/conversations/{conversation}"
        said = [message["content"] for message in _object(await self.edge.ask("GET", path))["messages"]]
        await self.edge.ask("DELETE", path)
        if said != [_QUESTION, first["response"], _QUESTION, second["response"]]:
            raise Failure("The conversation does not hold what was said in it.")
        return f"{len(said)} messages kept, then deleted"


def _question(max_tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": _QUESTION}], "chat_type": "whereToGo", "max_tokens": max_tokens}


def _object(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise Failure("The answer is not a JSON object: this is not a Hearthlink edge.")
    return answer
