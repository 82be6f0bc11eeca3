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
    Model,
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

    kind: Literal["link", "bridge"] = Field(
        default="link",
        description="`link`: the edge dials `url`. `bridge`: the node dials in, which this version does not do yet.",
    )
    url: str = Field(description="The node's link, `ws://HOST:PORT/link`. The upstream `default` has this machine's.")
    token: Bearer | None = Field(
        default=None,
        description="What the edge shows the node, one of its `node.tokens`. Without it, the state's `node-token`.",
    )
    priority: int = Field(default=0, ge=0, le=1000, description="The lowest is asked first.")
    links: int = Field(
        default=1,
        ge=1,
        le=8,
        description="Connections that this node's answers are spread over. One is enough where no packets are lost.",
    )

    @field_validator("url")
    @classmethod
    def _websocket(cls, url: str, info: ValidationInfo) -> str:
        if info.data.get("kind") != "bridge":
            addresses.split_url(url, "ws", "wss")
        return url


class EdgeSettings(Section):
    """``[edge]``: the public side."""

    listen: Listen = Field(
        default="127.0.0.1:8700",
        description="Where callers connect. Something that speaks TLS belongs in front of anything but loopback.",
    )
    ops_listen: Listen = Field(
        default="127.0.0.1:8701", description="Metrics and full health, without a password: loopback only."
    )
    public_url: str | None = Field(
        default=None,
        description="Scheme and host as callers see them: `https://chat.example.org`. Nothing depends on it yet.",
    )
    allowed_origins: Annotated[list[Origin], FromText] = Field(
        default=[], description="Pages (scheme, host, port) that may get a token and call from a browser."
    )
    require_authentication: bool = Field(
        default=True, description="`false` lets every caller in as the owner; possible on loopback only."
    )
    page: bool = Field(default=True, description="Whether `/` is the chat page.")
    anonymous: bool = Field(
        default=True, description="Whether a page on an allowed origin gets a token without an account."
    )
    invites: bool = Field(
        default=False, description="Whether an invite gives a token: `hearthlink invite create` makes them."
    )
    anonymous_raw_models: bool = Field(
        default=False, description="Whether anonymous callers may name models; without it they get chat types only."
    )
    trusted_proxies: Annotated[list[Network], FromText] = Field(
        default=[],
        description="Addresses or networks of servers in front of the edge; their `X-Forwarded-For` is believed.",
    )
    token_lifetime: Seconds = Field(
        default=600.0, ge=10, le=30 * DAY, description="How long a token of `POST /v1/token` is valid."
    )
    max_body: Bytes = Field(default=MIB, ge=KIB, le=8 * MIB, description="The largest request body.")
    header_timeout: Seconds = Field(
        default=10.0, gt=0, le=300, description="In which a request's headers must have come."
    )
    body_timeout: Seconds = Field(default=20.0, gt=0, le=300, description="In which a request's body must have come.")
    slow_reader_timeout: Seconds = Field(
        default=30.0,
        gt=0,
        le=600,
        description="How long a caller may leave a stream unread before it is cut (`slow_consumer`).",
    )
    heartbeat: Seconds = Field(
        default=10.0,
        gt=0,
        le=300,
        description="After this silence a stream gets a comment line, so that nothing in between closes it.",
    )
    drain_timeout: Seconds = Field(
        default=20.0, ge=0, le=300, description="How long running answers may go on after SIGTERM."
    )
    request_timeout: Seconds = Field(
        default=600.0, gt=0, le=DAY, description="The longest an answer may take, waiting included."
    )
    requests_per_minute_per_ip: int = Field(
        default=100,
        ge=1,
        le=1_000_000,
        description="For all callers behind one address together (of IPv6, behind one /64).",
    )
    upstreams: dict[str, UpstreamSettings] = Field(default_factory=dict, validate_default=True)
    signing_keys: Annotated[list[SigningKey], FromText] = Field(
        default=[],
        description="They sign tokens: the last one, the others are still accepted. Empty: the state's `signing-keys`.",
    )

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

    kind: Literal["auto", "embedded", "openai"] = Field(
        default="auto",
        description="`embedded`: llama.cpp. `openai`: a server at `url`. `auto`: one found here, else `embedded`.",
    )
    allow_remote_runtime: bool = Field(
        default=False, description="Whether `url` may be another machine, which then sees the prompts."
    )
    url: str | None = Field(
        default=None,
        validate_default=True,
        description="The server of `openai`, with or without `/v1`. `LM_STUDIO_BASE_URL` is read when this is not set.",
    )
    key: ApiKey | None = Field(default=None, description="What that server wants as `Authorization: Bearer`.")
    model: Model | None = Field(
        default_factory=lambda: DEMO_MODEL if DEMO_MODEL.is_file() else None,
        description="The GGUF file of `embedded`, or a model as `model pull` names it, which `hearthlink node` pulls.",
    )
    default_model: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="The model that answers when nobody names one. Without it, one that the server has in memory.",
    )
    context: int | None = Field(
        default=None,
        ge=128,
        le=16_777_216,
        description="Tokens of prompt and answer together, for each slot. Without it, what the model says.",
    )
    gpu_layers: int = Field(
        default=-1, ge=-1, description="Layers of the model that the GPU computes; -1: all that fit."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads of `embedded`. Without it, one per core, less one of four and more.",
    )

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

    @property
    def embedded(self) -> bool:
        """Whether the node loads ``model``: told to, or given a model and no server. ``auto`` with neither looks around
        first."""
        if self.kind != "embedded" and self.url is not None:
            return False
        return self.kind == "embedded" or "model" in self.model_fields_set


class NodeSettings(Section):
    """``[node]``: the side of the GPU."""

    listen: Listen = Field(
        default="127.0.0.1:8001", description="Where the edge's link connects. Loopback only in this version."
    )
    tokens: Annotated[list[Bearer], FromText] = Field(
        default=[],
        description="What an edge may show: the current one and the next. Empty: the state's `node-token`.",
    )
    queue: int = Field(
        default=64,
        ge=0,
        le=10_000,
        description="Requests that may wait for a slot; one more is refused with `overloaded`.",
    )
    slots: int | None = Field(
        default=None, ge=1, le=65_536, description="Answers that run at once. Without it, what the runtime says."
    )
    chat_types: AnyPath | None = Field(
        default=None, description="A folder of chat types that replaces the shipped one."
    )
    first_token_timeout: Seconds = Field(
        default=120.0, gt=0, le=DAY, description="From the beginning of an answer's turn to its first token."
    )
    stall_timeout: Seconds = Field(
        default=60.0, gt=0, le=DAY, description="How long the runtime may be silent in the middle of an answer."
    )
    drain_timeout: Seconds = Field(
        default=20.0, ge=0, le=300, description="How long running answers may go on after SIGTERM."
    )
    max_tokens: int = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="The longest answer of this node, whatever plan and chat type allow.",
    )
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

    requests_per_minute: Limit = Field(
        default=None,
        description='Requests to limited routes. `0`: none; `"unlimited"`: no limit; so for the next three.',
    )
    streams: Limit = Field(default=None, description="Answers that run at once.")
    tokens_per_day: Limit = Field(default=None, description="Prompt and answer together, from 00:00 UTC.")
    tokens_per_request: Limit = Field(default=None, description="The longest answer.")
    models: Texts = Field(default=[], description='Models that may be named; `"*"`: all.')
    chat_types: Texts = Field(default=[], description='Chat types that may be named; `"*"`: all.')
    scopes: Texts = Field(default=[], description="What a key or token of this plan may hold: `chat`, `admin`.")


class LogSettings(Section):
    """``[logs]``."""

    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"],
        BeforeValidator(lambda level: level.upper() if isinstance(level, str) else level),
    ] = Field(default="INFO", description="What is below it is not written.")
    format: Literal["auto", "json", "text"] = Field(
        default="auto", description="`auto`: text on a terminal, JSON lines anywhere else."
    )
