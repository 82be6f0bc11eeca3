"""``hearthlink model pull`` on a disk that is full, and of models of several files, which change."""

from __future__ import annotations

import errno
import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hearthlink.models import download
from hearthlink.models.reference import parse
from hearthlink.models.shelf import Shelf
from tests import fake_hub
from tests.fake_hub import FakeHub, cut, refuse
from tests.pulling import CONTENT, Pull, gguf, left

# -- the disk ---------------------------------------------------------------------------------------------------------


async def test_space_is_looked_at_first(hub: FakeHub, pull: Pull, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = os.statvfs("/")
    fields = [*disk]
    fields[0] = fields[1] = 1  # block sizes
    fields[4] = 64_200_000  # bytes for this user: 64 MB stay free for the databases
    monkeypatch.setattr("os.statvfs", lambda _: os.statvfs_result(fields))
    status, _, err = await pull()
    assert status == 1 and not hub.store.asked and left(shelf) == []
    assert f"64.3 MB more are needed in {shelf}, and 64.2 MB are free there" in err
    hub.store.twists += [cut(200_000), *[refuse(503)] * 5]
    fields[4] = 65_000_000
    await pull()
    fields[4] = 64_200_000  # what is left of it fits
    assert (await pull())[0] == 0


class SmallDisk(io.FileIO):
    """A file on a disk with 128 kB, for those who may not mount one."""

    def write(self, data: Any, /) -> int:
        room = 131_072 - os.fstat(self.fileno()).st_size
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(memoryview(data)[:room])


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder of models is on a disk that fills up although there seemed to be space."""
    monkeypatch.setattr("hearthlink.models.pull.free_bytes", lambda _: 10**9)
    folder = tmp_path / "models"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        yield
        subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        monkeypatch.setattr(download, "FileIO", SmallDisk)
        yield


@pytest.mark.usefixtures("small_disk")
async def test_a_disk_that_fills_up_keeps_what_came(pull: Pull, shelf: Path) -> None:
    status, _, err = await pull()
    assert status == 1 and "There is no space for the model" in err and f"more are needed in {shelf}" in err
    assert "are kept; the same command goes on from there." in err and "Traceback" not in err
    part = (shelf / "tiny.gguf.part").read_bytes()
    assert 100_000 < len(part) < 160_000 and CONTENT.startswith(part)


async def test_a_folder_that_cannot_be_written_is_named(pull: Pull, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    status, _, err = await pull()
    assert status == 1 and str(tmp_path / "models") in err and "HEARTHLINK_STATE" in err


# -- several files, and changes ---------------------------------------------------------------------------------------


def put_shards(hub: FakeHub, *seeds: int) -> list[bytes]:
    contents = [gguf(100_000, seed) for seed in seeds]
    for index, content in enumerate(contents, 1):
        hub.put(f"acme/big/q4/big-{index:05}-of-{len(seeds):05}.gguf", content)
    return contents


async def test_shards_are_pulled_together(hub: FakeHub, pull: Pull, tmp_path: Path) -> None:
    contents = put_shards(hub, 1, 2, 3)
    hub.store.twists += [fake_hub.as_it_is, cut(40_000), *[refuse(503)] * 5]
    status, _, err = await pull("hf:acme/big/q4/big-00002-of-00003.gguf")
    assert status == 5 and "140 kB are kept" in err
    folder = tmp_path / "models/acme/big/main/q4"
    assert not list(folder.glob("*.gguf"))  # none before all are whole
    # All at the commit of the first, should the branch move meanwhile.
    described = [asked.path.split("/")[4] for asked in hub.hub.asked if asked.method == "HEAD"]
    assert described == ["main", hub.commit, hub.commit]
    asked = len(hub.store.gets())
    status, out, err = await pull("hf:acme/big/q4/big-00001-of-00003.gguf")
    assert status == 0 and "going on from 140 kB of 300 kB" in err
    assert [get.headers.get("range") for get in hub.store.gets()[asked:]] == ["bytes=40000-", None]
    assert Path(out.strip()) == folder / "big-00001-of-00003.gguf"
    assert [path.read_bytes() for path in sorted(folder.glob("*.gguf"))] == contents


async def test_a_missing_shard_is_named_before_anything_is_loaded(hub: FakeHub, pull: Pull) -> None:
    put_shards(hub, 1, 2)
    del hub.files["acme/big/q4/big-00002-of-00002.gguf"]
    status, _, err = await pull("hf:acme/big/q4/big-00001-of-00002.gguf")
    assert status == 3 and "has no file q4/big-00002-of-00002.gguf" in err and not hub.store.asked


async def test_a_branch_that_moved_is_followed_once_the_new_file_is_whole(
    hub: FakeHub, pull: Pull, tmp_path: Path
) -> None:
    old = put_shards(hub, 1, 2)
    model = "hf:acme/big/q4/big-00001-of-00002.gguf"
    await pull(model)
    new = put_shards(hub, 1, 3)
    hub.commit = "e" * 40
    asked = len(hub.store.gets())
    hub.store.twists += [cut(40_000), *[refuse(503)] * 5]
    assert (await pull(model))[0] == 5
    shards = sorted((tmp_path / "models/acme/big/main/q4").glob("*.gguf"))
    assert [path.read_bytes() for path in shards] == old
    assert (await pull(model))[0] == 0
    assert [path.read_bytes() for path in shards] == new
    assert all("00002-of" in get.path for get in hub.store.gets()[asked:])  # the first is the same as before


async def test_nobody_takes_a_mixture_of_two_for_a_model(
    hub: FakeHub, pull: Pull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = "hf:acme/big/q4/big-00001-of-00002.gguf"
    put_shards(hub, 1, 2)
    await pull(model)
    new = put_shards(hub, 3, 4)
    hub.commit = "e" * 40
    rename = os.replace

    def lose_power(source: Path, target: Path) -> None:
        if source.name == "big-00002-of-00002.gguf.part":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    with monkeypatch.context() as broken:
        broken.setattr("os.replace", lose_power)
        status, _, err = await pull(model)
    assert status == 1 and "Input/output error" in err
    assert not Shelf(tmp_path).is_ready(parse(model))
    asked = len(hub.store.gets())
    assert (await pull(model))[0] == 0 and Shelf(tmp_path).is_ready(parse(model))
    shards = sorted((tmp_path / "models/acme/big/main/q4").glob("*.gguf"))
    assert [path.read_bytes() for path in shards] == new and len(hub.store.gets()) == asked


async def test_a_file_without_its_note_is_checked_and_not_loaded_again(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    await pull()
    (shelf / "tiny.gguf.json").unlink()
    asked = len(hub.store.asked)
    assert (await pull())[0] == 0 and len(hub.store.asked) == asked
    (shelf / "tiny.gguf.json").unlink()
    (shelf / "tiny.gguf").write_bytes(gguf(seed=5))
    assert (await pull())[0] == 0 and (shelf / "tiny.gguf").read_bytes() == CONTENT
