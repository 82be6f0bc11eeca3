"""Makes the environment in ``.venv`` that the scripts beside this file run in.

Needs Python >= 3.11 and nothing else: ``venv --without-pip`` works where a distribution ships neither ensurepip nor
pip, the pip wheel kept in ``scripts/vendor`` then installs the pinned uv, and uv installs the lock file. Everything
downloaded is a wheel whose hash is in a committed file; nothing is built and no Python is fetched.

    environment.py make run|dev     under a lock, so that two starts at once make one environment
    environment.py check run|dev    exit status 0 when it is finished; run by the environment's own interpreter
    environment.py advise ARGS      says what the embedded runtime lacks here, unless ARGS of ``up`` name another

A stamp per lock file (path, hash of what was installed) is written last. An environment that is unfinished, was moved
or is out of date is therefore made again, and a finished one costs one start of the interpreter. The checkout itself is
not installed: a ``.pth`` file names it, so that nothing has to be built and an edit is live.

Standard library only, and run with ``-I``: it works before there is anything to import.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
VENDOR = ROOT / "scripts" / "vendor"
LOCKS = {
    "run": [ROOT / "requirements.lock"],
    "dev": [ROOT / "requirements.lock", ROOT / "requirements-dev.lock"],
}
# Written when the platform has no wheel of the embedded runtime; uv reads it as the list of packages to leave out.
EXCLUDED = VENV / "excluded.txt"
EMBEDDED = "xllamacpp"
# Where systems keep the authorities they trust. uv trusts its own list unless told to use the system's; only the latter
# knows the authority of a company's proxy, and only the former is there on a slim image.
AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# Seconds a second start waits for the first: the first download takes minutes on a slow line, not more.
LOCK_SECONDS = 900.0
# What would send an installation elsewhere, or change what is chosen, if it were set for something else.
FOREIGN = set(
    "PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_CONSTRAINT PIP_NO_BINARY UV_PYTHON UV_SYSTEM_PYTHON UV_CONSTRAINT "
    "UV_OVERRIDE UV_EXCLUDE UV_NO_BINARY UV_EXCLUDE_NEWER".split()
)
NETWORK = "Check the network, or the proxy in HTTPS_PROXY, then start again: it begins afresh."
# How to install it, by package manager; the first that is there counts.
LIBGOMP = {
    "apt-get": "sudo apt-get install libgomp1",
    "dnf": "sudo dnf install libgomp",
    "apk": "sudo apk add libgomp",
    "pacman": "sudo pacman -S gcc-libs",
    "zypper": "sudo zypper install libgomp1",
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def stamp_file(lock: Path) -> Path:
    return VENV / f"{lock.name}.stamp"


def stamp(lock: Path) -> bytes:
    """What a finished environment says of itself: where it is and what was installed."""
    digest = hashlib.sha256()
    for file in (VENDOR / "pip.sha256", VENDOR / "uv.txt", lock):
        digest.update(file.read_bytes())
    return os.fsencode(f"{VENV}\n{digest.hexdigest()}\n")


def stamped(lock: Path) -> bool:
    try:
        return stamp_file(lock).read_bytes() == stamp(lock)
    except OSError:
        return False


def link_file() -> Path:
    """The ``.pth`` file where the running interpreter would look for it: an upgraded Python looks elsewhere."""
    return (
        VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages" / "hearthlink.pth"
    )


def finished(mode: str) -> bool:
    return link_file().exists() and all(map(stamped, LOCKS[mode]))


def confirmed(mode: str) -> bool:
    """As ``finished``, told by the environment's own interpreter: it may be another version, or be gone."""
    try:
        return subprocess.run([PYTHON, "-I", "-S", __file__, "check", mode], capture_output=True).returncode == 0
    except OSError:
        return False


@contextmanager
def only_one() -> Iterator[int]:
    """Hold the lock; yields its descriptor, which children inherit, so that an orphaned uv still counts as a holder.

    The kernel releases it when its holders die, however they die: there is no stale lock to break.
    """
    try:
        descriptor = os.open(ROOT / ".venv.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        sys.exit(f"The environment cannot be made in {ROOT}: {error.strerror}. Clone to a folder of your own.")
    try:
        wait_for(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def wait_for(descriptor: int) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    told = False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                sys.exit(
                    "Another start has been making the environment for 15 minutes. Stop that one, then start again."
                )
            if not told:
                say("Another start is making the environment; waiting for it.")
                told = True
            time.sleep(0.1)
        except OSError as error:
            sys.exit(f"{ROOT} cannot be locked: {error.strerror}. Clone to a folder on a local disk.")


def run(command: list[str | Path], lock: int, *, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run in the checkout, so that no settings file of the caller's folder is read."""
    return subprocess.run(command, cwd=ROOT, env=surroundings(), pass_fds=[lock], text=True, capture_output=capture)


def surroundings() -> dict[str, str]:
    """The environment variables for pip and uv."""
    names = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    names |= {"UV_PYTHON_DOWNLOADS": "never", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if any(map(os.path.exists, AUTHORITIES)):
        names.setdefault("UV_SYSTEM_CERTS", "true")
    if "PIP_CERT" in names:
        names.setdefault("SSL_CERT_FILE", names["PIP_CERT"])
    # A service has no home to keep a cache in; pip notices that by itself, uv has to be told.
    cache = names.get("UV_CACHE_DIR") or names.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        Path(cache).expanduser().joinpath("uv").mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        names["UV_NO_CACHE"] = "true"
    return names


def share_mirror(lock: int) -> None:
    """Let uv use the package index that pip is set to use, in a file or a variable, unless it has one of its own."""
    told = run([PYTHON, "-I", vendored_pip(), "config", "get", "global.index-url"], lock, capture=True)
    mirror = os.environ.get("PIP_INDEX_URL") or told.stdout.strip()
    if mirror:
        os.environ.setdefault("UV_DEFAULT_INDEX", mirror)


def vendored_pip() -> Path:
    """The path that runs the pip inside the wheel, after its hash was compared."""
    digest, name = (VENDOR / "pip.sha256").read_text().split()
    wheel = VENDOR / name
    if not wheel.is_file() or hashlib.sha256(wheel.read_bytes()).hexdigest() != digest:
        sys.exit(f"{wheel} is missing or damaged. Restore it with: git checkout -- scripts/vendor")
    return wheel / "pip"


def make_venv(lock: int) -> None:
    """A fresh ``.venv`` with uv in it and nothing else."""
    pip = vendored_pip()
    version = ".".join(map(str, sys.version_info[:3]))
    if VENV.exists() or VENV.is_symlink():
        say("The environment in .venv is unfinished, moved or out of date, and is made again.")
        remove_venv()
    say(f"Making the environment in {VENV} with Python {version} (80 MB to download the first time).")
    # The base interpreter, because the one running may have been found inside the .venv that is gone now.
    base = getattr(sys, "_base_executable", None) or sys.executable
    if run([base, "-I", "-m", "venv", "--without-pip", VENV], lock).returncode:
        sys.exit(
            f"{base} cannot make an environment (its words are above). Install a complete Python, then start again."
        )
    options = ["--quiet", "--no-input", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    if run([PYTHON, "-I", pip, "install", *options, "-r", VENDOR / "uv.txt"], lock).returncode:
        sys.exit(f"uv could not be installed (pip's words are above). {NETWORK}")


def remove_venv() -> None:
    try:
        if VENV.is_dir() and not VENV.is_symlink():
            shutil.rmtree(VENV)
        else:
            VENV.unlink()
    except OSError as error:
        sys.exit(f"{error.filename} cannot be removed: {error.strerror}. Remove {VENV} by hand, then start again.")


def install(requirements: Path, lock: int) -> None:
    uv: list[str | Path] = [VENV / "bin" / "uv", "pip", "install", "--python", PYTHON, "--only-binary", ":all:"]
    uv += ["--require-hashes", "-r", requirements]
    if not sys.stderr.isatty():
        uv.append("--quiet")
    # Resolving first, without a download, tells a platform that lacks the embedded runtime from any other failure.
    plan = run([*uv, "--dry-run"], lock, capture=True)
    if plan.returncode and EMBEDDED in plan.stderr:
        EXCLUDED.write_text(f"{EMBEDDED}\n")
        uv += ["--excludes", EXCLUDED]
        plan = run([*uv, "--dry-run"], lock, capture=True)
    if plan.returncode:
        say(plan.stderr)
    if plan.returncode or run(uv, lock).returncode:
        sys.exit(f"{requirements.name} could not be installed (uv's words are above). {NETWORK}")


COMMAND = """\
#!/bin/sh
unset PYTHONPATH PYTHONHOME
PYTHONSAFEPATH=1 exec {python} -m hearthlink "$@"
"""


def link_checkout() -> None:
    """Make the checkout importable, and ``.venv/bin/hearthlink`` its command."""
    command = VENV / "bin" / "hearthlink"
    command.write_bytes(os.fsencode(COMMAND.format(python=shlex.quote(str(PYTHON)))))
    command.chmod(0o755)
    link_file().write_bytes(os.fsencode(f"{ROOT}\n"))


def make(mode: str) -> None:
    with only_one() as lock:
        if not confirmed("run"):
            make_venv(lock)
            link_checkout()
        share_mirror(lock)
        for requirements in LOCKS[mode]:
            if not stamped(requirements):
                install(requirements, lock)
                stamp_file(requirements).write_bytes(stamp(requirements))


def advise(arguments: list[str]) -> None:
    """Say what keeps the embedded runtime from running here and what to do; silent when another runtime is named."""
    named = any(argument.partition("=")[0] == "--runtime" for argument in arguments)
    if named or any(os.environ.get(name) for name in ("HEARTHLINK_NODE__RUNTIME__URL", "LM_STUDIO_BASE_URL")):
        return
    if EXCLUDED.exists():
        say("There is no llama.cpp package for this platform: Hearthlink is installed without a runtime of its own.")
    elif sys.platform == "linux" and not loads("libgomp.so.1"):
        command = next((text for tool, text in LIBGOMP.items() if shutil.which(tool)), "your package manager")
        say(f"The embedded runtime needs libgomp.so.1, which is missing here. Install it with: {command}")
    else:
        return
    say("A model server that runs already can be used at once: scripts/up --runtime URL")


def loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def main(verb: str, *arguments: str) -> None:
    if verb == "check":
        sys.exit(not finished(arguments[0]))
    elif verb == "make":
        make(arguments[0])
    else:
        advise(list(arguments))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("Stopped before the environment was finished; the next start begins afresh.")
