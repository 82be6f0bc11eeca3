"""What the owner decided about models while the node ran, kept over a restart: ``node-models.json``."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loguru import logger

from node.models.defaults import DefaultInference
from node.runtime import LoadConfig
from shared.ownership import belongs_to_folder

NAME = "node-models.json"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """``active`` is the model that answers when nobody names one, "" without; ``inference`` is its defaultInference.
    ``configs`` are names and values of ``LoadConfig`` by model, of the owner's last load of it. ``loaded`` are the
    models that the owner wants in memory, None while nothing was said of it. ``default`` is the one that answered when
    nobody named one, at the time when nothing was in memory any more. ``yielded``: the owner has taken the GPU back."""

    active: str = ""
    inference: Mapping[str, Any] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    loaded: tuple[str, ...] | None = None
    default: str = ""
    yielded: bool = False

    @property
    def at_start(self) -> tuple[str, ...] | None:
        """What a runtime is to load by itself when it starts: nothing where ``Models`` loads what was there before,
        else what is active; None leaves it to the runtime."""
        if self.loaded is not None:
            return ()
        return (self.active,) if self.active else None


class KeptFile:
    """The file at ``path``; None keeps nothing. Both methods do file I/O."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self) -> Kept:
        """What was kept; nothing for a file that is missing, or, with a line in the log, spoilt."""
        if self._path is None:
            return Kept()
        try:
            with self._path.open("rb") as file:
                return _kept(json.loads(file.read(_MAX_BYTES)))
        except FileNotFoundError:
            return Kept()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it does not hold what Hearthlink writes there"
            logger.error("{} cannot be read ({}): activated and loaded models are forgotten", self._path, why)
            return Kept()

    def write(self, kept: Kept) -> None:
        """Whole, in place of what was there; a disk that refuses costs a line in the log, not the act."""
        if self._path is None:
            return
        draft = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        try:
            with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
                belongs_to_folder(file.fileno(), draft.parent)
                json.dump(asdict(kept), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self._path)
        except OSError as error:
            logger.error("{} cannot be written ({}): a restart forgets this", self._path, error.strerror)
        finally:
            draft.unlink(missing_ok=True)


def _kept(wire: Any) -> Kept:
    """Raises ValueError, TypeError or AttributeError for what was not written here."""
    inference = dict(wire.get("inference", {}))
    DefaultInference.model_validate(inference)
    return Kept(
        active=str(wire.get("active", "")),
        inference=inference,
        configs={str(name): LoadConfig(**config).given() for name, config in wire.get("configs", {}).items()},
        loaded=None if (loaded := wire.get("loaded")) is None else tuple(str(name) for name in loaded),
        default=str(wire.get("default", "")),
        yielded=wire.get("yielded") is True,
    )
