"""Where tailscaled listens on this machine: a unix socket, or on macOS a loopback port that wants a token.

Only folders that root or tailscaled's own user writes are searched: whoever can put a socket where Hearthlink looks
for one decides who the callers are. A socket elsewhere (the container image's /tmp/tailscaled.sock) must be named.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shared.tailscale.errors import NotSupported

_LINUX = (
    "/var/run/tailscale/tailscaled.sock",
    "/run/tailscale/tailscaled.sock",
    "/var/packages/Tailscale/var/tailscaled.sock",  # Synology DSM 7
    "/var/packages/Tailscale/etc/tailscaled.sock",  # Synology DSM 6
    "/perm/tailscaled/tailscaled.sock",  # gokrazy
)
_MACOS = ("/var/run/tailscaled.socket",)
_MACOS_SHARED = Path("/Library/Tailscale")
_APP_STORE_FILE = ".tailscale.ipn.macos/sameuserproof-"
# Seconds for what lsof says, and for a connection to a port of this machine that may be out of date.
_LSOF_WITHIN = 5.0
_PROBE_WITHIN = 1.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A unix socket's ``path``, or a ``port`` of 127.0.0.1 with its ``token``."""

    path: str = ""
    port: int = 0
    token: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.path or f"127.0.0.1:{self.port}"


def find(
    setting: str = "", *, environ: Mapping[str, str] = os.environ, platform: str = sys.platform, root: str = "/"
) -> Endpoint:
    """``setting`` where it is given, then ``TS_SOCKET``, then where this platform's tailscaled listens, there or not.

    ``root`` is where file names begin. Blocks for some seconds on macOS, where other programs are asked. Raises
    NotSupported on Windows.
    """
    if named := setting or environ.get("TS_SOCKET", ""):
        return Endpoint(path=named)
    if platform == "win32":
        raise NotSupported(
            "tailscaled on Windows is reached by a named pipe, which Hearthlink does not speak: run Hearthlink in "
            "WSL2 with Tailscale inside it, or let the node dial out."
        )
    if platform == "darwin":
        if found := _app_store() or _standalone(Path(root, *_MACOS_SHARED.parts[1:])):
            return found
        return Endpoint(path=_first(_MACOS, root))
    return Endpoint(path=_first(_LINUX, root))


def running(
    setting: str = "", *, environ: Mapping[str, str] = os.environ, platform: str = sys.platform, root: str = "/"
) -> str:
    """The path of the socket of a tailscaled that runs, as far as can be told; "" where none does. The apps of macOS
    are not looked for: they alone are found by asking other programs, and never run in userspace networking. Does not
    block."""
    if platform == "win32":
        return ""
    path = setting or environ.get("TS_SOCKET", "") or _first(_MACOS if platform == "darwin" else _LINUX, root)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.setblocking(False)
            answer = caller.connect_ex(path)
    except OSError:  # too many files are open
        return path
    return "" if answer in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED) else path


def _first(paths: tuple[str, ...], root: str) -> str:
    here = [os.path.join(root, path.lstrip("/")) for path in paths]
    return next((path for path in here if os.path.exists(path)), here[0])


def _standalone(shared: Path) -> Endpoint | None:
    """The app from Tailscale's own site: a link whose target is the port, a file with the token for admins. Both may
    be left over from an app that does not run."""
    try:
        port = int(os.readlink(shared / "ipnport"))
        token = (shared / f"sameuserproof-{port}").read_text().strip()
        socket.create_connection(("127.0.0.1", port), _PROBE_WITHIN).close()
    except (OSError, ValueError):
        return None
    return Endpoint(port=port, token=token) if token else None


def _app_store() -> Endpoint | None:
    """The app of the App Store holds a file open whose name ends in port and token."""
    command = ("lsof", "-n", "-a", f"-u{os.getuid()}", "-c", "IPNExtension", "-F")
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=_LSOF_WITHIN, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    for line in listed.splitlines():
        port, dash, token = line.partition(_APP_STORE_FILE)[2].partition("-")
        if dash and token and port.isascii() and port.isdigit() and int(port) < 65536:
            return Endpoint(port=int(port), token=token)
    return None
