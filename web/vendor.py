"""The libraries of the chat page: are they what their authors released?

    python web/vendor.py            # downloads each release and compares it with the files here, byte by byte
    python web/vendor.py --write    # takes the files of the versions in vendor/vendored.json, after a change there

Needs npm, which brings its own idea of where packages come from. Exit status 1 when something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).resolve().parent / "vendor"
LOCK = VENDOR / "vendored.json"
_DOWNLOAD_SECONDS = 120


def libraries() -> list[dict[str, Any]]:
    """Entries of the lock: ``name``, ``version``, ``license`` and ``files``, each with ``file`` (its name here),
    ``path`` (in the package) and ``sha256``."""
    return json.loads(LOCK.read_text(encoding="utf-8"))["libraries"]


def folder(library: dict[str, Any]) -> Path:
    return VENDOR / f"{library['name']}-{library['version']}"


def released(library: dict[str, Any], scratch: Path) -> Iterator[tuple[dict[str, str], bytes]]:
    """Each locked file of ``library`` with its bytes in the released package. Raises CalledProcessError when npm cannot
    get it, KeyError when the package has no such file."""
    command = ["npm", "pack", f"{library['name']}@{library['version']}", "--silent", "--pack-destination", str(scratch)]
    subprocess.run(command, check=True, capture_output=True, timeout=_DOWNLOAD_SECONDS, cwd=scratch)
    with tarfile.open(scratch / f"{library['name']}-{library['version']}.tgz") as package:
        for file in library["files"]:
            member = package.extractfile(f"package/{file['path']}")
            assert member is not None, "a folder is no file"
            yield file, member.read()


def differences() -> list[str]:
    """What is not as released, one line each; empty when all is well."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for library in libraries():
            for file, body in released(library, Path(scratch)):
                here = folder(library) / file["file"]
                if not here.is_file():
                    found.append(f"{here} is missing")
                elif here.read_bytes() != body:
                    found.append(f"{here} is not {file['path']} of {library['name']} {library['version']}")
                if hashlib.sha256(body).hexdigest() != file["sha256"]:
                    found.append(f"{LOCK.name} has another sha256 for {file['path']} of {library['name']}")
    return found


def write() -> None:
    """Take the files of the locked versions, and their hashes into the lock. Old versions' folders stay for git rm."""
    locked = libraries()
    with tempfile.TemporaryDirectory() as scratch:
        for library in locked:
            folder(library).mkdir(exist_ok=True)
            for file, body in released(library, Path(scratch)):
                (folder(library) / file["file"]).write_bytes(body)
                file["sha256"] = hashlib.sha256(body).hexdigest()
    LOCK.write_text(json.dumps({"libraries": locked}, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="take the files of the versions in the lock")
    if parser.parse_args().write:
        write()
    found = differences()
    print("\n".join(found) or "All vendored files are as released.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
