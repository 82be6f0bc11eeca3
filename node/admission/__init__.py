"""Who may call the node: a machine that the tailnet's policy lets in, with a bearer token from the node's list. The
list has two while one is rotated."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from loguru import logger

from node.admission.callers import EDGE_TAG, Caller, Callers, Role
from shared.asgi.types import Scope, header
from shared.contract.errors import ApiError

# Seconds until tailscaled is asked again that could not say who calls.
_RETRY = 2.0
# Refusals are logged once in so many seconds for each caller and reason, and for so many of them: what repeats itself
# must not fill the disk.
_LOGGED_EVERY = 30.0
_MOST_LOGGED = 300


class Admission:
    """``callers`` are asked who a connection comes from. There is nothing to ask on an interface, where the certificate
    has said it, and at a unix socket, which the owner alone can open.

    Whoever is refused loses the connection: those who may not call must not use up what the node can hold.
    """

    def __init__(self, tokens: Sequence[str], callers: Callers | None = None) -> None:
        self.accept(tokens)
        self._callers = callers
        self._logged: dict[tuple[str, str], float] = {}

    def accept(self, tokens: Sequence[str]) -> None:
        """Replace the list; links that are up stay up."""
        self._tokens = [token.encode() for token in tokens]

    async def admit(self, scope: Scope, needs: Role = "infer") -> None:
        """Let in a machine that has the role ``needs`` and shows a token. Raises ApiError as ``admit_machine``, and
        ``missing_token`` or ``invalid_token``, which say what must match and never what was sent."""
        name = await self._admit_machine(scope, needs)
        given = header(scope, b"authorization")
        if given is None:
            text = "The node wants its bearer token: Authorization: Bearer hln_…."
            raise self.refusal(scope, "missing_token", text, name)
        scheme, _, token = given.partition(b" ")
        token = token.strip()
        known = [hmac.compare_digest(token, mine) for mine in self._tokens]
        if scheme.lower() != b"bearer" or not any(known):
            text = (
                "The node token does not match. Give the edge (edge.upstreams.NAME.token) one of node.tokens, or where"
                " there are none what the node's file node-token holds."
            )
            raise self.refusal(scope, "invalid_token", text, name)

    async def admit_machine(self, scope: Scope, needs: Role = "infer") -> None:
        """Let in a machine that has the role ``needs``, whatever it shows. Raises ApiError ``address_not_allowed``, and
        ``node_unavailable`` while tailscaled cannot say who it is."""
        await self._admit_machine(scope, needs)

    async def has_role(self, scope: Scope, role: Role) -> bool:
        """Whether a machine that was let in, by a connection that still stands, has ``role`` now. A certificate on an
        interface and the owner's socket have all. Raises ApiError ``node_unavailable`` as ``admit_machine``."""
        if self._callers is None or not self._by_network(scope):
            return True
        return role in (await self._callers.who(scope)).roles

    def principal(self, scope: Scope) -> str:
        """Whose an answer is that the caller of ``scope``, which was let in, asks for beside any edge: an opaque id for
        each machine or person of the tailnet, and one for all who are on this machine or show a certificate."""
        seen = self._callers.seen(scope) if self._callers is not None and self._by_network(scope) else None
        if seen is None or not seen.name:
            return "http"
        return f"http:{hashlib.sha256(seen.name.encode()).hexdigest()[:16]}"

    @asynccontextmanager
    async def kept(
        self,
        scope: Scope,
        denied: Callable[[ApiError], None],
        unsure: Callable[[ApiError | None], None] = lambda error: None,
        needs: Role = "infer",
    ) -> AsyncIterator[None]:
        """Look the machine up again while the block runs, as often as ``Callers`` forgets it: for links and answers,
        which may last longer than a policy. ``denied`` is called once, when it is no longer let in.

        While tailscaled cannot say, nothing is ended, however long that lasts: ``unsure`` is given the error, and None
        once it can say again. Neither may raise.
        """
        if not self._may_change(scope):
            yield
            return
        looking = asyncio.create_task(self._look_again(scope, denied, unsure, needs))
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def refusal(self, scope: Scope, code: str, text: str, name: str = "") -> ApiError:
        """The error for a caller that is not let in, ``text`` being what it is told; one line in the log says so."""
        host, _ = scope["client"] or ("", 0)
        who = f"{name} ({host})" if name else host or "node.sock"  # who comes by the owner's socket has no address
        self._log(who, code, f"refused {who}: {text}")
        return _closing(ApiError(code, text))

    async def _admit_machine(self, scope: Scope, needs: Role) -> str:
        """Its name, empty where nobody is asked for it."""
        return (await self._look_up(scope, needs)).name if self._by_network(scope) else ""

    async def _look_up(self, scope: Scope, needs: Role, known_as: str = "") -> Caller:
        """``known_as`` is its name where it was let in before: whom a new policy hides has none any more."""
        if self._callers is None:
            raise self.refusal(scope, "address_not_allowed", "The node does not ask a tailnet who calls.")
        try:
            caller = await self._callers.who(scope)
        except ApiError as error:
            host, _ = scope["client"]
            self._log("tailscaled", error.code, f"cannot tell who calls from {host}: {error.__cause__}")
            raise _closing(error) from error.__cause__
        if needs in caller.roles:
            return caller
        if name := caller.name or known_as:
            grant = f'a grant of the capability {self._callers.capability} with the role "{needs}"'
            wanted = f"{EDGE_TAG}, or {grant}" if needs == "infer" else grant
            text = f"The tailnet's policy does not let this caller in: the node wants {wanted}."
        else:
            text = "The tailnet knows nobody at the address that this call came from."
        raise self.refusal(scope, "address_not_allowed", text, name)

    async def _look_again(
        self, scope: Scope, denied: Callable[[ApiError], None], unsure: Callable[[ApiError | None], None], needs: Role
    ) -> None:
        clock = asyncio.get_running_loop().time
        name = ""
        while True:
            try:
                caller = await self._look_up(scope, needs, name)
            except ApiError as error:
                if error.code != "node_unavailable":
                    denied(error)
                    return
                unsure(error)
                await asyncio.sleep(_RETRY)
            else:
                name = caller.name
                unsure(None)
                await asyncio.sleep(caller.until - clock())

    def _by_network(self, scope: Scope) -> bool:
        """Whether ``callers`` are to say who it is."""
        rights = scope["state"]["listener"]
        if rights == "ops":
            return scope["client"] is not None and self._callers is not None
        return rights != "interface"

    def _may_change(self, scope: Scope) -> bool:
        """Whether a caller that was let in may not be any more, later."""
        if self._callers is None or not self._by_network(scope):
            return False
        seen = self._callers.seen(scope)
        return seen is None or seen.until < math.inf

    def _log(self, name: str, code: str, line: str) -> None:
        now = asyncio.get_running_loop().time()
        last = self._logged.get((name, code))
        if last is not None and now - last < _LOGGED_EVERY:
            return
        self._logged = {key: at for key, at in self._logged.items() if now - at < _LOGGED_EVERY}
        if len(self._logged) < _MOST_LOGGED:
            self._logged[name, code] = now
            logger.warning("{}", line)


def _closing(error: ApiError) -> ApiError:
    error.extra_headers.append((b"connection", b"close"))
    return error
