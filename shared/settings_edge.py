"""``[edge]``: one named field each, with unit, default and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator

from shared import addresses, store_url
from shared.settings_fields import (
    Bearer,
    Bytes,
    FromText,
    HostName,
    Https,
    Limit,
    Listen,
    Network,
    NodeName,
    Origin,
    Seconds,
    SigningKey,
    Texts,
    named,
)
from shared.settings_node import NODE_PORT
from shared.settings_sections import DAY, KIB, MIB, Section, TlsSettings

DEFAULT_LINK = f"ws://127.0.0.1:{NODE_PORT}/link"


def _serve(text: str) -> str:
    if text not in ("auto", "off", "unix") and not addresses.is_loopback(addresses.split_listen(text)[0]):
        raise ValueError('is not loopback: tailscaled on this machine calls there, write "unix" or "127.0.0.1:8702"')
    return text


def _store(url: SecretStr) -> SecretStr:
    if (text := url.get_secret_value()) != "sqlite":
        store_url.check(text)
    return url


def _some(limit: int | None) -> int | None:
    if limit == 0:
        raise ValueError('would let nobody in: write a number from 1, or "unlimited"')
    return limit


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


Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]


class OidcSettings(Section):
    """Whoever shows a token of this issuer (Auth0, Keycloak, …) is let in. Without an issuer the door is shut."""

    issuer: Https | None = Field(
        default=None, description="Exactly as tokens name it in `iss`: `https://example.eu.auth0.com/`."
    )
    audience: Texts = Field(default=[], description="A token must be meant for one of these (`aud`).")
    algorithms: Annotated[list[Algorithm], FromText] = Field(
        default=["RS256"],
        min_length=1,
        description="How tokens may be signed: any of RS256, RS384, RS512, PS256, ES256, ES384, EdDSA.",
    )
    jwks_url: Https | None = Field(
        default=None, description="Where the issuer's keys are. Without it, what the issuer's discovery document says."
    )
    plan: str = Field(default="member", description="The plan of callers whose token names none.")
    plan_claim: str | None = Field(
        default=None, description="The claim that names a caller's plan: `https://example.org/plan`."
    )

    @model_validator(mode="after")
    def _meant_for_somebody(self) -> OidcSettings:
        if self.issuer is not None and not self.audience:
            raise ValueError(
                "has an issuer and no audience, so a token for any other application of that issuer would do: write"
                ' audience = ["https://chat.example.org"], as the issuer calls this edge'
            )
        return self


class CloudflareAccessSettings(Section):
    """Whoever Cloudflare Access let through is let in, by the token it adds. Without a team the door is shut."""

    team: HostName | None = Field(default=None, description="The team's domain: `example.cloudflareaccess.com`.")
    audience: Texts = Field(default=[], description="The tag (AUD) of the Access application; one of these.")
    plan: str = Field(default="member", description="The plan of whoever comes in by it.")

    @field_validator("team")
    @classmethod
    def _domain(cls, team: str | None) -> str | None:
        if team is not None and not team.endswith(".cloudflareaccess.com"):
            raise ValueError("is not the domain of a team: write example.cloudflareaccess.com")
        return team

    @model_validator(mode="after")
    def _meant_for_somebody(self) -> CloudflareAccessSettings:
        if self.team is not None and not self.audience:
            raise ValueError(
                "has a team and no audience, so a token for any other application of the team would do: write"
                ' audience = ["…"], the AUD tag on the overview of the Access application'
            )
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
        description="Scheme and host as callers see them: `https://chat.example.org`.",
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
    user_ids: bool = Field(
        default=False,
        description="Whether the header `X-User-Id` is believed, for developing: possible on loopback only.",
    )
    oidc: OidcSettings = Field(default_factory=OidcSettings)
    cloudflare_access: CloudflareAccessSettings = Field(default_factory=CloudflareAccessSettings)
    anonymous_raw_models: bool = Field(
        default=False, description="Whether anonymous callers may name models; without it they get chat types only."
    )
    trusted_proxies: Annotated[list[Network], FromText] = Field(
        default=[],
        description="Addresses or networks of servers in front of the edge; their `X-Forwarded-For` is believed.",
    )
    allowed_hosts: Annotated[list[HostName], FromText] = Field(
        default=[],
        description="Names that callers may use for this edge (`Host`), besides the one of `public_url`. With neither:"
        " any.",
    )
    allowed_addresses: Annotated[list[Network], FromText] = Field(
        default=[], description="Addresses or networks that may call. Empty: all that are not denied."
    )
    denied_addresses: Annotated[list[Network], FromText] = Field(
        default=[], description="Addresses or networks that may not call, even when they are allowed above."
    )
    exempt_origins: Annotated[list[Origin], FromText] = Field(
        default=[],
        description="Of `allowed_origins`, those whose callers do not count for `requests_per_minute_per_ip`.",
    )
    connections_per_ip: Annotated[Limit, AfterValidator(_some)] = Field(
        default=100,
        description="Open connections of one address (of IPv6, one /64). Loopback and `trusted_proxies` have no limit.",
    )
    max_streams: int = Field(
        default=2000, ge=1, le=100_000, description="Answers that run at once on this edge; more are refused with 503."
    )
    store: Annotated[SecretStr, AfterValidator(_store)] = Field(
        default=SecretStr("sqlite"),
        description="Where limits, keys and invites are: `sqlite`, a file in the state folder, for one edge; or"
        " `redis://HOST:6379/0` (`rediss://` with TLS, `unix:///PATH`), which several edges can share.",
    )
    without_store: Literal["refuse", "count"] = Field(
        default="refuse",
        description="While that server does not answer, requests on plans with a daily quota are refused; `count`: each"
        " edge counts for itself.",
    )
    store_timeout: Seconds = Field(
        default=0.05,
        ge=0.005,
        le=5,
        description="The longest a request waits for that server's reply. Far more than its round trip is of no use.",
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
        description="They sign tokens: the last one, the others are still accepted. Empty: those that"
        " `hearthlink key rotate` changes.",
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
        public_url = info.data.get("public_url")
        if not required and public_url and not addresses.is_loopback(urlsplit(public_url).hostname or ""):
            raise ValueError(f"may be off on loopback only, and edge.public_url is {public_url}: change one of them")
        return required

    @field_validator("user_ids")
    @classmethod
    def _user_ids_on_this_machine_only(cls, believed: bool, info: ValidationInfo) -> bool:
        listen, public_url = info.data.get("listen"), info.data.get("public_url")
        if believed and listen and not addresses.is_loopback(addresses.split_listen(listen)[0]):
            raise ValueError(f"lets anybody be anybody, so it needs loopback, and edge.listen is {listen}")
        if believed and public_url and not addresses.is_loopback(urlsplit(public_url).hostname or ""):
            raise ValueError(f"lets anybody be anybody, so it needs loopback, and edge.public_url is {public_url}")
        return believed

    @field_validator("allowed_hosts")
    @classmethod
    def _names_of_this_machine_where_it_is_believed(cls, hosts: list[str], info: ValidationInfo) -> list[str]:
        believing = (("user_ids", True), ("require_authentication", False))
        setting = next((name for name, value in believing if info.data.get(name) is value), None)
        elsewhere = [host for host in hosts if not addresses.is_loopback(host)]
        if setting and elsewhere:
            reach = f"has {elsewhere[0]!r}, by which others may reach this edge"
            raise ValueError(f"{reach}, and edge.{setting} is for this machine alone: change one of them")
        return hosts

    @field_validator("exempt_origins")
    @classmethod
    def _of_allowed_origins(cls, exempt: list[str], info: ValidationInfo) -> list[str]:
        allowed = info.data.get("allowed_origins", exempt)
        if beyond := [origin for origin in exempt if origin not in allowed]:
            text = f"has {beyond[0]!r}, whose pages get no token: add it to edge.allowed_origins, or take it out"
            raise ValueError(text)
        return exempt

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
