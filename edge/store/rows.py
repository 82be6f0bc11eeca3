"""Keys, invites and callers as JSON: the same on the command line and from ``/admin``. Times are Unix seconds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edge.store.admin import Standing
from edge.store.invites import InviteInfo
from edge.store.keys import KeyInfo
from edge.store.records import Maintenance


def key_row(info: KeyInfo, now: float) -> dict[str, Any]:
    """``state`` is valid, expired or revoked; ``principal`` is what limits and audit lines name."""
    if info.revoked_at is not None:
        state = "revoked"
    else:
        state = "expired" if info.expires_at is not None and info.expires_at <= now else "valid"
    return {**asdict(info), "scopes": list(info.scopes), "principal": info.principal_id, "state": state}


def invite_row(info: InviteInfo, now: float) -> dict[str, Any]:
    """``state`` is valid, used up, expired or revoked."""
    if info.revoked_at is not None:
        state = "revoked"
    elif info.expires_at <= now:
        state = "expired"
    else:
        state = "valid" if info.used < info.uses else "used up"
    return {**asdict(info), "state": state}


def standing_row(standing: Standing) -> dict[str, Any]:
    """Tokens of today, answers that run; ``limits`` None: those of the plan."""
    return {
        "principal": standing.principal,
        "used": standing.used,
        "reserved": standing.reserved,
        "running": standing.running,
        "limits": None if standing.limits is None else dict(standing.limits),
        "revoked_at": standing.revoked_at,
    }


def maintenance_row(maintenance: Maintenance | None) -> dict[str, Any]:
    return {"on": False} if maintenance is None else {"on": True, **asdict(maintenance)}
