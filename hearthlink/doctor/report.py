"""What the doctor found: lines in groups, how they are shown, and the exit status that follows from them."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal, get_args

from hearthlink.options import own_command
from hearthlink.output import printable

State = Literal["ok", "warning", "broken", "absent"]
GroupName = Literal["edge", "tailnet", "node", "runtime", "limits", "disk"]

GROUPS: tuple[GroupName, ...] = get_args(GroupName)
_MARKS: dict[State, str] = {"ok": "[ok]", "warning": "[!]", "broken": "[x]", "absent": "[-]"}
_INDENT = " " * 7  # under the text, which stands behind the widest mark
_ENDS_IN_COMMAND = re.compile(r"(.+[.!?]) [^.]+: ((?:sudo|chmod) .+)", re.DOTALL)
_OWN_COMMAND = re.compile(r"(^|\| |&& |\b[A-Z_]+=\S* )hearthlink ")
_NARROWEST = 40  # columns; below that folding makes nothing readable


class Verdict(IntEnum):
    """The exit status."""

    WELL = 0
    WARNINGS = 1
    BROKEN = 2


@dataclass(frozen=True, slots=True)
class Line:
    """One finding. ``text`` is a sentence, or two: what is, and why. ``mend`` is the command that mends it, or the line
    to write, ``where`` the place that this is done at when it is not a shell on this machine. ``check`` is its name for
    programs. ``absent``: it does not apply here, or nobody set it up."""

    group: GroupName
    check: str
    state: State
    text: str
    mend: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Makes the lines of one group."""

    name: GroupName

    def ok(self, check: str, text: str) -> Line:
        return Line(self.name, check, "ok", text)

    def warning(self, check: str, text: str, mend: str, where: str = "") -> Line:
        return Line(self.name, check, "warning", text, mend, where)

    def broken(self, check: str, text: str, mend: str, where: str = "") -> Line:
        return Line(self.name, check, "broken", text, mend, where)

    def absent(self, check: str, text: str, mend: str = "", where: str = "") -> Line:
        return Line(self.name, check, "absent", text, mend, where)


def split_command(text: str) -> tuple[str, str]:
    """A sentence of another part that ends in the command that mends it ("… Start it: sudo tailscale up"), without it;
    and the command, "" where there is none."""
    found = _ENDS_IN_COMMAND.fullmatch(text)
    return (found[1], found[2]) if found else (text, "")


def verdict(lines: Iterable[Line]) -> Verdict:
    states = {line.state for line in lines}
    if "broken" in states:
        return Verdict.BROKEN
    return Verdict.WARNINGS if "warning" in states else Verdict.WELL


def in_groups(lines: Sequence[Line]) -> Iterator[tuple[GroupName, list[Line]]]:
    """Every group, the empty ones too, each with its lines in the order that they came in."""
    for name in GROUPS:
        yield name, [line for line in lines if line.group == name]


def as_json(lines: Sequence[Line], version: str) -> dict[str, Any]:
    """``{"version", "ok", "status", "groups": {"edge": [{"check", "state", "text", "mend", "where"}, …], …}}``."""
    status = verdict(lines)
    return {
        "version": version,
        "ok": status is Verdict.WELL,
        "status": int(status),
        "groups": {
            name: [
                {"check": line.check, "state": line.state, "text": line.text, "mend": line.mend, "where": line.where}
                for line in found
            ]
            for name, found in in_groups(lines)
        },
    }


def as_text(lines: Sequence[Line], width: int | None) -> str:
    """For a person. Folded to ``width`` columns; None folds nothing. What is to be copied is never folded."""
    shown = [
        part
        for name, found in in_groups(lines)
        if found
        for part in (name, *(row for line in found for row in _rows(line, width)), "")
    ]
    return "\n".join([*shown, summary(lines)])


def summary(lines: Sequence[Line]) -> str:
    broken = sum(line.state == "broken" for line in lines)
    warnings = sum(line.state == "warning" for line in lines)
    if not broken and not warnings:
        return "All is well."
    counted = (_count(broken, "thing is broken", "things are broken"), _count(warnings, "warning", "warnings"))
    return f"{', '.join(part for part in counted if part)}."


def print_report(lines: Sequence[Line]) -> None:
    """On standard output. Commands for this machine are as a shell here understands them."""
    program = "hearthlink" if shutil.which("hearthlink") else shlex.join(own_command())
    here = [line if line.where.startswith("on ") else replace(line, mend=pasted(line.mend, program)) for line in lines]
    width = max(_NARROWEST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None
    print(printable(as_text(here, width)), flush=True)


def pasted(mend: str, program: str) -> str:
    """``mend`` with ``program`` in the place of ``hearthlink``, where that is a command."""
    return _OWN_COMMAND.sub(lambda found: f"{found[1]}{program} ", mend)


def _rows(line: Line, width: int | None) -> Iterator[str]:
    text = f"  {_MARKS[line.state]:<5}{line.text}"
    yield from textwrap.wrap(text, width, subsequent_indent=_INDENT, break_on_hyphens=False) if width else [text]
    if line.mend:
        label = line.where or ("if wanted" if line.state == "absent" else "mend")
        yield f"{_INDENT}{label}: {line.mend}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}" if number else ""
