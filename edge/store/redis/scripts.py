"""The Lua scripts beside this file: each is one step that no other edge comes between."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

_FOLDER = Path(__file__).parent / "lua"
_COMMON = (_FOLDER / "common.lua").read_text()


@dataclass(frozen=True, slots=True)
class Script:
    """``text`` is what the server gets once, ``digest`` (SHA-1, hexadecimal) how it is called from then on."""

    name: str
    text: str
    digest: str


def _load(name: str) -> Script:
    text = _COMMON + (_FOLDER / f"{name}.lua").read_text()
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


ADMIT = _load("admit")
BEAT = _load("beat")
BEGIN = _load("begin")
CALLERS = _load("callers")
CHANGE = _load("change")
DECIDED = _load("decided")
ENTER = _load("enter")
INVITE = _load("invite")
LEAVE = _load("leave")
LOOK = _load("look")
RECORDS = _load("records")
RESET = _load("reset")
REVOKE = _load("revoke")
SETTLE = _load("settle")
STANDING = _load("standing")
