"""The programs of the hermetic tailnet, built from pinned Go modules and kept between runs.

    programs = build()          # seconds when they are there, minutes once
    programs.tailscaled         # a Path

``python -m tests.tailnet.binaries`` builds them ahead of a test run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tests.go_programs import GoModule, cache_folder

# headscale asks for another version of tailscale.com, so each has a module of its own.
_PACKAGES = {
    "tailscale": ("tailscale.com/cmd/tailscale", "tailscale.com/cmd/tailscaled"),
    "headscale": ("github.com/juanfont/headscale/cmd/headscale",),
}


@dataclass(frozen=True, slots=True)
class Programs:
    headscale: Path
    tailscale: Path
    tailscaled: Path


def built() -> bool:
    return all(module.built for module in _modules())


def build() -> Programs:
    """Build what is missing; a second process waits for the first. Raises RuntimeError with what the compiler said."""
    tailscale, headscale = (module.build() for module in _modules())
    return Programs(headscale / "headscale", tailscale / "tailscale", tailscale / "tailscaled")


def _modules() -> list[GoModule]:
    source = Path(__file__).resolve().parent / "go"
    return [GoModule(name, source / name, packages, cache_folder("tailnet")) for name, packages in _PACKAGES.items()]


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
