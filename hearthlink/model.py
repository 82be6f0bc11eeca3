"""``hearthlink model pull|list|rm``: models from a hub, in the local state, and what the node has of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hearthlink import model_node, options
from hearthlink.models.catalogue import CATALOGUE, Choice, short_names
from hearthlink.output import Failure, Status, print_json, print_table, say

if TYPE_CHECKING:
    from hearthlink.models.shelf import Entry

_MODEL = f"hf:owner/repo[@revision]/file.gguf, or a short name: {short_names()}."


def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL, show_default=False)],
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Fetch a model from a hub, or what is missing of it, and print its path.

    Goes on where an earlier try ended; the file is checked against the hub's sha256 before it gets its name.
    HF_ENDPOINT names another hub, HF_TOKEN opens what is private or gated.

    Example: hearthlink model pull smollm2-360m
    """
    from hearthlink.models import amounts
    from hearthlink.models.wanted import bring, choose

    choice = choose(model)
    entry = bring(choice, options.state_of(options.settings_from(config)).path)
    if json:
        print_json(_row(entry))
    else:
        print(entry.path)
        say(f"{entry.name} ({amounts.size(entry.here)}) is ready: hearthlink up --model {choice}")


def list_(
    url: model_node.Url = None,
    key: model_node.Key = None,
    node: model_node.Node = None,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """List the models that were pulled, what is left of pulls that were not finished, and what the node answers with.

    With --url only the last.
    """
    from hearthlink.models.shelf import Shelf

    there = asyncio.run(_at_node(url, key, node, config))
    entries = Shelf(options.settings_from(config).state).entries() if url is None else []
    if json:
        print_json([*(_row(entry) for entry in entries), *(there or {}).get("data", [])])
        return
    if entries:
        print_table(("name", "size", "state", "model"), [_cells(entry) for entry in entries])
    elif url is None:
        say("No model was pulled yet.")
    if there is not None:
        _print_node(there)
    else:
        say("No node runs here.")
    if url is None:
        _print_offers({entry.short for entry in entries})


async def _at_node(url: str | None, key: str | None, node: str | None, config: Path | None) -> dict[str, Any] | None:
    """What the node says; None where none was named and none runs here. Raises Failure."""
    try:
        return await model_node.listed(url, key, node, config)
    except Failure as failure:
        if url is None and failure.status is Status.UNAVAILABLE:
            return None
        raise


def _print_node(there: dict[str, Any]) -> None:
    from hearthlink.models import amounts

    runtime, default = there["runtime"], there["default"]
    if runtime["state"] != "ready":
        say(f"The node ({runtime['kind']}) is {runtime['state']}. {runtime['reason']}")
    rows = [
        (
            f"{model['id']} (default)" if model["id"] == default else model["id"],
            amounts.size(model["size"]) if model["size"] else "",
            model["state"],
            str(model["context_length"] or ""),
            str(model["running"]),
            ", ".join(model["aliases"]),
        )
        for model in there["data"]
    ]
    if rows:
        print_table((f"on the node ({runtime['kind']})", "size", "state", "context", "running", "aliases"), rows)


def _print_offers(here: set[str]) -> None:
    if others := [choice for choice in CATALOGUE if choice.short not in here]:
        say("To pull with hearthlink model pull NAME:")
        for choice in others:
            say(_offer(choice))


def rm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model, as the list names it.", show_default=False)],
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Delete a model, or what is left of a pull that was not finished."""
    from hearthlink.models import amounts
    from hearthlink.models.shelf import Shelf

    shelf = Shelf(options.settings_from(config).state)
    entry = shelf.find(name)
    reference = entry.record.reference
    try:
        freed = shelf.remove(reference)
    except OSError as error:
        raise Failure(f"{error.filename or entry.path} cannot be deleted: {error.strerror}.") from None
    if json:
        print_json({"name": entry.name, "reference": str(reference), "removed": True, "bytes": freed})
    else:
        say(f"{entry.name} is deleted; {amounts.size(freed)} are free again.")


def _offer(choice: Choice) -> str:
    from hearthlink.models import amounts

    return f"  {choice.short:<13} {amounts.size(choice.size):>8}  {choice.about}"


def _cells(entry: Entry) -> tuple[str, ...]:
    from hearthlink.models import amounts

    whole = entry.record.size
    state = entry.state if entry.state == "ready" else f"{100 * entry.here // max(whole, 1)} % here"
    return entry.name, amounts.size(whole), state, entry.short or str(entry.record.reference)


def _row(entry: Entry) -> dict[str, Any]:
    record = entry.record
    return {
        "name": entry.name,
        "reference": str(record.reference),
        "short_name": entry.short or None,
        "state": entry.state,
        "path": str(entry.path),
        "bytes": record.size,
        "bytes_here": entry.here,
        "commit": record.commit,
        "pulled_at": record.pulled_at,
        "files": [{"path": file.path, "bytes": file.size, "sha256": file.sha256 or None} for file in record.files],
    }
