"""Types of single settings values: how each is read from text, and what it must satisfy.

A check raises ValueError with the rest of a sentence that begins with key, value and place.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from shared import addresses, model_names, quantities

Member = TypeVar("Member")

# RFC 6750's characters for a bearer token; a name that can stand in an environment variable and in a log line.
_BEARER = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]|_(?!_)){0,31}")
# As a policy names what an app may grant: a domain and a path, no scheme (tailscale.com/kb/1537).
_CAPABILITY = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+(/[A-Za-z0-9._-]+)+")
# 256 bits as urlsafe text are 43 characters; a hand-made key may be hex of 128 bits.
_MIN_SIGNING_KEY = 32


def _list(value: Any) -> Any:
    """A list from one text: JSON, or parts separated by commas or line ends."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return [part.strip() for part in re.split(r"[,\n]", value) if part.strip()]
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError('is neither a JSON list nor parts separated by commas: write ["one", "two"]') from None


def _unlimited(value: Any) -> Any:
    return None if value == "unlimited" else value


def _listen(text: str) -> str:
    addresses.split_listen(text)
    return text


def _signing_key(key: SecretStr) -> SecretStr:
    if len(key.get_secret_value()) < _MIN_SIGNING_KEY:
        raise ValueError(f"holds a key of fewer than {_MIN_SIGNING_KEY} characters: make one with openssl rand -hex 32")
    return key


def _bearer(token: SecretStr) -> SecretStr:
    if not _BEARER.fullmatch(token.get_secret_value()):
        raise ValueError("is not a token: use 16 to 512 letters, digits or any of . _ ~ + / = -")
    return token


def _header_text(key: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]{1,4096}", key.get_secret_value()):
        raise ValueError("is not a key: it must be one line of ASCII without spaces")
    return key


def _filled(value: Any) -> Any:
    """Refuses an empty text, which as a path would be the working folder."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("is empty: write what is meant, or leave the key out")
    return value


def _absolute(path: Path) -> Path:
    return Path(os.path.expanduser(path)).absolute()  # unlike Path.expanduser, leaves a ~ that is nobody's as it is


def _model(value: Any) -> Any:
    """A name stays text, anything else is the path of a file."""
    if not isinstance(value, str | Path):
        raise ValueError("is neither the path of a GGUF file nor the name of a model: write it as text")
    _filled(value)
    return value if isinstance(value, str) and model_names.is_name(value) else _absolute(Path(value))


def _capability(name: str) -> str:
    if not _CAPABILITY.fullmatch(name) or name.startswith("tailscale.com/"):
        raise ValueError('is not the name of a capability: write "example.com/cap/gateway", on a domain of your own')
    return name


def named(members: dict[str, Member]) -> dict[str, Member]:
    """``members`` when each name can stand in a variable's name and a log line. Raises ValueError."""
    if wrong := [name for name in members if not _NAME.fullmatch(name)]:
        raise ValueError(f"has the name {wrong[0][:40]!r}: use up to 32 of a-z, 0-9, - and single _")
    return members


Listen = Annotated[str, AfterValidator(_listen)]
NodeName = Annotated[str, AfterValidator(addresses.member)]
Capability = Annotated[str, AfterValidator(_capability)]
Origin = Annotated[str, AfterValidator(addresses.origin)]
Https = Annotated[str, AfterValidator(addresses.https_or_loopback)]
HostName = Annotated[str, AfterValidator(addresses.host_name)]
Network = Annotated[str, AfterValidator(addresses.network)]
Seconds = Annotated[float, BeforeValidator(quantities.duration)]
Bytes = Annotated[int, BeforeValidator(quantities.size)]
Bearer = Annotated[SecretStr, AfterValidator(_bearer)]
ApiKey = Annotated[SecretStr, AfterValidator(_header_text)]
SigningKey = Annotated[SecretStr, AfterValidator(_signing_key)]
AnyPath = Annotated[Path, BeforeValidator(_filled), AfterValidator(_absolute)]
Model = Annotated[Path | str, BeforeValidator(_model)]
ModelName = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f]{1,256}$")]
FromText = BeforeValidator(_list)
Texts = Annotated[list[str], FromText]
Limit = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_unlimited)]
