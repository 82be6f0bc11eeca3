"""The states of tailscaled, and the sentence for each that is not Running."""

from __future__ import annotations

from enum import StrEnum

from shared.tailscale.errors import NotRunning


class State(StrEnum):
    """As ``BackendState`` has it. The bus has the number of the place."""

    NO_STATE = "NoState"
    IN_USE_OTHER_USER = "InUseOtherUser"
    NEEDS_LOGIN = "NeedsLogin"
    NEEDS_MACHINE_AUTH = "NeedsMachineAuth"
    STOPPED = "Stopped"
    STARTING = "Starting"
    RUNNING = "Running"

    @classmethod
    def read(cls, value: object) -> State | None:
        """Of a name or of the bus's number; None is one that this version does not know."""
        if isinstance(value, int) and not isinstance(value, bool):
            states = list(cls)
            return states[value] if 0 <= value < len(states) else None
        try:
            return cls(value)
        except ValueError:
            return None


def not_running(state: State | None, auth_url: str = "", *, expired: bool = False) -> NotRunning | None:
    """Why this machine is not in the tailnet; None when it is. ``expired`` is its own key's."""
    if expired:
        return NotRunning(
            "The key of this machine in the tailnet has expired. Log in again: sudo tailscale up --force-reauth",
            State.NEEDS_LOGIN,
            auth_url,
        )
    if state is State.RUNNING:
        return None
    return NotRunning(_sentence(state, auth_url), state or "", auth_url)


def _sentence(state: State | None, auth_url: str) -> str:
    match state:
        case State.NEEDS_LOGIN:
            how = f"open {auth_url}" if auth_url else "sudo tailscale up"
            return f"This machine is not logged in to a tailnet. Log in: {how}"
        case State.NEEDS_MACHINE_AUTH:
            return "This machine waits to be approved: an admin of the tailnet approves it among its machines."
        case State.STOPPED:
            return "Tailscale is stopped on this machine. Start it: sudo tailscale up"
        case State.IN_USE_OTHER_USER:
            return "Tailscale is in use by another user of this machine. Log that user out of Tailscale first."
        case State.NO_STATE | State.STARTING:
            return "Tailscale is starting. This passes by itself; if it does not: tailscale status"
        case _:
            return "tailscaled is in a state that Hearthlink does not know. Look at it: tailscale status"
