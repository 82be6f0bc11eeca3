"""The edge's database in the local state, for the verbs that read and change it beside a running edge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hearthlink import options
from hearthlink.output import Failure, Status

if TYPE_CHECKING:
    import sqlite3

    from shared.settings import Settings


@contextmanager
def local_database(settings: Settings) -> Iterator[sqlite3.Connection]:
    """Open while the block runs, made when it is not there. Raises Failure, for the block's AdminError too."""
    import sqlite3

    from edge.store.database import AdminError, NoSuchError, StoreError, open_for_admin
    from shared.state import StateError

    path: Path | None = None
    try:
        path = options.state_of(settings).database
        connection = open_for_admin(path)
        try:
            yield connection
        finally:
            connection.close()
    except NoSuchError as error:
        raise Failure(str(error), Status.NOT_FOUND) from None
    except AdminError as error:
        raise Failure(str(error), Status.USAGE) from None
    except (StateError, StoreError) as error:
        raise Failure(str(error)) from None
    except sqlite3.Error as error:
        raise Failure(f"The database {path} cannot be used ({error}). Stop what holds it, then try again.") from None
