"""The sections of the settings: one named field each, with unit, default and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from shared import addresses
from shared.settings_fields import (
    AnyPath,
    ApiKey,
    Bearer,
    Bytes,
    FromText,
    Limit,
    Listen,
    Network,
    Origin,
    Seconds,
    SigningKey,
    Texts,
    named,
)

KIB = 1024
MIB = 1024 * KIB
DAY = 86400.0  # seconds
DEFAULT_LINK = "ws://127.0.0.1:8001/link"
DEMO_MODEL = Path(__file__).resolve().parent.parent / "models" / "demo.gguf"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class UpstreamSettings(Section):
    """One node. ``link``: the edge dials ``url``; ``bridge``: the node dials in. ``priority``: lower is asked first."""

    kind: Literal["link", "bridge"] = "link"
    url: str
    token: Bearer | None = None  # None: the state's node-token
    priority: int = Field(default=0, ge=0, le=1000)
    links: int = Field(default=1, ge=1, le=8)  # connections that streams are spread over

    @field_validator("url")
    @classmethod
    def _websocket(cls, url: str, info: ValidationInfo) -> str:
        if info.data.get("kind") != "bridge":
            addresses.split_url(url, "ws", "wss")
        return url


class EdgeSettings(Section):
    """``[edge]``: the public side."""

    listen: Listen = "127.0.0.1:8700"
    ops_listen: Listen = "127.0.0.1:8701"
    public_url: str | None = None  # scheme and host as callers see them
    allowed_origins: Annotated[list[Origin], FromText] = []
    require_authentication: bool = True
    anonymous: bool = True  # the door for browsers without an account
    anonymous_raw_models: bool = False  # anonymous callers get chat types only
    trusted_proxies: Annotated[list[Network], FromText] = []  # whose X-Forwarded-For is believed
    token_lifetime: Seconds = Field(default=600.0, ge=10, le=30 * DAY)
    max_body: Bytes = Field(default=MIB, ge=KIB, le=8 * MIB)
    header_timeout: Seconds = Field(default=10.0, gt=0, le=300)
    body_timeout: Seconds = Field(default=20.0, gt=0, le=300)
    slow_reader_timeout: Seconds = Field(default=30.0, gt=0, le=600)
    heartbeat: Seconds = Field(default=10.0, gt=0, le=300)
    drain_timeout: Seconds = Field(default=20.0, ge=0, le=300)
    request_timeout: Seconds = Field(default=600.0, gt=0, le=DAY)
    requests_per_minute_per_ip: int = Field(default=100, ge=1, le=1_000_000)
    upstreams: dict[str, UpstreamSettings] = Field(default_factory=dict, validate_default=True)
    signing_keys: Annotated[list[SigningKey], FromText] = []  # oldest first, the last one signs; empty: the state's

    @field_validator("public_url")
    @classmethod
    def _public(cls, url: str | None) -> str | None:
        if url is not None and addresses.split_url(url, "http", "https").path not in ("", "/"):
            raise ValueError("has a path: Hearthlink answers at the root of a host name, write https://HOST")
        return url.rstrip("/") if url else url

    @field_validator("ops_listen")
    @classmethod
    def _ops_on_loopback(cls, listen: str) -> str:
        if not addresses.is_loopback(addresses.split_listen(listen)[0]):
            raise ValueError("is not loopback: metrics and full health have no password, write 127.0.0.1:8701")
        return listen

    @field_validator("require_authentication")
    @classmethod
    def _open_on_loopback_only(cls, required: bool, info: ValidationInfo) -> bool:
        listen = info.data.get("listen")
        if not required and listen and not addresses.is_loopback(addresses.split_listen(listen)[0]):
            raise ValueError(f"may be off on loopback only, and edge.listen is {listen}: change one of them")
        return required

    @field_validator("upstreams", mode="before")
    @classmethod
    def _local_node(cls, upstreams: Any) -> Any:
        """The node on this machine, when none is named or when "default" is given no more than, say, a token."""
        if not isinstance(upstreams, Mapping):
            return upstreams
        named = dict(upstreams) or {"default": {}}
        if isinstance(default := named.get("default"), Mapping):
            named["default"] = {"url": DEFAULT_LINK, **default}
        return named

    @field_validator("upstreams")
    @classmethod
    def _names(cls, upstreams: dict[str, UpstreamSettings]) -> dict[str, UpstreamSettings]:
        return named(upstreams)


class RuntimeSettings(Section):
    """``[node.runtime]``: what computes the answers."""

    kind: Literal["auto", "embedded", "openai"] = "auto"
    allow_remote_runtime: bool = False
    url: str | None = Field(default=None, validate_default=True)
    key: ApiKey | None = None
    model: AnyPath | None = Field(default_factory=lambda: DEMO_MODEL if DEMO_MODEL.is_file() else None)
    default_model: str | None = Field(default=None, min_length=1, max_length=256)
    context: int | None = Field(default=None, ge=128, le=16_777_216)  # tokens per slot; None: what the model says
    gpu_layers: int = Field(default=-1, ge=-1)  # -1: all that fit
    threads: int | None = Field(default=None, ge=1, le=1024)

    @field_validator("url")
    @classmethod
    def _reachable(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is None:
            if info.data.get("kind") == "openai":
                raise ValueError('is missing: kind = "openai" needs the server\'s URL, such as http://127.0.0.1:1234')
            return None
        url = addresses.split_url(text, "http", "https")
        host = url.hostname or ""
        if addresses.is_loopback(host):
            return text
        if not info.data.get("allow_remote_runtime"):
            raise ValueError(
                "is not on this machine: set node.runtime.allow_remote_runtime = true to send prompts there"
            )
        if url.scheme != "https" and not addresses.is_tailnet(host):
            raise ValueError(
                "would carry prompts unencrypted to another machine: use https, or an address of the tailnet"
            )
        return text


class NodeSettings(Section):
    """``[node]``: the side of the GPU."""

    listen: Listen = "127.0.0.1:8001"
    tokens: Annotated[list[Bearer], FromText] = []  # current and next; empty: the state's node-token
    queue: int = Field(default=64, ge=0, le=10_000)  # requests that may wait for a slot
    slots: int | None = Field(default=None, ge=1, le=65_536)  # answers at once; None: what the runtime says
    chat_types: AnyPath | None = None  # a folder that replaces the shipped one
    first_token_timeout: Seconds = Field(default=120.0, gt=0, le=DAY)
    stall_timeout: Seconds = Field(default=60.0, gt=0, le=DAY)
    drain_timeout: Seconds = Field(default=20.0, ge=0, le=300)
    max_tokens: int = Field(default=4096, ge=1, le=1_000_000)  # cap of one answer
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings)

    @field_validator("listen")
    @classmethod
    def _loopback(cls, listen: str) -> str:
        if not addresses.is_loopback(addresses.split_listen(listen)[0]):
            raise ValueError(
                "is not loopback: the node would be open to a network without knowing who calls; write 127.0.0.1:8001"
                " and let the edge on this machine, or a tunnel, reach it there"
            )
        return listen


class PlanSettings(Section):
    """``[plans.<name>]``: what differs from the built-in plan of that name, or a plan of its own.

    ``model_fields_set`` tells what was written; ``"unlimited"`` is read as None.
    """

    requests_per_minute: Limit = None
    streams: Limit = None
    tokens_per_day: Limit = None
    tokens_per_request: Limit = None
    models: Texts = []  # ids, or "*" for all
    chat_types: Texts = []
    scopes: Texts = []


class LogSettings(Section):
    """``[logs]``."""

    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"],
        BeforeValidator(lambda level: level.upper() if isinstance(level, str) else level),
    ] = "INFO"
    format: Literal["auto", "json", "text"] = "auto"
