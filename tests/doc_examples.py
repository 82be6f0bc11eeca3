"""The code blocks of the documents, and a folder in which they run as they stand there.

A block runs against a live pair: what the documents call the edge, a page, a key and so on is put in, see ``Place``.
What would not end, needs the internet or is another machine is stood in for:

    scripts/up; hearthlink up, edge, node, doctor, setup, model pull    the real command line checks their flags
    scripts/test, check, bench                                          they have to be there
    npm install                                  what it names has to be a package that the tests install
    tailscale                                    the real one checks its flags, where the tests have built it
    sudo                                         runs what it is given, as the same user
    nft, ufw                                     nothing is run: they would change this machine
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.javascript import PACKAGES
from tests.processes import ROOT
from tests.tailnet import binaries

CLIENT = ROOT / "clients" / "js"
DOCUMENTS = (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", CLIENT / "README.md")
_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_SECONDS = 60.0  # for one block; the slowest, smoke, takes a few

# Checks the flags of a verb as the command line itself would, and runs nothing.
_PARSE = """
import sys
from hearthlink.__main__ import _Invocation, build
from typer.main import get_command
command, context, rest = get_command(build(_Invocation())), None, sys.argv[1:]
while hasattr(command, "resolve_command"):
    context = command.make_context(command.name or "hearthlink", rest, parent=context, allow_extra_args=True,
                                   allow_interspersed_args=False)
    _, command, rest = command.resolve_command(context, context._protected_args + context.args)
command.make_context(command.name, rest, parent=context)
"""
_HEARTHLINK = """#!/bin/sh
case "$1 $2" in
  up*|edge*|node*|doctor*|setup*|"model pull"*) exec "$PYTHON" -c "$PARSE" "$@" ;;
  *) exec "$PYTHON" -m hearthlink "$@" ;;
esac
"""
_UP = '#!/bin/sh\nexec "$PYTHON" -c "$PARSE" up "$@"\n'
# An answer that is an error fails the block, and no proxy of this machine is asked.
_CURL = '#!/bin/sh\nexec {curl} --fail-with-body --noproxy "*" "$@"\n'
# Its help, which it gives after having read the flags before it.
_TAILSCALE = '#!/bin/sh\nexec "{tailscale}" "$@" --help >/dev/null 2>&1\n'
_SUDO = '#!/bin/sh\nexec env "$@"\n'
_NOTHING = "#!/bin/sh\n:\n"
_NPM = """#!/bin/sh
test "$1" = install && shift
for name in "$@"; do
  test -d "node_modules/$name" || test -f "$name/package.json" || { echo "no test installs $name"; exit 1; }
done
"""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. ``answer_to`` is the one before it, when only blank lines are between them; ``reason`` says why
    it cannot run."""

    document: Path
    line: int
    language: str
    text: str
    reason: str | None
    answer_to: Block | None = None

    @property
    def name(self) -> str:
        """As a test's id and in messages."""
        return f"{self.document.relative_to(ROOT)}:{self.line}-{self.language}"


def blocks() -> Iterator[Block]:
    """All blocks of all documents, in order."""
    for document in DOCUMENTS:
        content, last, end = document.read_text(), None, 0
        for found in _FENCE.finditer(content):
            line = content.count("\n", 0, found.start("language")) + 1
            before = last if last is not None and not content[end : found.start()].strip() else None
            last, end = Block(document, line, found["language"], found["text"], found["reason"], before), found.end()
            yield last


def in_language(*languages: str) -> list[Block]:
    return [block for block in blocks() if block.language in languages and block.reason is None]


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that looks like a checkout to a block, and what the documents' names stand for there.

    ``secrets`` are the key, token and invite that the documents write as ``hlk_…``, ``hlt_…`` and ``hli_…``, and
    ``admin``, a key that administers, for ``$ADMIN_KEY``; ``origin`` is that of the page that a block in JavaScript is
    in.
    """

    folder: Path
    state: Path
    edge: str
    ops: str
    origin: str
    secrets: Mapping[str, str]

    def prepare(self) -> None:
        for name in ("node", "clients", "models"):
            (self.folder / name).symlink_to(ROOT / name)
        _write(self.folder / "bin" / "hearthlink", _HEARTHLINK)
        _write(self.folder / ".venv" / "bin" / "hearthlink", _HEARTHLINK)
        _write(self.folder / "bin" / "curl", _CURL.format(curl=shutil.which("curl")))
        tailscale = _TAILSCALE.format(tailscale=binaries.build().tailscale) if binaries.built() else _NOTHING
        _write(self.folder / "bin" / "tailscale", tailscale)
        _write(self.folder / "bin" / "sudo", _SUDO)
        for name in ("nft", "ufw"):
            _write(self.folder / "bin" / name, _NOTHING)
        _write(self.folder / "bin" / "npm", _NPM)
        _write(self.folder / "scripts" / "up", _UP)
        for name in ("test", "check", "bench"):
            _write(self.folder / "scripts" / name, f"#!/bin/sh\ntest -x '{ROOT / 'scripts' / name}'\n")
        default_state = self.folder / ".local" / "state"
        default_state.mkdir(parents=True)
        (default_state / "hearthlink").symlink_to(self.state)

    def bring_packages(self) -> None:
        """What ``npm install`` would bring, from the folders of the tests."""
        modules = self.folder / "node_modules"
        (modules / "@hearthlink").mkdir(parents=True)
        (modules / "@hearthlink" / "client").symlink_to(CLIENT)
        for installed in (CLIENT / "node_modules", PACKAGES / "node_modules"):
            for package in [*installed.glob("[!.@]*"), *installed.glob("@*/*")]:
                link = modules / package.relative_to(installed)
                link.parent.mkdir(exist_ok=True)
                if not link.exists():
                    link.symlink_to(package)

    def filled(self, block: Block) -> str:
        """The block's text for this place."""
        text = block.text
        for written, meant in (
            ("https://edge.example.org", self.edge),
            ("http://127.0.0.1:8700", self.edge),
            ("http://127.0.0.1:8701", self.ops),
            *((f"{prefix}…", secret) for prefix, secret in self.secrets.items() if prefix.endswith("_")),
        ):
            text = text.replace(written, meant)
        if block.language == "sh":  # as in "smoke URL --key KEY"
            text = re.sub(r"(?<![\w${])URL\b", self.edge, text)
            text = re.sub(r"(?<![\w${])KEY\b(?!=)", self.secrets["hlk_"], text)
        return text

    async def run(self, *command: str, stdin: str | None = None) -> str:
        """What the command said on standard output. Raises AssertionError with all it said when it fails."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.folder,
            env=self._environment(),
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_SECONDS):
                out, err = await process.communicate(None if stdin is None else stdin.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, f"exit status {process.returncode}\n{out.decode()}\n{err.decode()}"
        return out.decode()

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "PARSE": _PARSE,
            "KEY": self.secrets["hlk_"],
            "TOKEN": self.secrets["hlt_"],
            "ADMIN_KEY": self.secrets["admin"],
            "EDGE_KEY": self.secrets["hlk_"],
            "HEARTHLINK_STATE": str(self.state),
            "HEARTHLINK_EDGE__LISTEN": self.edge.removeprefix("http://"),
            "PAGE_ORIGIN": self.origin,
        }


def _write(script: Path, text: str) -> None:
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(text)
    script.chmod(0o755)


def shape(value: object) -> object:
    """Keys and types of a JSON value; null may stand for anything, and an empty list for any."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def alike(documented: object, real: object) -> bool:
    """Whether two shapes say the same, as far as both say something."""
    if "NoneType" in (documented, real):
        return True
    if isinstance(documented, dict) and isinstance(real, dict):
        return documented.keys() == real.keys() and all(alike(documented[key], real[key]) for key in documented)
    if isinstance(documented, list) and isinstance(real, list):
        return not documented or not real or alike(documented[0], real[0])
    return documented == real


def from_json(text: str) -> object:
    return shape(json.loads(text))
