"""``hearthlink token mint|revoke``, and the tokens that other verbs mint for themselves from the local state."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from hearthlink import options
from hearthlink.database import administer, record
from hearthlink.limits import principal_of
from hearthlink.output import Failure, Status, print_json, say

if TYPE_CHECKING:
    from edge.locks import Locks
    from edge.plans import Plan
    from edge.principals import Principal
    from edge.store.admin import Admin
    from shared.settings import Settings

_LONGEST_HOURS = 24 * 366  # as shared.signing_keys.LONGEST_TOKEN: a rotated key is kept for these
_SECONDS_PER_HOUR = 3600


def mint(
    name: Annotated[str, typer.Argument(help="Whose token it is: limits and audit lines name it token_NAME.")],
    hours: Annotated[
        float, typer.Option("--hours", min=0.01, max=_LONGEST_HOURS, help="How long it is valid.", show_default=False)
    ],
    plan: Annotated[str, typer.Option("--plan", help="Its limits: member, owner, or one of the settings.")] = "member",
    origin: Annotated[
        str | None, typer.Option("--origin", metavar="ORIGIN", help="The only page it works on: https://HOST.")
    ] = None,
    chat_type: Annotated[
        list[str] | None, typer.Option("--chat-type", help="A chat type it is for; may be given several times.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="The longest answer.")] = None,
    uses: Annotated[int | None, typer.Option("--uses", min=1, help="How many answers it is good for.")] = None,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Mint an access token that the edge of this machine accepts.

    It is printed once and kept nowhere. Example: hearthlink token mint ci --hours 24 --chat-type home --uses 10
    """
    from edge.locks import Locks
    from shared.contract.errors import ApiError

    settings = options.settings_from(config)
    try:
        locks = Locks(origin, tuple(chat_type) if chat_type else None, max_tokens, uses)
    except ApiError as error:
        flag = "--chat-type" if error.param == "chat_types" else f"--{(error.param or '').replace('_', '-')}"
        raise Failure(error.message.replace(f"The lock {error.param!r}", flag), Status.USAGE) from None
    token, expires_in = mint_local(settings, name, plan, hours * _SECONDS_PER_HOUR, locks)
    ends = datetime.now(UTC) + timedelta(seconds=expires_in)
    if json:
        about = {"plan": plan, "name": name, "principal": _principal_id(name)}
        print_json({"token": token, "token_type": "Bearer", "expires_in": expires_in, **about})
    else:
        print(token)
        say(f"A token for {name} with plan {plan}, valid until {ends:%Y-%m-%d %H:%M} UTC. It is not shown again.")
    record(settings, "token.mint", _principal_id(name))


def mint_local(settings: Settings, name: str, plan: str, seconds: float, locks: Locks | None = None) -> tuple[str, int]:
    """A token that the edges on these settings' store accept, and the seconds until it ends. Raises Failure."""
    from edge.principals import Principal
    from edge.tokens import Tokens

    chosen = plan_named(settings, plan)
    tokens = Tokens(_keys(settings), seconds)
    scopes = tuple(scope for scope in chosen.scopes if scope == "chat")
    principal = Principal(_principal_id(name), "token", plan, scopes)
    try:
        return tokens.mint(principal if locks is None else locks.on(principal))
    except ValueError as error:
        text = f"There can be no token for {name[:80]!r}: {error}"
        raise Failure(text, Status.USAGE) from None


def revoke(
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="TOKEN|PRINCIPAL",
            help="A token, - to read it from standard input; or a caller as audit lines name it, with all its tokens.",
        ),
    ] = None,
    everyone: Annotated[bool, typer.Option("--everyone", help="All tokens of all callers.")] = False,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """End tokens before their time, and the answers that run on them.

    Callers may get new ones by the door they came in: an API key or an invite is revoked by `key` or `invite revoke`.
    Example: hearthlink token revoke token_ci
    """
    settings = options.settings_from(config)
    which = options.read_secret(which, "token")
    if everyone == (which is not None):
        raise Failure("Say what is revoked: one token, one caller, or --everyone.", Status.USAGE)
    token = None if which is None else _token(settings, which)
    what, caller = administer(settings, lambda admin: _revoke(admin, which, token))
    if json:
        print_json({"revoked": what, "principal": caller})
    else:
        named = {"everyone": "Every token of every caller", "token": f"That token of {caller}"}
        subject = named.get(what, f"Every credential of {caller}")
        say(f"{subject} is revoked: a running edge refuses it within a second, and ends its answers within five.")
    record(settings, f"{what}.revoke", caller or what)


async def _revoke(admin: Admin, which: str | None, token: Principal | None) -> tuple[str, str | None]:
    """Revoke ``token``, else the caller ``which``, else everyone; which of these it was, and whose tokens they are."""
    if token is not None:
        await admin.revoke_token(token.jti or "", token.expires_at or 0)
        return "token", token.id
    if which is None:
        await admin.revoke_everyone()
        return "everyone", None
    caller = await principal_of(admin, which)
    await admin.revoke_principal(caller)
    return "principal", caller


def _token(settings: Settings, which: str) -> Principal | None:
    """What the text of a token says; None for the name of a caller. Raises Failure, also for another credential."""
    from shared.contract.secrets import API_KEY, INVITE, TOKEN

    if which.startswith((API_KEY, INVITE)):
        verb = "key" if which.startswith(API_KEY) else "invite"
        raise Failure(f"This is no token. Revoke it by name: hearthlink {verb} revoke NAME.", Status.USAGE)
    return _verified(settings, which) if which.startswith(TOKEN) else None


def _verified(settings: Settings, token: str) -> Principal:
    from edge.tokens import Tokens
    from shared.contract.errors import ApiError

    try:
        return Tokens(_keys(settings), 0).verify(token)
    except ApiError as error:
        ended = error.code == "token_expired"
        text = "The token has ended by itself." if ended else "This is no token of this edge: nothing was revoked."
        raise Failure(text, Status.NOT_FOUND) from None


def _keys(settings: Settings) -> Sequence[str]:
    """The keys of the edges on these settings' store, the one that signs at the end. Raises Failure."""
    from shared.state import StateError

    if settings.edge.signing_keys:
        return [key.get_secret_value() for key in settings.edge.signing_keys]
    if settings.edge.store.get_secret_value() != "sqlite":
        return administer(settings, lambda admin: admin.signing_keys()).verifying
    try:  # without the database, which nothing else here needs
        return options.state_of(settings).signing_keys().verifying
    except StateError as error:
        raise Failure(str(error)) from None


def _principal_id(name: str) -> str:
    return f"token_{name}"


def plan_named(settings: Settings, name: str, scopes: Sequence[str] = ()) -> Plan:
    """The plan of a credential that is to have ``scopes``. Raises Failure naming what there is."""
    from edge.plans import plan_for, plans_from

    try:
        return plan_for(plans_from(settings.plans), name, scopes)
    except ValueError as error:
        raise Failure(str(error), Status.USAGE) from None
