"""What a tailnet of its own needs of the machine it is made on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.tailnet import binaries

_COMMANDS = ("ip", "unshare", "nsenter", "setpriv")


def missing() -> str:
    """Why no tailnet can be made here; empty when one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "A tailnet of its own is made by root on Linux."
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "A tailnet of its own needs /dev/net/tun."
    if absent := [command for command in _COMMANDS if not shutil.which(command)]:
        return f"A tailnet of its own needs {', '.join(absent)}."
    if subprocess.run(("unshare", "--net", "true"), stderr=subprocess.DEVNULL, check=False).returncode:
        return "A tailnet of its own needs network namespaces, which this machine does not let root make."
    if not binaries.built() and not shutil.which("go"):
        return "A tailnet of its own is built with Go."
    return ""
