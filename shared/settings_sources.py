"""Where settings are written: file, systemd credentials, environment, flags. Each source becomes flat values with the
place they came from; nothing is typed or judged here.

``pydantic-settings`` has sources for these, but they merge without remembering where a value came from, pass over
unknown variables in silence and decode every file of the credentials folder; all three are needed to say
which file and key is wrong.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

PREFIX = "HEARTHLINK_"
FILE_NAME = "hearthlink.toml"
# Variables of this program that are not settings keys: they say where settings and state are, and hold the credentials
# that verbs of the command line show an edge.
NOT_SETTINGS = frozenset(
    {
        "HEARTHLINK_STATE",
        "HEARTHLINK_CONFIG",
        "HEARTHLINK_CHAT_KEY",
        "HEARTHLINK_CHAT_TOKEN",
        "HEARTHLINK_SMOKE_KEY",
        "HEARTHLINK_SMOKE_TOKEN",
    }
)
# What Kubernetes injects into every pod beside a Service whose name begins with "hearthlink".
_SERVICE_LINK = re.compile(r"HEARTHLINK(_[A-Z0-9]+)*_(SERVICE_(HOST|PORT)\w*|PORT_\d+_(TCP|UDP|SCTP)\w*)")
# A credential is a token or a key; a file larger than this is something else that was put there by mistake.
_MAX_CREDENTIAL_BYTES = 64 * 1024
# Above this likeness a credential's name is a slip of the pen, below it somebody else's file.
_CREDENTIAL_LIKENESS = 0.8

Key = tuple[str, ...]


class Entry(NamedTuple):
    """A value as it was written, and the place: ``"file PATH"``, ``"credential NAME"``, ``"env NAME"``, ``"flag"``."""

    value: Any
    origin: str


class SettingsError(Exception):
    """Settings that cannot be used. ``problems`` are sentences naming place and key; no secret's value is in them."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Layers:
    """Flat settings, later layers over earlier ones."""

    def __init__(self) -> None:
        self.entries: dict[Key, Entry] = {}

    def put(self, key: Key, value: Any, origin: str) -> None:
        """Set ``key``; a non-empty mapping sets its members one by one."""
        if isinstance(value, Mapping) and (value or not key):
            for name, member in value.items():
                self.put((*key, str(name)), member, origin)
            return
        for known in [known for known in self.entries if known[: len(key)] == key or key[: len(known)] == known]:
            del self.entries[known]
        self.entries[key] = Entry(value, origin)

    def tree(self) -> dict[str, Any]:
        """The values as nested mappings."""
        root: dict[str, Any] = {}
        for key, entry in self.entries.items():
            branch = root
            for name in key[:-1]:
                branch = branch.setdefault(name, {})
            branch[key[-1]] = entry.value
        return root

    def entry(self, place: Key) -> tuple[Key, Entry] | None:
        """What was written at ``place``, above it, or else first below it."""
        for length in range(len(place), 0, -1):
            if found := self.entries.get(place[:length]):
                return place[:length], found
        below = (key for key in self.entries if key[: len(place)] == place)
        return next(((key, self.entries[key]) for key in below), None)


def find_file(chosen: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The settings file: the one chosen, ``$HEARTHLINK_CONFIG``, ``./hearthlink.toml``, the XDG config folder's,
    ``/etc/hearthlink``'s, or None. Raises SettingsError when a file that was asked for is missing."""
    asked = [(chosen, "--config")] if chosen else [(environ.get("HEARTHLINK_CONFIG"), "HEARTHLINK_CONFIG")]
    for path, by in asked:
        if path:
            if not os.path.isfile(found := Path(os.path.expanduser(path))):
                raise SettingsError(f"The settings file {found} does not exist. Correct {by} or create the file.")
            return found
    xdg = environ.get("XDG_CONFIG_HOME") or str(home(environ) / ".config")
    places = (Path(FILE_NAME), Path(xdg) / "hearthlink" / FILE_NAME, Path("/etc/hearthlink") / FILE_NAME)
    return next((place for place in places if place.is_file()), None)


def home(environ: Mapping[str, str]) -> Path:
    """The user's folder by ``environ``, else by the user database."""
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()


def read_file(path: Path) -> dict[str, Any]:
    """The TOML of ``path``. Raises SettingsError with line and column when it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"The settings file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"The settings file {path} is not UTF-8 text (byte {error.start}).") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"The settings file {path} is not TOML: {error}.") from None


def read_environment(environ: Mapping[str, str]) -> Iterator[tuple[Key, str, str]]:
    """Key, text and origin of every ``HEARTHLINK_<SECTION>__<KEY>``. An empty variable counts as not set."""
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS or not environ[name]:
            continue
        if _SERVICE_LINK.fullmatch(name) or environ[name].startswith(("tcp://", "udp://")):
            continue
        yield tuple(name.removeprefix(PREFIX).lower().split("__")), environ[name], f"env {name}"


def read_credentials(folder: str, known: Collection[str], sections: Collection[str]) -> Iterator[tuple[Key, str, str]]:
    """Key, text and origin of every file of a systemd credentials folder named like a setting (``node.tokens``).

    ``known`` holds the dotted keys, ``*`` standing for a name. Other files are left alone, unless their name is a near
    miss of a known key: that one is yielded too and so becomes an error, since a token that is silently not read is
    worse. Raises SettingsError when folder or file cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise SettingsError(f"The folder {folder} of CREDENTIALS_DIRECTORY cannot be read: {error.strerror}.") from None
    for name in names:
        key = tuple(name.split("."))
        if len(key) < 2 or key[0] not in sections:
            continue
        if any(_matches(key, pattern.split(".")) for pattern in known):
            yield key, _credential(Path(folder) / name), f"credential {name}"
        elif difflib.get_close_matches(name, known, 1, _CREDENTIAL_LIKENESS):
            yield key, "", f"credential {name}"


def _matches(key: Key, pattern: list[str]) -> bool:
    return len(key) == len(pattern) and all(part in ("*", name) for name, part in zip(key, pattern, strict=True))


def _credential(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_CREDENTIAL_BYTES + 1)
        if len(raw) <= _MAX_CREDENTIAL_BYTES:
            return raw.decode().strip()
    except OSError as error:
        raise SettingsError(f"The credential {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"The credential {path} is not UTF-8 text.") from None
    raise SettingsError(f"The credential {path} is larger than {_MAX_CREDENTIAL_BYTES} bytes.")
