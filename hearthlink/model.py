"""``hearthlink model pull|list|rm``: models from a hub, in the local state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hearthlink import options
from hearthlink.models.catalogue import CATALOGUE, Choice, short_names
from hearthlink.output import Failure, print_json, print_table, say

if TYPE_CHECKING:
    from hearthlink.models.shelf import Entry

_MODEL = f"hf:owner/repo[@revision]/file.gguf, or a short name: {short_names()}."


def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL, show_default=False)],
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Load a model from a hub, or what is missing of it, and print its path.

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


def list_(json: options.Json = False, config: options.Config = None) -> None:
    """List the models that were pulled, and what is left of pulls that were not finished."""
    from hearthlink.models.shelf import Shelf

    entries = Shelf(options.settings_from(config).state).entries()
    if json:
        print_json([_row(entry) for entry in entries])
        return
    if entries:
        print_table(("name", "size", "state", "model"), [_cells(entry) for entry in entries])
    else:
        say("No model was pulled yet.")
    here = {entry.short for entry in entries}
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
