"""What the sections of the settings have in common, and those that belong to neither edge nor node alone: one named
field each, with unit, default and bounds."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from shared import addresses
from shared.settings_fields import AnyPath, Bytes, Capability, FromText, Limit, Texts

KIB = 1024
MIB = 1024 * KIB
DAY = 86400.0  # seconds


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _from_json(cls, section: Any) -> Any:
        """In the environment a section as a whole is JSON; it replaces what other places say of it."""
        if not isinstance(section, str):
            return section
        try:
            return json.loads(section)
        except ValueError:
            raise ValueError("is a section: write its keys one by one, or all of them as JSON") from None


class TlsSettings(Section):
    """Both sides of a link show a certificate and check the other's. Files in PEM; all three, or none: no TLS."""

    certificate: AnyPath | None = Field(
        default=None, description="This side's certificate and those that lead to its authority, as a PEM file."
    )
    key: AnyPath | None = Field(default=None, description="The private key of `certificate`, as a PEM file.")
    authority: AnyPath | None = Field(
        default=None, description="Whose certificates the other side may show: the authority's own, as a PEM file."
    )

    @model_validator(mode="after")
    def _all_or_none(self) -> TlsSettings:
        given = {name: getattr(self, name) is not None for name in type(self).model_fields}
        if any(given.values()) and not all(given.values()):
            missing = ", ".join(name for name, there in given.items() if not there)
            raise ValueError(f"lacks {missing}: both sides show a certificate, so all three files are needed")
        return self

    @property
    def on(self) -> bool:
        return self.certificate is not None


class TailscaleSettings(Section):
    """``[tailscale]``: how edge and node ask the tailscaled of their machine."""

    socket: str = Field(
        default="",
        max_length=107,
        description="Where tailscaled listens, if not at its usual place or at `TS_SOCKET`.",
    )
    node_capability: Capability = Field(
        default="hearthlink.internal/cap/gateway",
        description="The capability of a grant that lets a machine call the node.",
    )
    tester_capability: Capability = Field(
        default="hearthlink.internal/cap/tester",
        description="The capability of a grant that lets a person use the edge through the tailnet.",
    )
    proxy: str | None = Field(
        default=None,
        description="tailscaled's `--outbound-http-proxy-listen`, as `http://HOST:PORT`, for an edge whose tailscaled"
        " runs in userspace networking.",
    )

    @field_validator("proxy")
    @classmethod
    def _http(cls, url: str | None) -> str | None:
        if url is not None and not addresses.is_loopback(addresses.split_url(url, "http").hostname or ""):
            raise ValueError("is not on this machine: it is tailscaled's own proxy, write http://127.0.0.1:1055")
        return url


class PlanSettings(Section):
    """``[plans.<name>]``: what differs from the built-in plan of that name, or a plan of its own.

    ``model_fields_set`` tells what was written; ``"unlimited"`` is read as None.
    """

    requests_per_minute: Limit = Field(
        default=None,
        description='Requests to limited routes. `0`: none; `"unlimited"`: no limit; so for the next five.',
    )
    streams: Limit = Field(default=None, description="Answers that run at once.")
    tokens_per_day: Limit = Field(default=None, description="Prompt and answer together, from 00:00 UTC.")
    tokens_per_request: Limit = Field(default=None, description="The longest answer.")
    tokens_per_day_together: Limit = Field(
        default=None, description="Prompt and answer of all its callers together, from 00:00 UTC."
    )
    seats: Limit = Field(
        default=None,
        description="How many different callers it serves; a seat is free again a day after its caller's last request.",
    )
    models: Texts = Field(default=[], description='Models that may be named; `"*"`: all.')
    chat_types: Texts = Field(default=[], description='Chat types that may be named; `"*"`: all.')
    scopes: Annotated[list[Literal["chat", "admin"]], FromText] = Field(
        default=[], description="What a key or token of this plan may hold: `chat`, `admin`."
    )


class LogSettings(Section):
    """``[logs]``."""

    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"],
        BeforeValidator(lambda level: level.upper() if isinstance(level, str) else level),
    ] = Field(default="INFO", description="What is below it is not written.")
    format: Literal["auto", "json", "text"] = Field(
        default="auto", description="`auto`: text on a terminal, JSON lines anywhere else."
    )


class AuditSettings(Section):
    """``[audit]``: one line for each request and for each act of an admin."""

    sink: str = Field(
        default="log",
        description="Where the lines go: `log`, with everything else; `stdout`; `journald`; or the absolute path of a"
        " file.",
    )
    rotate_at: Bytes = Field(
        default=100 * MIB, ge=64 * KIB, le=1024 * 1024 * MIB, description="A file of this size is put aside."
    )
    keep: int = Field(default=10, ge=1, le=1000, description="Files put aside that are kept.")
    strict: bool = Field(
        default=False,
        description="Whether requests are refused while lines cannot be written. `false`: the edge serves on, keeps the"
        " last lines in memory and raises an alarm.",
    )

    @field_validator("sink")
    @classmethod
    def _place(cls, sink: str) -> str:
        if sink in ("log", "stdout", "journald"):
            return sink
        path = os.path.expanduser(sink)
        if not os.path.isabs(path) or path.endswith("/"):
            raise ValueError('is no sink: write "log", "stdout", "journald", or the absolute path of a file')
        return path

    @model_validator(mode="after")
    def _noticed(self) -> AuditSettings:
        if self.strict and self.sink == "log":
            raise ValueError('has strict without a sink of its own: write sink = "/var/log/hearthlink/audit.log"')
        return self
