"""What a committed file may say: no package registry, nothing left for later, and every hash holds."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


def committed_files() -> list[Path]:
    """What is or would be committed; in a copy without git, every file outside the folders that scripts make."""
    listing = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(listing, capture_output=True, check=True).stdout.decode().split("\0")
        files = [ROOT / name for name in names if name]
    except (OSError, subprocess.CalledProcessError):
        files = [
            path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
        ]
    return sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts)


def committed_text() -> Iterator[tuple[Path, str]]:
    for path in committed_files():
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_no_committed_file_names_a_package_registry() -> None:
    # In pieces, so that this file passes its own test.
    hosts = [
        "pypi." + "org",
        "python" + "hosted.org",
        "registry." + "npmjs",
        "registry." + "yarnpkg",
        "--index" + "-url http",
    ]
    wrong = [f"{path.relative_to(ROOT)}: {host}" for path, text in committed_text() for host in hosts if host in text]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_for_later() -> None:
    marks = ["TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error", "pytest.mark.skip" + "("]
    wrong = [
        f"{path.relative_to(ROOT)}: {mark}"
        for path, text in committed_text()
        if path.suffix in {".py", ".sh", ".js", ".toml"} or path.parent.name == "scripts"
        for mark in marks
        if re.search(rf"\b{re.escape(mark)}", text)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_vendored_pip_is_the_one_that_was_reviewed() -> None:
    vendor = ROOT / "scripts" / "vendor"
    digest, name = (vendor / "pip.sha256").read_text().split()
    assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest
    assert [path.name for path in vendor.glob("*.whl")] == [name]


def test_the_demo_model_is_the_one_described() -> None:
    digest = hashlib.sha256((ROOT / "models" / "demo.gguf").read_bytes()).hexdigest()
    assert digest in (ROOT / "models" / "README.md").read_text()


def pins(lock: Path) -> dict[str, list[Version]]:
    """Name to pinned versions (several where they depend on the Python) of a lock file."""
    found: dict[str, list[Version]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", lock.read_text(), re.MULTILINE):
        found.setdefault(canonicalize_name(name), []).append(Version(version))
    return found


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock", "scripts/vendor/uv.txt"])
def test_every_pin_has_a_hash(lock: str) -> None:
    # One entry is its pin and the lines that continue it.
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE))
    assert [entry for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []


def test_the_lock_files_fit_the_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = [text for extra in project["project"]["optional-dependencies"].values() for text in extra]
    wanted = {
        "requirements.lock": project["project"]["dependencies"] + extras,
        "requirements-dev.lock": project["dependency-groups"]["dev"],
    }
    for lock, requirements in wanted.items():
        pinned = pins(ROOT / lock)
        for requirement in map(Requirement, requirements):
            versions = pinned.get(canonicalize_name(requirement.name), [])
            assert versions, f"{requirement} is not in {lock}; run scripts/lock"
            assert all(version in requirement.specifier for version in versions), f"{requirement}: run scripts/lock"


def test_the_lock_files_agree() -> None:
    run, dev = pins(ROOT / "requirements.lock"), pins(ROOT / "requirements-dev.lock")
    assert [name for name in run.keys() & dev.keys() if run[name] != dev[name]] == []


@pytest.mark.parametrize("name", ["up", "test", "check", "bench", "lock"])
def test_scripts_are_posix_sh(name: str) -> None:
    script = ROOT / "scripts" / name
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["/bin/sh", "-n", script], check=True)
