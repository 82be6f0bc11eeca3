"""The model that a node is to load: somebody's own file, or one of the shelf, pulled first when it is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hearthlink.models import catalogue
from hearthlink.models.catalogue import Choice
from hearthlink.models.reference import NoReferenceError, is_reference, parse
from hearthlink.models.shelf import Entry, Shelf
from hearthlink.output import Failure, Status


@dataclass(frozen=True, slots=True)
class Wanted:
    """``path`` is what the runtime will load; ``choice`` is None for a file that is not ours to pull."""

    path: Path
    choice: Choice | None = None


def choose(text: str) -> Choice:
    """The model on a hub that ``text`` means: a reference or a short name. Raises Failure."""
    if choice := catalogue.by_short_name(text):
        return choice
    try:
        return catalogue.by_reference(parse(text))
    except NoReferenceError as error:
        names = "" if is_reference(text) else f" Short names are {catalogue.short_names()}."
        raise Failure(f"{error}{names}", Status.USAGE) from None


def wanted(name: str, state: Path) -> Wanted:
    """The model called ``name``: a reference, a short name, or a name of the list. Raises Failure when there is none,
    or several."""
    shelf = Shelf(state)
    if is_reference(name) or catalogue.by_short_name(name):
        choice = choose(name)
        return Wanted(shelf.path(choice.reference), choice)
    if any(entry.name == name for entry in shelf.entries()):
        entry = shelf.find(name)
        return Wanted(entry.path, catalogue.by_reference(entry.record.reference))
    raise Failure(
        f"There is no file and no model called {name!r}. Name a GGUF file by its path, a model of a hub by"
        f" hf:owner/repo/file.gguf or a short name ({catalogue.short_names()}), or one that `hearthlink model list`"
        " shows.",
        Status.NOT_FOUND,
    )


def bring(choice: Choice, state: Path) -> Entry:
    """Pull the model and show how far that is. Raises Failure."""
    # Imported where they are used: they bring an HTTP client, and a start with the model in place does without.
    from hearthlink.models.hub import Hub
    from hearthlink.models.meter import Meter
    from hearthlink.models.pull import pull

    with Hub.from_environment() as hub, Meter() as meter:
        return pull(Shelf(state), hub, choice, meter)
