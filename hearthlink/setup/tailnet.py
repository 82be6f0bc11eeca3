"""``hearthlink setup tailnet``: the edge of this machine behind Tailscale Serve, for people of the tailnet."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hearthlink import options
from hearthlink.output import Failure, Status, print_json, say

if TYPE_CHECKING:
    from hearthlink.setup.serving import Served
    from shared.settings import Settings
    from shared.tailscale.client import LocalClient

_T = TypeVar("_T")


def tailnet(
    off: Annotated[bool, typer.Option("--off", help="Take it out again; what else is served stays.")] = False,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=1,
            max=65535,
            help="Where people connect.  [default: 443 with certificates, 80 without]",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Open the edge of this machine to people of its tailnet, through Tailscale Serve.

    It takes root, or an operator of tailscaled. Who is let in, and how far, is said in the policy of the tailnet.
    """
    from hearthlink.setup import serving

    settings = options.settings_from(config)
    if off:
        taken = asyncio.run(_asking(settings, config, lambda client: serving.remove(client, settings)))
        if json:
            print_json({"removed": taken})
            return
        for url in taken:
            say(f"{url} does not lead to this edge any more.")
        if not taken:
            say("Tailscale Serve does not lead to this edge: there is nothing to take out.")
        return
    served = asyncio.run(_asking(settings, config, lambda client: serving.add(client, settings, port)))
    if json:
        print_json(asdict(served))
        return
    print(served.url)
    for line in _next_steps(served, _again(settings, config, "--off")):
        say(line)


async def _asking(settings: Settings, config: Path | None, work: Callable[[LocalClient], Awaitable[_T]]) -> _T:
    """What ``work`` gives. Raises Failure for whatever tailscaled says."""
    from shared.tailscale.client import LocalClient
    from shared.tailscale.errors import NotAllowed, NotAnswering, NotRunning, TailscaleError, Unreachable

    try:
        async with LocalClient(settings.tailscale.socket) as client:
            return await work(client)
    except NotAllowed as error:
        raise Failure(f"{error}\nAs root: {_again(settings, config)}") from None
    except (Unreachable, NotAnswering, NotRunning) as error:
        raise Failure(str(error), Status.UNAVAILABLE) from None
    except TailscaleError as error:
        raise Failure(str(error)) from None


def _again(settings: Settings, config: Path | None, *more: str) -> str:
    """This command once more, for root, whose own state folder, settings and environment are others. Secrets are left
    out: this command reads none."""
    from shared.settings_sources import find_file

    run = [*options.own_command(), *sys.argv[1:]]
    file = find_file(config, os.environ)
    named = ["--config", str(file.absolute())] if file is not None and config is None else []
    rows = [(str(value), origin.removeprefix("env ")) for _, value, origin in settings.dump()]
    secret = {name for value, name in rows if "***" in value}
    names = sorted({name for _, name in rows if name in os.environ} - secret - {"HEARTHLINK_STATE", "STATE_DIRECTORY"})
    environment = [f"{name}={os.environ[name]}" for name in ("TS_SOCKET", *names) if os.environ.get(name)]
    return shlex.join(["sudo", f"HEARTHLINK_STATE={settings.state}", *environment, *run, *named, *more])


def _next_steps(served: Served, undo: str) -> list[str]:
    lines = [f"The edge is served to the tailnet at {served.url}" + ("" if served.changed else ", as it was before.")]
    lines += [f"{url} does not lead to it any more." for url in served.removed]
    if served.https:
        lines.append("The first visit may take a minute: tailscaled fetches the certificate then.")
    else:
        lines.append(
            "It is plain HTTP, which the tailnet itself encrypts, since this machine is given no certificate. Tailscale"
            " gives them once HTTPS certificates are turned on among the tailnet's DNS settings; then run this again."
            " headscale gives none."
        )
    return [
        *lines,
        *served.warnings,
        "Who may use it is said in the policy of the tailnet; others are told that they lack a grant. This one lets in"
        " everybody, with the plan member:",
        f"  {dumps(served.grant)}",
        f"Undo this: {undo}",
    ]
