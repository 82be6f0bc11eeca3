"""What every edge knows by heart, read from the server's replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edge.store.keys import KeyInfo
from edge.store.records import Maintenance, Records
from shared.signing_keys import SigningKeys


def fill(records: Records, reply: Sequence[Any]) -> None:
    """``reply`` is that of the script ``records`` from the signing keys on."""
    signing_keys, everyone, maintenance, keys, principals, limits, tokens, invites = reply
    records.keys.load(key_from(key_id, text) for key_id, text in pairs(keys).items())
    records.principals = {principal: int(at) for principal, at in pairs(principals).items()}
    records.limits = {principal: json.loads(own) for principal, own in pairs(limits).items()}
    records.tokens = revoked_tokens(tokens)
    records.invites = frozenset(invites)
    records.everyone = int(everyone)
    records.maintenance = maintenance_from(maintenance)
    if (found := SigningKeys.from_json(signing_keys)) != records.signing_keys:
        records.signing_keys = found


def revoked_tokens(flat: Sequence[str]) -> dict[str, int]:
    """jti -> end."""
    return {jti: int(float(end)) for jti, end in pairs(flat).items()}


def pairs(flat: Sequence[str]) -> Mapping[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def key_text(info: KeyInfo, digest: bytes) -> str:
    """One API key as the server keeps it."""
    return json.dumps({**asdict(info), "digest": digest.hex()})


def key_from(key_id: str, text: str) -> tuple[KeyInfo, bytes]:
    found = json.loads(text)
    digest = bytes.fromhex(found.pop("digest"))
    return KeyInfo(**{**found, "id": key_id, "scopes": tuple(found["scopes"])}), digest


def maintenance_from(text: str | None) -> Maintenance | None:
    return Maintenance(**json.loads(text)) if text else None
