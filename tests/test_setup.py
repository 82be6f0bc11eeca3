"""Setting up on a machine that has only Python and git, with the traps that such machines hold.

Each test runs the real scripts in a copy of the checkout whose lock files are cut down to one small package each and
whose ``hearthlink`` only tells what it sees; the full lock files are what the tests themselves run in.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Seconds: one set-up downloads and unpacks uv, which a slow line and a busy machine make long.
PATIENCE = 240
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens there
NOTHING: Mapping[str, str] = {}
REPORT = """
import importlib.util, json, os, sys
print(json.dumps({
    "arguments": sys.argv[1:], "folder": os.getcwd(), "prefix": sys.prefix, "file": __file__,
    "installed": [name for name in ("itsdangerous", "iniconfig", "xllamacpp") if importlib.util.find_spec(name)],
    "path": sys.path, "base": sys.base_prefix,
}))
"""


def stanza(lock: str, package: str) -> str:
    """One entry of a lock file: its pin and the hashes that continue it."""
    found = re.search(rf"^{package}==.*(?:\n[ ].*)*\n", (ROOT / lock).read_text(), re.MULTILINE)
    assert found, f"{package} is not in {lock}"
    return found.group()


def new_checkout(folder: Path, *packages: str) -> Path:
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    run = [stanza("requirements.lock", package) for package in ("itsdangerous", *packages)]
    (folder / "requirements.lock").write_text("".join(run))
    (folder / "requirements-dev.lock").write_text(stanza("requirements-dev.lock", "iniconfig"))
    (folder / "hearthlink").mkdir()
    (folder / "hearthlink" / "__init__.py").touch()
    (folder / "hearthlink" / "__main__.py").write_text(REPORT)
    return folder


def bare_python(folder: Path) -> Path:
    """A copy of this Python as slim distributions ship it: no ensurepip, no pip, nothing installed. Returns its bin."""
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = Path(os.__file__).parent
    for name in ("bin", f"lib/{library.name}"):
        (folder / name).mkdir(parents=True)
    shutil.copy(base, folder / "bin" / "python3")
    for entry in library.iterdir():
        if entry.name not in {"ensurepip", "site-packages", "dist-packages"}:
            (folder / "lib" / library.name / entry.name).symlink_to(entry)
    for entry in library.parent.glob("libpython*"):
        (folder / "lib" / entry.name).symlink_to(entry)
    return folder / "bin"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH that holds the bare Python and the one other command that the scripts call."""
    tools = bare_python(tmp_path_factory.mktemp("machine"))
    (tools / "dirname").symlink_to(str(shutil.which("dirname")))
    return tools


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_checkout(tmp_path_factory.mktemp("home") / "späces & 'quotes' $HOME")


def environment(machine: Path, changes: Mapping[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "HEARTHLINK"))
    }
    return {**kept, "PATH": str(machine), **changes}


def launch(
    checkout: Path, machine: Path, *arguments: str, cwd: Path | None = None, changes: Mapping[str, str] = NOTHING
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [checkout / "scripts" / "up", *arguments],
        cwd=cwd or checkout.parent,
        env=environment(machine, changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def start(
    checkout: Path, machine: Path, *arguments: str, cwd: Path | None = None, changes: Mapping[str, str] = NOTHING
) -> tuple[Any, str]:
    """Run `scripts/up` to its end; returns what the stand-in for hearthlink saw and what was said on the way."""
    status, out, err = finish(launch(checkout, machine, *arguments, cwd=cwd, changes=changes))
    assert status == 0, err
    return json.loads(out), err


def refused(checkout: Path, machine: Path, changes: Mapping[str, str] = NOTHING) -> str:
    status, out, err = finish(launch(checkout, machine, changes=changes))
    assert status != 0
    assert out == ""
    assert "Traceback" not in err
    return err


def test_the_bare_python_is_bare(machine: Path) -> None:
    for module in ("ensurepip", "pip"):
        found = subprocess.run([machine / "python3", "-I", "-c", f"import {module}"], capture_output=True, text=True)
        assert "ModuleNotFoundError" in found.stderr


def test_two_starts_at_once_make_one_environment(checkout: Path, machine: Path) -> None:
    both = [launch(checkout, machine, "--port", "1"), launch(checkout, machine, "--port", "2")]
    results = [finish(process) for process in both]
    assert [status for status, _, _ in results] == [0, 0], results
    assert sum(err.count("Making the environment") for _, _, err in results) == 1
    for (_, out, _), port in zip(results, ("1", "2"), strict=True):
        seen = json.loads(out)
        assert seen["arguments"] == ["up", "--port", port]
        assert seen["prefix"] == str(checkout / ".venv")
        assert seen["installed"] == ["itsdangerous"]


def test_a_second_start_needs_no_network_and_no_time(checkout: Path, machine: Path) -> None:
    start(checkout, machine)
    began = time.monotonic()
    _, said = start(checkout, machine, changes={"HTTPS_PROXY": NOWHERE, "ALL_PROXY": NOWHERE})
    assert time.monotonic() - began < 3
    assert said == ""


def test_the_callers_folder_and_settings_do_not_reach_in(checkout: Path, machine: Path, tmp_path: Path) -> None:
    for name in ("hearthlink", "itsdangerous", "sitecustomize", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module was imported')\n")
    (tmp_path / "uv.toml").write_text('required-version = "==0.0.1"\n')
    rubbish = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere", "VIRTUAL_ENV": str(tmp_path)}
    rubbish |= {"PIP_TARGET": str(tmp_path), "UV_PYTHON": "3.99", "UV_SYSTEM_PYTHON": "1"}
    for lock in checkout.glob(".venv/*.stamp"):
        lock.unlink()
    seen, said = start(checkout, machine, "--model", "my model.gguf", cwd=tmp_path, changes=rubbish)
    assert "Making the environment" in said
    assert seen["arguments"] == ["up", "--model", "my model.gguf"]
    assert seen["folder"] == str(tmp_path), "a relative --model is relative to where the person stands"
    assert seen["file"] == str(checkout / "hearthlink" / "__main__.py")
    assert str(tmp_path) not in seen["path"]


def test_the_installed_command_works_from_anywhere(checkout: Path, machine: Path, tmp_path: Path) -> None:
    start(checkout, machine)
    (tmp_path / "hearthlink.py").write_text("raise SystemExit('the wrong module was imported')\n")
    command = [checkout / ".venv" / "bin" / "hearthlink", "chat", "two words"]
    rubbish = environment(machine, {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere"})
    ran = subprocess.run(command, cwd=tmp_path, env=rubbish, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)["arguments"] == ["chat", "two words"]


def test_the_tests_packages_are_added_to_a_finished_environment(checkout: Path, machine: Path) -> None:
    start(checkout, machine)
    made = (checkout / ".venv" / "pyvenv.cfg").stat().st_mtime_ns
    shutil.copy(checkout / "scripts" / "up", checkout / "scripts" / "develop")
    script = checkout / "scripts" / "develop"
    script.write_text(script.read_text().replace("make_environment run", "make_environment dev"))
    ran = subprocess.run(
        [script], env=environment(machine, NOTHING), capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert json.loads(ran.stdout)["installed"] == ["itsdangerous", "iniconfig"]
    assert (checkout / ".venv" / "pyvenv.cfg").stat().st_mtime_ns == made


def test_a_moved_checkout_is_set_up_again(checkout: Path, machine: Path) -> None:
    start(checkout, machine)
    (checkout / "venv").mkdir()
    (checkout / "venv" / "mine").write_text("an environment of the user's own")
    moved = checkout.rename(checkout.with_name("moved"))
    try:
        seen, said = start(moved, machine)
        assert "made again" in said
        assert seen["prefix"] == str(moved / ".venv")
        assert seen["file"] == str(moved / "hearthlink" / "__main__.py")
        assert (moved / "venv" / "mine").read_text() == "an environment of the user's own"
    finally:
        moved.rename(checkout)


def test_a_start_that_was_killed_is_made_good(tmp_path: Path, machine: Path) -> None:
    checkout = new_checkout(tmp_path / "checkout")
    first = launch(checkout, machine)
    deadline = time.monotonic() + PATIENCE
    while not (checkout / ".venv" / "bin").exists():
        assert time.monotonic() < deadline
        assert first.poll() is None, finish(first)
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    # As a person would: with the half-made environment activated, so that its Python is the first one found.
    seen, said = start(checkout, machine, changes={"PATH": f"{checkout}/.venv/bin:{machine}"})
    assert "made again" in said
    assert seen["installed"] == ["itsdangerous"]
    assert seen["base"] == str(machine.parent)


def test_a_start_waits_for_the_one_that_holds_the_lock(tmp_path: Path, machine: Path) -> None:
    checkout = new_checkout(tmp_path / "checkout")
    with (checkout / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = launch(checkout, machine)
        assert waiting.stderr is not None
        assert "waiting for it" in waiting.stderr.readline()
        assert not (checkout / ".venv").exists()
    status, out, err = finish(waiting)
    assert status == 0, err
    assert json.loads(out)["installed"] == ["itsdangerous"]


def test_a_platform_without_llama_cpp_is_told_of_runtime_urls(tmp_path: Path, machine: Path) -> None:
    checkout = new_checkout(tmp_path / "checkout", "xllamacpp")
    # What uv finds on Alpine: no wheel of xllamacpp is for musl.
    settings = tmp_path / "musl.toml"
    settings.write_text('[pip]\npython-platform = "x86_64-unknown-linux-musl"\n')
    seen, said = start(checkout, machine, changes={"UV_CONFIG_FILE": str(settings)})
    assert seen["installed"] == ["itsdangerous"]
    assert "no llama.cpp package for this platform" in said
    assert "scripts/up --runtime URL" in said
    for arguments in (["--runtime", "http://127.0.0.1:1234"], ["--runtime=http://127.0.0.1:1234"]):
        assert start(checkout, machine, *arguments)[1] == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux wheel leaves libgomp to the system")
def test_a_missing_libgomp_is_named_with_the_command(checkout: Path, machine: Path, tmp_path: Path) -> None:
    start(checkout, machine)
    (tmp_path / "libgomp.so.1").write_bytes(b"not a library")
    (tmp_path / "apt-get").write_text("#!/bin/sh\n")
    (tmp_path / "apt-get").chmod(0o755)
    changes = {"LD_LIBRARY_PATH": str(tmp_path), "PATH": f"{machine}:{tmp_path}"}
    _, said = start(checkout, machine, changes=changes)
    assert "libgomp.so.1, which is missing" in said
    assert "sudo apt-get install libgomp1" in said
    assert "scripts/up --runtime URL" in said
    assert start(checkout, machine, "--runtime", "http://127.0.0.1:1234", changes=changes)[1] == ""


@pytest.mark.parametrize("old", [False, True])
def test_a_machine_without_a_usable_python_is_told_what_to_install(checkout: Path, tmp_path: Path, old: bool) -> None:
    (tmp_path / "dirname").symlink_to(str(shutil.which("dirname")))
    if old:
        (tmp_path / "python3").write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.18 && exit\nexit 1\n')
        (tmp_path / "python3").chmod(0o755)
    for stamp in checkout.glob(".venv/*.stamp"):
        stamp.unlink()
    said = refused(checkout, tmp_path)
    assert "needs Python 3.11 or newer" in said
    assert ("Python 3.9.18" if old else "no python3") in said
    assert " install " in said or " add " in said


def test_a_damaged_pip_is_not_run(tmp_path: Path, machine: Path) -> None:
    checkout = new_checkout(tmp_path / "checkout")
    (wheel,) = checkout.glob("scripts/vendor/*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    said = refused(checkout, machine)
    assert "damaged" in said
    assert "git checkout -- scripts/vendor" in said
    assert not (checkout / ".venv").exists()


def test_a_wheel_with_another_hash_is_not_installed(tmp_path: Path, machine: Path) -> None:
    checkout = new_checkout(tmp_path / "checkout")
    lock = checkout / "requirements.lock"
    lock.write_text(re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", lock.read_text()))
    said = refused(checkout, machine)
    assert "requirements.lock could not be installed" in said
    assert not list(checkout.glob(".venv/*.stamp"))


def test_no_network_is_said_in_a_sentence(tmp_path: Path, machine: Path) -> None:
    checkout = new_checkout(tmp_path / "checkout")
    nowhere = {"PIP_INDEX_URL": f"{NOWHERE}/simple", "PIP_FIND_LINKS": "", "PIP_RETRIES": "0"}
    said = refused(checkout, machine, nowhere)
    assert "Check the network, or the proxy in HTTPS_PROXY" in said


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "hearthlink", "up", "--no-browser", "--port", port],
            cwd=ROOT,
            env=os.environ | {"HEARTHLINK_STATE": str(tmp_path), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ran.returncode != 0
    assert port in ran.stderr + ran.stdout
    assert "Traceback" not in ran.stderr
