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
    from shared.settings import Settings
    from shared.state import StateDir

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
    """The settings that ``--model`` or ``--runtime`` stands for; ``pull_missing`` brings the file. Raises Failure when
    both are given, and for a model that cannot be one."""
    if model is not None and runtime is not None:
        raise Failure(
            "--model and --runtime exclude each other: the first loads a file here, the second uses a server that"
            " runs already. Give one of them.",
            Status.USAGE,
        )
    if model is not None:
        from hearthlink.models.wanted import wanted
        from shared.settings import state_folder

        path = wanted(model, state_folder(os.environ)[0]).path
        return {"node.runtime.kind": "embedded", "node.runtime.model": str(path)}
    if runtime is not None:
        return {"node.runtime.kind": "openai", "node.runtime.url": runtime}
    return {}


def pull_missing(model: str | None, settings: Settings) -> None:
    """Pull the model of ``--model`` when it is one of a hub and not here yet. Raises Failure."""
    from hearthlink.models.shelf import Shelf
    from hearthlink.models.wanted import bring, wanted

    choice = wanted(model, settings.state).choice if model is not None else None
    if choice is not None and not Shelf(settings.state).is_ready(choice.reference):
        bring(choice, state_of(settings).path)


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
