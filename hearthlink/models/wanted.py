"""``--model``: a file of the person's own, or a model of the shelf, which is pulled first when it is not there."""

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


def wanted(text: str, state: Path) -> Wanted:
    """What ``--model`` means. A file that exists goes before a name, and a path that does not stays a path, so that the
    person hears of that. Raises Failure for a reference that is none, and a name that several models have."""
    path = Path(text).expanduser().absolute()
    shelf = Shelf(state)
    if is_reference(text) or (not path.exists() and catalogue.by_short_name(text)):
        choice = choose(text)
        return Wanted(shelf.path(choice.reference), choice)
    if not path.exists() and any(entry.name == text for entry in shelf.entries()):
        entry = shelf.find(text)
        return Wanted(entry.path, catalogue.by_reference(entry.record.reference))
    return Wanted(path)


def bring(choice: Choice, state: Path) -> Entry:
    """Pull the model and show how far that is. Raises Failure."""
    # Imported where they are used: they bring an HTTP client, and a start with the model in place does without.
    from hearthlink.models.hub import Hub
    from hearthlink.models.meter import Meter
    from hearthlink.models.pull import pull

    with Hub.from_environment() as hub, Meter() as meter:
        return pull(Shelf(state), hub, choice, meter)
