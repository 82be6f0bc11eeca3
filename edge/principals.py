"""Who a caller is: the principal that tokens carry and limits count, and the pseudonyms made of it."""

from __future__ import annotations

import hmac
import re
import socket
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["anonymous", "invite", "tailnet", "key", "oidc", "access", "user", "token", "local"]
_KINDS = frozenset(get_args(Kind))

SECONDS_PER_DAY = 86_400
# 128 bits: collisions and guesses stay out of reach (design §3.8); 22 characters of base64.
_PSEUDONYM_BYTES = 16
_MAPPED_IPV4 = b"\0" * 10 + b"\xff\xff"
# fd7a:115c:a1e0::/48, where all machines of a tailnet are, often in one /64 (tailscale.com/kb/1033).
_TAILNET_IPV6 = b"\xfd\x7a\x11\x5c\xa1\xe0"
# Before an invite's own id, in the ids of the callers that it let in.
_INVITED = "invite_"

_ID = re.compile(r"[A-Za-z0-9._:@+-]{1,128}")
_WITHOUT_KIND = re.compile(r"local|[A-Za-z0-9_-]{22}")


def is_id(text: str) -> bool:
    """Whether a principal can be called ``text``: it stands in tokens, audit lines and URLs as it is."""
    return _ID.fullmatch(text) is not None


def names_a_kind(text: str) -> bool:
    """Whether ``text`` begins as the id of a principal does that says of which kind it is: ``token_ci``."""
    kind, mark, rest = text.partition("_")
    return kind in _KINDS and bool(mark and rest)


def may_be_principal(text: str) -> bool:
    """Whether a caller can have the id ``text``: one that names its kind, the pseudonym of an anonymous one, or the
    caller of an edge that asks nobody who they are."""
    return is_id(text) and (names_a_kind(text) or _WITHOUT_KIND.fullmatch(text) is not None)


@dataclass(frozen=True, slots=True)
class Principal:
    """One caller. ``id`` is what every limit counts by, ``plan`` the name of the plan that sets them.

    ``origin``, ``chat_types``, ``max_tokens`` and ``uses`` lock the credential to one web origin, some chat types, a
    longest answer, so many answers; None locks nothing. ``limits`` (names of ``plans.LIMITS``) hold in place of the
    plan's, and the models and chat types of ``more_plans`` are open besides. ``jti`` names one token among the
    principal's, ``issued_at`` and ``expires_at`` (Unix seconds) are its begin and end; all three are None for an API
    key without an end. ``kind`` "local" is the caller when authentication is off.
    """

    id: str
    kind: Kind
    plan: str
    scopes: tuple[str, ...]
    origin: str | None = None
    chat_types: tuple[str, ...] | None = None
    max_tokens: int | None = None
    uses: int | None = None
    limits: Mapping[str, int | None] | None = None
    more_plans: tuple[str, ...] | None = None
    jti: str | None = None
    issued_at: int | None = None
    expires_at: int | None = None


def day_of(now: float) -> int:
    """Days since 1970-01-01 UTC at ``now`` (Unix seconds): quotas and anonymous ids turn over together at 00:00 UTC."""
    return int(now // SECONDS_PER_DAY)


def address_block(ip: str) -> str:
    """The addresses that count as one caller: an IPv4 address itself, or the /64 of an IPv6 address, which is what one
    customer gets; in a tailnet each is a machine's own. Text that is no address comes back unchanged."""
    if ":" not in ip:
        return ip
    try:
        packed = socket.inet_pton(socket.AF_INET6, ip.partition("%")[0])
    except (OSError, UnicodeEncodeError, ValueError):  # ValueError: a NUL inside
        return ip
    if packed.startswith(_MAPPED_IPV4):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    if packed.startswith(_TAILNET_IPV6):
        return socket.inet_ntop(socket.AF_INET6, packed)
    return packed[:8].hex() + "/64"


def anonymous_id(secret: bytes, ip: str, origin: str, day: int) -> str:
    """The id of an anonymous caller, the same all day: a fresh token is not a fresh quota. ``day`` as ``day_of``."""
    return _pseudonym(secret, "anonymous", address_block(ip), origin, str(day))


def invited_id(secret: bytes, invite: str, ip: str, origin: str | None) -> str:
    """The id of a caller let in by the invite with id ``invite``, the same for as long as address and origin are: who
    enters the code again is no new caller. A program has no ``origin``."""
    return f"{_INVITED}{invite}_{_pseudonym(secret, 'invite', invite, address_block(ip), origin or '')}"


def invite_of(principal: Principal) -> str | None:
    """The id of the invite that let ``principal`` in, None for any other kind."""
    return principal.id.removeprefix(_INVITED).partition("_")[0] if principal.kind == "invite" else None


def tailnet_id(secret: bytes, login: str) -> str:
    """The id of a person of the tailnet, the same on every device of theirs."""
    return f"tailnet_{_pseudonym(secret, 'tailnet', login)}"


def oidc_id(secret: bytes, issuer: str, subject: str) -> str:
    """The id of whom ``issuer`` calls ``subject``, the same for as long as it does."""
    return f"oidc_{_pseudonym(secret, 'oidc', issuer, subject)}"


def access_id(secret: bytes, issuer: str, sort: str, name: str) -> str:
    """The id of ``name``, a person or a service token of a team of Cloudflare Access."""
    return f"access_{_pseudonym(secret, 'access', issuer, sort, name)}"


def link_id(secret: bytes, principal_id: str) -> str:
    """What a node sees of a principal: stable, and nothing of a name can be read from it."""
    return _pseudonym(secret, "link", principal_id)


def _pseudonym(secret: bytes, *parts: str) -> str:
    # NUL cannot stand in an address, an origin, an id or a claim, so no two lists of parts give the same text.
    digest = hmac.digest(secret, "\0".join(parts).encode(), "sha256")
    return urlsafe_b64encode(digest[:_PSEUDONYM_BYTES]).rstrip(b"=").decode()
