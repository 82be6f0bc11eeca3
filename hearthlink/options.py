"""What several verbs take: the settings file, JSON, credentials, a model or runtime."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hearthlink.output import Failure, Status

if TYPE_CHECKING:
    from hearthlink.models.wanted import Wanted
    from shared.settings import Settings
    from shared.state import StateDir

MODEL = "node.runtime.model"

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file, instead of the one that is found.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PATH|MODEL",
        help="Answer with this GGUF file, or with a model that is pulled first when it is missing: see `model pull`.",
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option("--runtime", metavar="URL", help="Answer with the OpenAI-compatible server at this URL."),
]


def settings_from(config: Path | None, flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings, or the sentence about what is wrong in them. Raises Failure."""
    from shared.settings import SettingsError, load_settings

    try:
        return load_settings(config=config, flags=flags)
    except SettingsError as error:
        raise Failure(str(error), Status.USAGE) from None


def state_of(settings: Settings) -> StateDir:
    """The state folder, made when missing. Raises Failure."""
    from shared.state import StateDir, StateError

    try:
        return StateDir(settings.state)
    except StateError as error:
        raise Failure(str(error)) from None


def runtime_flags(model: str | None, runtime: str | None) -> dict[str, str]:
    """The settings that ``--model`` or ``--runtime`` stands for. Raises Failure when both are given."""
    if model is not None and runtime is not None:
        raise Failure(
            "--model and --runtime exclude each other: the first loads a file here, the second uses a server that"
            " runs already. Give one of them.",
            Status.USAGE,
        )
    if model is not None:
        return {"node.runtime.kind": "embedded", MODEL: model}
    if runtime is not None:
        return {"node.runtime.kind": "openai", "node.runtime.url": runtime}
    return {}


def wanted_model(settings: Settings) -> Wanted | None:
    """The model that a node with ``settings`` loads; None when it loads none, or looks around first. Raises Failure for
    a name that means no model."""
    from hearthlink.models.wanted import Wanted, wanted

    runtime = settings.node.runtime
    if (model := runtime.own_model) is None or not runtime.embedded:
        return None
    if isinstance(model, Path):
        return Wanted(model)
    try:
        return wanted(model, settings.state)
    except Failure as failure:
        origin = settings.origin(MODEL)
        place = "" if origin == "flag" else f"{MODEL} ({origin}): "
        raise Failure(f"{place}{failure}", failure.status) from None


def pull_missing(wanted: Wanted | None, settings: Settings) -> dict[str, str]:
    """Pull the model when it is one of a hub and not here yet; for one that was given by its name, the setting that
    says where it is. Raises Failure."""
    from hearthlink.models.shelf import Shelf
    from hearthlink.models.wanted import bring

    if wanted is None or wanted.choice is None:
        return {}
    if not Shelf(settings.state).is_ready(wanted.choice.reference):
        bring(wanted.choice, state_of(settings).path)
    return {MODEL: str(wanted.path)}


def own_command() -> list[str]:
    """How a shell calls this program from everywhere: a clone's is in no folder of PATH."""
    program = sys.argv[0]
    return [program] if os.access(program, os.X_OK) else [sys.executable, "-m", "hearthlink"]


def read_secret(given: str | None, name: str) -> str | None:
    """The secret of an option: ``-`` reads a line of standard input, without echo on a terminal. Raises Failure."""
    if given != "-":
        return given or None
    if sys.stdin.isatty():
        from getpass import getpass

        secret = getpass(f"{name}: ")
    else:
        secret = sys.stdin.readline()
    if not secret.strip():
        raise Failure(f"--{name} - reads a line from standard input, and there was none.", Status.USAGE)
    return secret.strip()
