"""What is installed, not the checkout: the wheel brings page, client, demo model and the store's scripts along."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LOOK = """
import edge.site, edge.store.redis.scripts as scripts, shared.settings_node as sections
site = edge.site.Site.load()
assert b"<html" in site.index.body
assert scripts.ADMIT.text and scripts.__file__.startswith(edge.site.__file__[:-len("site.py")])
assert sections.DEMO_MODEL.read_bytes()[:4] == b"GGUF"
print(edge.site.__file__, site.prefix)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, as in site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = Path(sys.executable).with_name("uv")
    built = subprocess.run(
        [uv, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site-packages")
    return folder / "site-packages"


def test_it_has_what_the_first_five_minutes_need(installed: Path, tmp_path: Path) -> None:
    # The folder of an installed package comes before the checkout that this environment is linked to.
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    said = subprocess.run(
        [sys.executable, "-c", LOOK],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment,
        check=True,
    ).stdout
    assert said.startswith(str(installed))


def test_it_has_nothing_else(installed: Path) -> None:
    folders = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert folders == {"clients", "edge", "hearthlink", "models", "node", "shared", "web"}
    assert [path.name for path in (installed / "models").iterdir()] == ["demo.gguf"]
