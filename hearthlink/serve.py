"""``hearthlink edge`` and ``hearthlink node``: one deployable, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hearthlink import options
from hearthlink.output import Failure, Status, say

if TYPE_CHECKING:
    from shared.settings import Settings

# Of pulling a model: a supervisor may well try again.
_MAY_PASS = frozenset({Status.UNAVAILABLE, Status.INTERRUPTED})


def edge(
    listen: Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="Where callers connect.")] = None,
    ops_listen: Annotated[
        str | None, typer.Option("--ops-listen", metavar="HOST:PORT", help="Metrics and full health; loopback only.")
    ] = None,
    public_url: Annotated[str | None, typer.Option("--public-url", metavar="URL", help="As callers see it.")] = None,
    allowed_origin: Annotated[
        list[str] | None, typer.Option("--allowed-origin", metavar="ORIGIN", help="A page that may get tokens.")
    ] = None,
    node: Annotated[str | None, typer.Option("--node", metavar="URL", help="The node, ws://HOST:PORT/link.")] = None,
    config: options.Config = None,
) -> None:
    """Run the public side until SIGTERM or Ctrl-C."""
    from edge.__main__ import main

    flags = {
        "edge.listen": listen,
        "edge.ops_listen": ops_listen,
        "edge.public_url": public_url,
        "edge.allowed_origins": allowed_origin or None,
        "edge.upstreams.default.url": node,
    }
    _run(main, lambda: options.settings_from(config, flags))


def node(
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="WHERE",
            help="Where the edge connects: tailnet, interface:NAME, or HOST:PORT on loopback.",
        ),
    ] = None,
    model: options.Model = None,
    runtime: options.Runtime = None,
    chat_types: Annotated[
        Path | None, typer.Option("--chat-types", metavar="FOLDER", help="Chat types that replace the shipped ones.")
    ] = None,
    config: options.Config = None,
) -> None:
    """Run the side of the model until SIGTERM or Ctrl-C."""
    from node.__main__ import main

    flags = {
        "node.listen": listen,
        "node.chat_types": None if chat_types is None else str(chat_types),
        **options.runtime_flags(model, runtime),
    }
    _run(main, lambda: _with_model(config, flags))


def _with_model(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """The settings, and the model that they name is here. Raises Failure."""
    settings = options.settings_from(config, flags)
    found = options.pull_missing(options.wanted_model(settings), settings)
    return options.settings_from(config, {**flags, **found}) if found else settings


def _run(main: Callable[[Settings], int], load: Callable[[], Settings]) -> None:
    try:
        settings = load()
    except Failure as failure:
        if failure.status in _MAY_PASS:
            raise
        say(str(failure))
        raise typer.Exit(os.EX_CONFIG) from None  # a supervisor need not start it again before something was mended
    raise typer.Exit(main(settings))
