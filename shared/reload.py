"""Settings read again while a process runs."""

from __future__ import annotations

from collections.abc import Callable

from loguru import logger

from shared.settings import Settings, SettingsError
from shared.state import StateError


def reload_settings(
    name: str,
    current: Settings,
    apply: Callable[[Settings], None],
    *,
    sections: tuple[str, ...],
    applied: tuple[str, ...],
) -> Settings:
    """Read the sources of ``current`` again and ``apply`` what they say now; the settings that hold from here on.

    A mistake keeps ``current`` and is logged; ``apply`` raises StateError before it changes anything. Keys of the
    deployable ``name`` begin with one of ``sections``; those of them that do not begin with one of ``applied`` are
    bound at its start, and the log says that they wait for the next one.
    """
    try:
        settings = current.reread()
        apply(settings)
    except (SettingsError, StateError) as error:
        logger.error("the settings stay as they were: {}", error)
        return current
    changed = [key for key in current.changed(settings) if key.startswith(sections)]
    now = [key for key in changed if key.startswith(applied)]
    later = [key for key in changed if key not in now]
    logger.info("reloaded {}", ", ".join(now) or "nothing new")
    if later:
        logger.warning("restart the {} for {}", name, ", ".join(later))
    return settings
