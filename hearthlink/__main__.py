"""``hearthlink VERB``, also as ``python -m hearthlink``. Verbs import what they need when they run: help is quick."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from hearthlink import (
    backup,
    chat,
    config,
    doctor,
    invites,
    keys,
    limits,
    maintenance,
    model,
    model_node,
    serve,
    signing_keys,
    smoke,
    tokens,
    up,
)
from hearthlink.output import Failure, Status, say
from hearthlink.setup import tailnet
from shared import __version__

_HELP = "Put a local model behind a real public app, safely: a public edge, a private node, one link between them."
_EPILOG = (
    "Exit status: 0 ok, 1 failed, 2 wrong flags or settings, 3 not found, 4 credential refused, 5 nobody answers,"
    " 78 (edge, node) mend something first, 130 interrupted. Data goes to standard output, all else to standard error."
)


@dataclass(slots=True)
class _Invocation:
    """One run of the program."""

    debug: bool = False


def build(invocation: _Invocation) -> typer.Typer:
    """All verbs."""
    app = typer.Typer(
        help=_HELP,
        epilog=_EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def options(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
        ] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
    ) -> None:
        invocation.debug = debug

    app.command()(up.up)
    app.command()(serve.edge)
    app.command()(serve.node)
    app.command()(chat.chat)
    app.command()(smoke.smoke)
    app.command()(doctor.doctor)
    app.command()(backup.backup)
    app.command()(backup.restore)
    for group, text, verbs in (
        (
            "key",
            "API keys of the edge, and the keys that sign tokens.",
            (keys.create, keys.list_, keys.revoke, signing_keys.rotate),
        ),
        ("invite", "Invites to the edge on this machine.", (invites.create, invites.list_, invites.revoke)),
        ("token", "Access tokens of the edge on this machine.", (tokens.mint, tokens.revoke)),
        ("limit", "What single callers used today, and limits of their own.", (limits.show, limits.set_, limits.reset)),
        (
            "maintenance",
            "Close the edge to all but admins, with a message.",
            (maintenance.on, maintenance.off, maintenance.show),
        ),
        (
            "model",
            "Models of this machine, of a hub, and of a node.",
            (
                model.pull,
                model.list_,
                model.rm,
                model_node.load,
                model_node.unload,
                model_node.activate,
                model_node.yield_,
                model_node.resume,
            ),
        ),
        ("setup", "Open the edge to others, through what runs here already.", (tailnet.tailnet,)),
        ("config", "Settings of this machine.", (config.show, config.check, config.reference)),
    ):
        members = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
        for verb in verbs:
            members.command(verb.__name__.strip("_"))(verb)
        app.add_typer(members, name=group)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status. ``arguments`` default to the command line's."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a narrow locale loses characters, not the answer
    invocation = _Invocation()
    try:
        build(invocation)(None if arguments is None else list(arguments), prog_name="hearthlink")
    except SystemExit as leaving:
        return _status(leaving)
    except Failure as failure:
        say(f"hearthlink: {failure}")
        return failure.status
    except BrokenPipeError:
        # The reader of our output left. Without this the interpreter would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Status.FAILED
    except Exception as error:
        if invocation.debug:
            raise
        say(f"hearthlink: an unexpected {type(error).__name__}. `hearthlink --debug …` shows where; please report it.")
        return Status.FAILED
    return Status.OK


def _status(leaving: SystemExit) -> int:
    return leaving.code if isinstance(leaving.code, int) else Status.OK if leaving.code is None else Status.FAILED


if __name__ == "__main__":
    sys.exit(main())
