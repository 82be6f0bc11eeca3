"""``hearthlink key rotate``: the keys that tokens are signed with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hearthlink import options
from hearthlink.database import administer, record
from hearthlink.output import Failure, Status, print_json, say

if TYPE_CHECKING:
    from edge.store.admin import Admin
    from shared.settings import Settings
    from shared.signing_keys import SigningKeys


def rotate(
    leaked: Annotated[
        bool, typer.Option("--leaked", help="Somebody else may have the keys: no token that is out is valid any more.")
    ] = False,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Sign tokens with the next key, on all edges of the store, while they run.

    Tokens that are out stay valid until they end. Do it monthly; docs/tokens.md has a timer. API keys stay as they are.
    """
    settings = options.settings_from(config)
    _refuse_settings(settings)

    async def work(admin: Admin) -> SigningKeys:
        from edge.store.admin import renew_signing_keys

        return await renew_signing_keys(admin, leaked=leaked)

    keys = administer(settings, work)
    if json:
        print_json({"verifying": len(keys.verifying), "old": len(keys.old)})
    elif leaked:
        say("All signing keys are new, and every token that was out is refused within two seconds.")
    else:
        say(f"Tokens are signed with the next key within two seconds; {_old(keys)} until their tokens end.")
    record(settings, "signing-keys.rotate", "all" if leaked else "current")


def _refuse_settings(settings: Settings) -> None:
    """Raises Failure where the settings hold the keys, which no verb changes."""
    if settings.edge.signing_keys:
        where = settings.origin("edge.signing_keys")
        text = f"The keys are in the settings (edge.signing_keys, {where}): rotate them there, see docs/tokens.md."
        raise Failure(text, Status.USAGE)


def _old(keys: SigningKeys) -> str:
    return "an old key is kept" if len(keys.old) == 1 else f"{len(keys.old)} old keys are kept"
