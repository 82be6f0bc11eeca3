"""What can go wrong between Hearthlink and tailscaled. Each text says what is missing and what to do.

TailscaleError
 ├─ Unreachable       nothing answers at the socket: not there, refused, hung up, or closed to this user
 ├─ NotAnswering      tailscaled is there and silent: it starts, or hangs
 ├─ NotRunning        it answers and is not in the tailnet; ``state`` and ``auth_url`` say why
 ├─ NotAllowed        this user lacks a right; ``right`` names it
 ├─ NotSupported      this version, this build or the control server does not have that
 ├─ Changed           somebody else changed the serve configuration meanwhile
 ├─ PortTaken         the owner serves something else at that place
 ├─ RateLimited       the certificate authority wants ``retry_after`` seconds of peace
 ├─ UnexpectedAnswer  not what the LocalAPI says, so that nothing can be concluded from it
 └─ Refused           everything else, in tailscaled's own words
"""

from __future__ import annotations

from typing import Literal

Right = Literal["read", "write", "cert", "local admin", "token"]


class TailscaleError(Exception):
    """Its text is for people."""


class Unreachable(TailscaleError):
    pass


class NotAnswering(TailscaleError):
    pass


class NotRunning(TailscaleError):
    """``state`` as tailscaled names it; ``auth_url`` is where a person logs in, or empty."""

    def __init__(self, text: str, state: str, auth_url: str = "") -> None:
        super().__init__(text)
        self.state = state
        self.auth_url = auth_url


class NotAllowed(TailscaleError):
    def __init__(self, text: str, right: Right) -> None:
        super().__init__(text)
        self.right = right


class NotSupported(TailscaleError):
    pass


class Changed(TailscaleError):
    pass


class PortTaken(TailscaleError):
    pass


class RateLimited(TailscaleError):
    """``retry_after`` in seconds."""

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class UnexpectedAnswer(TailscaleError):
    pass


class Refused(TailscaleError):
    """``status`` is the answer's, 0 where the bus said it."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status
