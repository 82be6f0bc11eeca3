"""``hearthlink token mint``, and the tokens that other verbs mint for themselves from the local state."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from hearthlink import options
from hearthlink.output import Failure, Status, print_json, say

if TYPE_CHECKING:
    from edge.plans import Plan
    from shared.settings import Settings

_LONGEST_HOURS = 24 * 366  # a token cannot be listed or revoked by name; what shall live longer is a key
_SECONDS_PER_HOUR = 3600


def mint(
    name: Annotated[str, typer.Argument(help="Whose token it is: limits and audit lines name it.")],
    hours: Annotated[
        float, typer.Option("--hours", min=0.01, max=_LONGEST_HOURS, help="How long it is valid.", show_default=False)
    ],
    plan: Annotated[str, typer.Option("--plan", help="Its limits: member, owner, or one of the settings.")] = "member",
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Mint an access token that the edge of this machine accepts.

    It is printed once and kept nowhere. Example: hearthlink token mint ci --hours 24
    """
    settings = options.settings_from(config)
    token, expires_in = mint_local(settings, name, plan, hours * _SECONDS_PER_HOUR)
    ends = datetime.now(UTC) + timedelta(seconds=expires_in)
    if json:
        print_json({"token": token, "token_type": "Bearer", "expires_in": expires_in, "plan": plan, "name": name})
    else:
        print(token)
        say(f"A token for {name} with plan {plan}, valid until {ends:%Y-%m-%d %H:%M} UTC. It is not shown again.")


def mint_local(settings: Settings, name: str, plan: str, seconds: float) -> tuple[str, int]:
    """A token that the edge using this state accepts, and the seconds until it ends. Raises Failure."""
    from edge.principals import Principal
    from edge.tokens import Tokens
    from shared.state import StateError

    chosen = plan_named(settings, plan)
    state = options.state_of(settings)
    try:
        keys = [key.get_secret_value() for key in settings.edge.signing_keys] or state.signing_keys()
    except StateError as error:
        raise Failure(str(error)) from None
    scopes = tuple(scope for scope in chosen.scopes if scope == "chat")
    try:
        return Tokens(keys, seconds).mint(Principal(f"token_{name}", "token", plan, scopes))
    except ValueError:
        raise Failure(
            f"{name[:80]!r} is not a name for a token: use letters, digits and ._:@+- (120 at most).", Status.USAGE
        ) from None


def plan_named(settings: Settings, name: str) -> Plan:
    """Raises Failure naming the plans that there are."""
    from edge.plans import plans_from

    plans = plans_from(settings.plans)
    if name not in plans:
        known = ", ".join(sorted(plans))
        raise Failure(f"There is no plan {name!r}. There are: {known}. Settings add more: [plans.NAME].", Status.USAGE)
    return plans[name]
