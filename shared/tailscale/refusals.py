"""What tailscaled means by a status that is not a success, as the error that says what to do.

Its bodies have three forms: plain text, ``{"error": …}`` and ``{"Error": …}``.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

from shared.tailscale.errors import (
    Changed,
    NotAllowed,
    NotRunning,
    NotSupported,
    RateLimited,
    Refused,
    Right,
    TailscaleError,
    UnexpectedAnswer,
)
from shared.tailscale.reading import Json, mapping, text

# Go's own answer for a path that no handler has. Handlers that find nothing say it in other words.
_NO_SUCH_PATH = "404 page not found"
_LONGEST_WORDS = 300
# Seconds, where the certificate authority names none: Let's Encrypt counts in hours.
_RETRY_AFTER = 3600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Header names in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def succeeded(self) -> bool:
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Json:
        """The object in the body; ``null`` is an empty one. Raises UnexpectedAnswer."""
        try:
            value = json.loads(self.body)
        except ValueError:
            raise UnexpectedAnswer("tailscaled answered with something that is not JSON.") from None
        if value is not None and not isinstance(value, dict):
            raise UnexpectedAnswer("tailscaled answered with JSON of another shape.")
        return value or {}


def words(answer: Answer) -> str:
    """What tailscaled said, in one line and not too long."""
    said = answer.text
    try:
        fields = mapping(json.loads(said))
        said = text(fields.get("error")) or text(fields.get("Error")) or said
    except ValueError:
        pass
    return " ".join(said.split())[:_LONGEST_WORDS] or f"status {answer.status}"


def error_of(answer: Answer, path: str, right: Right) -> TailscaleError:
    """The error that an answer to ``path``, a call that needs ``right``, stands for."""
    said = words(answer)
    call = path.rpartition("/v0/")[2]
    match answer.status:
        case 401 if "auth required" in said:
            return NotAllowed(_ADVICE["token"], "token")
        case 401:
            return NotAllowed(f"{_ADVICE['local admin']} (tailscaled: {said})", "local admin")
        case 403 if "bad password" in said:
            return NotAllowed(_ADVICE["token"], "token")
        case 403 if "invalid localapi request" in said:
            return UnexpectedAnswer("What listens there is tailscaled, but it does not take requests for its LocalAPI.")
        case 403:
            return NotAllowed(f"{_ADVICE[right].format(user=_user())} (tailscaled: {said})", right)
        case 404 if said == _NO_SUCH_PATH:
            return NotSupported(f"This tailscaled has no {call!r}: it is too old, or was built without it. Update it.")
        case 412:
            return Changed("The serve configuration was changed by somebody else meanwhile.")
        case 429:
            seconds = _retry_after(answer)
            return RateLimited(f"The certificate authority asks to wait {seconds:.0f} s: {said}", seconds)
        case 501:
            return NotSupported(f"The control server or this tailscaled does not support {call!r}: {said}")
        case 503:
            return NotRunning(f"tailscaled is not ready yet: {said}", "NoState")
        case _ if "netMap is nil" in said or "SelfNode is nil" in said:
            return NotRunning("This machine is not logged in to a tailnet. Log in: sudo tailscale up", "NeedsLogin")
        case _ if "does not support getting TLS certs" in said:
            return NotSupported(
                "This tailnet gives no certificates: turn on HTTPS certificates among the DNS settings of the tailnet. "
                "A headscale server has none, use plain HTTP there."
            )
        case _:
            return Refused(f"tailscaled refused {call!r}: {said}", answer.status)


_ADVICE: Mapping[Right, str] = {
    "read": "tailscaled does not let this user read its state.",
    "write": (
        "This user may not change tailscaled. Run this as root, or make the user tailscaled's operator: "
        "sudo tailscale set --operator={user}"
    ),
    "cert": (
        "This user may not fetch certificates. Set TS_PERMIT_CERT_UID={user} in tailscaled's environment "
        "(/etc/default/tailscaled) and restart it, or make the user its operator: "
        "sudo tailscale set --operator={user}"
    ),
    "local admin": (
        "To serve a unix socket or a path, be root, or an operator of tailscaled who may run sudo tailscale."
    ),
    "token": (
        "Tailscale's app wants the token of its own user: run this as the user who runs the app, or as an admin of "
        "this Mac."
    ),
}


def _user() -> str:
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _retry_after(answer: Answer) -> float:
    value = answer.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else _RETRY_AFTER
