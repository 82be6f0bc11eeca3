"""``[edge]``: one named field each, with unit, default and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from shared import addresses
from shared.settings_fields import (
    Bearer,
    Bytes,
    FromText,
    Listen,
    Network,
    NodeName,
    Origin,
    Seconds,
    SigningKey,
    named,
)
from shared.settings_node import NODE_PORT
from shared.settings_sections import DAY, KIB, MIB, Section, TlsSettings

DEFAULT_LINK = f"ws://127.0.0.1:{NODE_PORT}/link"


def _serve(text: str) -> str:
    if text not in ("auto", "off", "unix") and not addresses.is_loopback(addresses.split_listen(text)[0]):
        raise ValueError('is not loopback: tailscaled on this machine calls there, write "unix" or "127.0.0.1:8702"')
    return text


class UpstreamSettings(Section):
    """One node, dialled at ``node`` in the tailnet or at ``url``; a ``bridge`` dials in."""

    kind: Literal["link", "bridge"] = Field(
        default="link",
        description="`link`: the edge dials the node. `bridge`: the node dials in, which this version does not do yet.",
    )
    node: NodeName | None = Field(
        default=None,
        description="The node in the tailnet: a name (`gpu`), a tag (`tag:gpu`, all that have it), or an address.",
    )
    port: int = Field(default=NODE_PORT, ge=1, le=65535, description="Where `node` listens.")
    url: str | None = Field(
        default=None,
        description="Instead of `node`: `ws://HOST:PORT/link`. Without both, `default` is this machine's.",
    )
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

    tls: TlsSettings = Field(default_factory=TlsSettings)

    @field_validator("url")
    @classmethod
    def _websocket(cls, url: str | None) -> str | None:
        if url is not None:
            addresses.split_url(url, "ws", "wss")
        return url

    @model_validator(mode="after")
    def _one_place(self) -> UpstreamSettings:
        if self.kind == "link" and (self.node is None) == (self.url is None):
            what = "has neither node nor url" if self.node is None else "has both node and url"
            raise ValueError(f'{what}: write one of them, such as node = "gpu"')
        if self.url is not None and self.tls.on and not self.url.startswith("wss:"):
            raise ValueError("has certificates in tls, which a link at ws:// does not use: write wss://")
        return self


class EdgeSettings(Section):
    """``[edge]``: the public side."""

    listen: Listen = Field(
        default="127.0.0.1:8700",
        description="Where callers connect. Something that speaks TLS belongs in front of anything but loopback.",
    )
    ops_listen: Listen = Field(
        default="127.0.0.1:8701", description="Metrics and full health, without a password: loopback only."
    )
    serve: Annotated[str, AfterValidator(_serve)] = Field(
        default="auto",
        description="Where Tailscale Serve hands over what people of the tailnet ask: `unix`, a socket in the state"
        " folder; `127.0.0.1:8702` for a Tailscale older than 1.94; `off`. `auto`: `unix` where tailscaled answers.",
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
            named["default"] = {**({} if "node" in default else {"url": DEFAULT_LINK}), **default}
        return named

    @field_validator("upstreams")
    @classmethod
    def _names(cls, upstreams: dict[str, UpstreamSettings]) -> dict[str, UpstreamSettings]:
        return named(upstreams)
