"""``hearthlink model pull`` from a hub that redirects, cuts, changes, lies and refuses."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import os
import random
import signal
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hearthlink.__main__ import main
from hearthlink.models import catalogue, download
from hearthlink.models.catalogue import Choice
from hearthlink.models.hub import Hub
from hearthlink.models.meter import Meter
from hearthlink.models.reference import Reference, parse
from hearthlink.models.shelf import Shelf
from hearthlink.output import Failure
from tests import command_line, fake_hub
from tests.fake_hub import NOBODY, FakeHub, Twist, cut, header, long, refuse, send, short, stall
from tests.waiting import wait_until

MODEL = "hf:acme/tiny/tiny.gguf"
TOKEN = "hf_verysecret"


def gguf(size: int = 300_000, seed: int = 1) -> bytes:
    """A file with a good header and noise behind it: version 3, no tensors, no metadata."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)
    return head + random.Random(seed).randbytes(size - len(head))


CONTENT = gguf()


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub() as hub:
        hub.put("acme/tiny/tiny.gguf", CONTENT)
        yield hub


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """The folder that the model of ``MODEL`` belongs in."""
    return tmp_path / "models" / "acme" / "tiny" / "main"


Pull = Callable[..., Any]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits before another try, which take no time here."""
    waited: list[float] = []
    monkeypatch.setattr("hearthlink.models.patience.time.sleep", waited.append)
    return waited


@pytest.fixture
def pull(
    hub: FakeHub,
    tmp_path: Path,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Pull:
    """``await pull()``: exit status, standard output, standard error."""
    monkeypatch.setenv("HEARTHLINK_STATE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)

    async def run(model: str = MODEL, *more: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(main, ["model", "pull", model, *more])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def left(shelf: Path) -> list[str]:
    return sorted(path.name for path in shelf.rglob("*")) if shelf.exists() else []


# -- what goes well ---------------------------------------------------------------------------------------------------


async def test_a_model_is_pulled_checked_and_noted(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    status, out, err = await pull()
    assert status == 0, err
    assert out == f"{shelf / 'tiny.gguf'}\n" and (shelf / "tiny.gguf").read_bytes() == CONTENT
    assert left(shelf) == ["tiny.gguf", "tiny.gguf.json"]
    note = json.loads((shelf / "tiny.gguf.json").read_text())
    assert note["commit"] == hub.commit and note["files"][0]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert "tiny: 300 kB to load." in err and "hearthlink up --model hf:acme/tiny/tiny.gguf" in err
    assert hub.hub.gets()[0].path == f"/acme/tiny/resolve/{hub.commit}/tiny.gguf"  # what was described, not a branch
    assert hub.store.gets()[0].headers["accept-encoding"] == "identity"


async def test_a_model_that_is_here_is_only_asked_about(hub: FakeHub, pull: Pull) -> None:
    await pull()
    before = len(hub.store.asked)
    status, _, err = await pull()
    assert status == 0 and "is ready" in err and "to load" not in err and len(hub.store.asked) == before


async def test_the_token_is_shown_to_the_hub_alone(hub: FakeHub, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    hub.store.twists += [cut(1000), refuse(503)]
    status, out, err = await pull()
    assert status == 0, err
    assert {asked.headers.get("authorization") for asked in hub.hub.asked} == {f"Bearer {TOKEN}"}
    assert hub.store.asked and not any("authorization" in asked.headers for asked in hub.store.asked)
    assert TOKEN not in out + err and "Signature" not in out + err


async def test_a_renamed_repository_is_followed_with_the_token(
    hub: FakeHub, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.put("acme/renamed/tiny.gguf", CONTENT)
    hub.hub.heads = True
    moved = refuse(307, Location=f"/acme/renamed/resolve/{hub.commit}/tiny.gguf")
    hub.hub.twists += [moved, fake_hub.as_it_is, moved]
    assert (await pull())[0] == 0


async def test_a_hub_without_a_store_is_enough(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    """Caching mirrors send the file themselves, and tell neither hash nor commit."""
    hub.hub.heads = True
    mirror = fake_hub.Reply(200, {"ETag": '"1"'}, CONTENT, len(CONTENT))
    hub.hub.twists += [lambda _: mirror, lambda _: mirror]
    status, _, err = await pull()
    assert status == 0 and not hub.store.asked, err
    assert json.loads((shelf / "tiny.gguf.json").read_text())["commit"] == "main"


@pytest.mark.parametrize("name", ["http_proxy", "ALL_PROXY"])
async def test_loopback_is_asked_without_a_proxy(pull: Pull, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, NOBODY)
    assert (await pull())[0] == 0


async def test_other_hubs_are_asked_through_the_proxy(
    hub: FakeHub, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", hub.url)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.test/mirror/")
    status, _, err = await pull()
    assert status == 0, err
    assert [asked.path for asked in hub.hub.asked] == [
        f"http://hub.test/mirror/acme/tiny/resolve/{revision}/tiny.gguf" for revision in ("main", hub.commit)
    ]
    assert [asked.path.partition("?")[0] for asked in hub.store.asked] == ["/acme/tiny/tiny.gguf"]


# -- going on ---------------------------------------------------------------------------------------------------------


async def test_a_cut_file_goes_on_where_it_was_cut(hub: FakeHub, pull: Pull, shelf: Path, pauses: list[float]) -> None:
    hub.store.twists += [cut(100_000), cut(50_000)]
    status, _, err = await pull()
    assert status == 0 and (shelf / "tiny.gguf").read_bytes() == CONTENT, err
    first, second, third = hub.store.gets()
    assert "range" not in first.headers and second.headers["range"] == "bytes=100000-"
    assert third.headers["range"] == "bytes=150000-"
    assert second.headers["if-range"] == hub.files["acme/tiny/tiny.gguf"].store_etag
    assert len(pauses) == 2 and "Trying again in" in err


async def test_the_next_run_goes_on_where_the_last_ended(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.store.twists += [cut(100_000), *[refuse(503)] * 5]
    status, out, err = await pull()
    assert (status, out) == (5, "") and "HTTP 503" in err and "tried 6 times" in err
    assert "100 kB are kept; the same command goes on from there." in err
    assert left(shelf) == ["tiny.gguf.part", "tiny.gguf.part.json"]
    status, _, err = await pull()
    assert status == 0 and "going on from 100 kB of 300 kB" in err
    assert hub.store.gets()[-1].headers["range"] == "bytes=100000-"
    assert (shelf / "tiny.gguf").read_bytes() == CONTENT and left(shelf) == ["tiny.gguf", "tiny.gguf.json"]


async def test_a_part_of_another_file_is_not_gone_on_with(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.store.twists += [cut(100_000), *[refuse(503)] * 5]
    await pull()
    hub.commit = "d" * 40
    hub.put("acme/tiny/tiny.gguf", gguf(seed=2))
    assert (await pull())[0] == 0
    assert "range" not in hub.store.gets()[-1].headers
    assert (shelf / "tiny.gguf").read_bytes() == gguf(seed=2)


@pytest.mark.parametrize("heeds_if_range", [True, False])
async def test_a_part_of_another_copy_in_the_store_is_begun_again(
    hub: FakeHub, pull: Pull, shelf: Path, heeds_if_range: bool
) -> None:
    blob = hub.files["acme/tiny/tiny.gguf"]
    hub.store.twists += [cut(100_000), *[refuse(503)] * 5]
    await pull()
    part = shelf / "tiny.gguf.part"
    part.write_bytes(CONTENT[:50_000] + bytes(50_000))  # what the store sent was of another copy
    if heeds_if_range:
        blob.store_etag = '"another"'
    else:
        hub.store.twists.append(header("ETag", '"another"'))
    status, _, err = await pull()
    assert status == 0 and (shelf / "tiny.gguf").read_bytes() == CONTENT, err
    assert ("beginning again" in err) is not heeds_if_range


async def test_a_damaged_part_is_found_out_and_thrown_away(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.store.twists += [cut(100_000), *[refuse(503)] * 5]
    await pull()
    (shelf / "tiny.gguf.part").write_bytes(CONTENT[:50_000] + bytes(50_000))
    status, _, err = await pull()
    assert status == 1 and "thrown away" in err and left(shelf) == []
    assert (await pull())[0] == 0


async def test_a_part_that_is_too_long_is_begun_again(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.store.twists += [cut(100_000), *[refuse(503)] * 5]
    await pull()
    (shelf / "tiny.gguf.part").write_bytes(CONTENT + b"more")
    status, _, err = await pull()
    assert status == 0 and (shelf / "tiny.gguf").read_bytes() == CONTENT, err


async def test_a_store_that_knows_no_ranges_is_begun_again(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.store.twists += [cut(100_000), lambda _: fake_hub.Reply(200, {}, CONTENT, len(CONTENT))]
    assert (await pull())[0] == 0 and (shelf / "tiny.gguf").read_bytes() == CONTENT
    hub.put("acme/tiny/other.gguf", CONTENT)
    hub.store.twists += [cut(100_000), *[lambda _: fake_hub.Reply(200, {}, CONTENT[:200_000], len(CONTENT))] * 9]
    status, _, err = await pull("hf:acme/tiny/other.gguf")
    assert status == 1 and "had to begin again 3 times" in err


async def test_416_begins_again(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.store.twists += [cut(100_000), refuse(416)]
    status, _, err = await pull()
    assert status == 0 and (shelf / "tiny.gguf").read_bytes() == CONTENT
    assert "range" not in hub.store.gets()[-1].headers and "beginning again" in err


async def test_a_silent_store_is_left(hub: FakeHub, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hearthlink.models.hub._SILENT_SECONDS", 0.2)
    hub.store.twists.append(stall(100_000))
    status, _, err = await pull()
    assert status == 0 and "was silent for too long" in err
    assert hub.store.gets()[-1].headers["range"] == "bytes=100000-"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_stopped_pull_can_be_gone_on_with(
    hub: FakeHub, pull: Pull, tmp_path: Path, shelf: Path, number: signal.Signals
) -> None:
    hub.store.twists.append(stall(100_000))
    process = await command_line.start("model", "pull", MODEL, state=tmp_path, environ={"HF_ENDPOINT": hub.url})
    part = shelf / "tiny.gguf.part"
    await wait_until(lambda: part.exists() and part.stat().st_size == 100_000, command_line.PATIENCE)

    status, _, err = await pull()  # a second one beside it
    assert status == 5 and f"Another hearthlink is pulling or removing {MODEL}" in err

    process.send_signal(number)
    ended = await command_line.finish(process)
    if number is signal.SIGINT:
        assert ended.status == 130 and "Stopped. 100 kB are kept" in ended.err and "Traceback" not in ended.err
    assert (await pull())[0] == 0 and hub.store.gets()[-1].headers["range"] == "bytes=100000-"
    assert left(shelf) == ["tiny.gguf", "tiny.gguf.json"]


# -- what is not the file ---------------------------------------------------------------------------------------------


async def test_a_lie_about_the_hash_is_found_out(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.put("acme/tiny/tiny.gguf", CONTENT, promised="0" * 64)
    status, out, err = await pull()
    assert (status, out) == (1, "") and left(shelf) == []
    assert hashlib.sha256(CONTENT).hexdigest() in err and "0" * 64 in err and "It was thrown away." in err


def page(reply: fake_hub.Reply) -> fake_hub.Reply:
    """Begin to send a web page, and never end."""
    return stall(100)(send(b"<!DOCTYPE html>".ljust(len(CONTENT)))(reply))


@pytest.mark.parametrize(
    ("twist", "sentence"),
    [
        (long(10), "More came than the 300000 bytes"),
        (send(CONTENT + b"more"), "its store wants to send 300004"),
        (send(CONTENT[:-9]), "its store wants to send 299991"),
        (page, "does not begin with the letters GGUF"),
        (send(CONTENT[:4] + bytes([9]) + CONTENT[5:]), "is a GGUF of a version that is not 2 or 3"),
    ],
)
async def test_what_cannot_be_the_file_is_thrown_away(
    hub: FakeHub, pull: Pull, shelf: Path, twist: Twist, sentence: str
) -> None:
    hub.files["acme/tiny/tiny.gguf"].promised = ""
    hub.store.twists.append(twist)
    status, out, err = await pull()
    assert (status, out) == (1, "") and sentence in err and left(shelf) == []
    assert len(hub.store.gets()) == 1


async def test_too_little_is_not_taken_for_the_file(hub: FakeHub, pull: Pull, shelf: Path) -> None:
    hub.store.twists.append(short(9))
    assert (await pull())[0] == 0
    assert hub.store.gets()[-1].headers["range"] == "bytes=299991-"
    hub.put("acme/tiny/other.gguf", CONTENT)
    hub.store.twists += [short(9), *[send(b"")] * 5]
    status, _, err = await pull("hf:acme/tiny/other.gguf")
    assert status == 5 and "ended other.gguf after 299991 of 300000 bytes" in err
    assert "300 kB are kept" in err and not (shelf / "other.gguf").exists()


async def test_a_short_name_is_one_file_and_no_other(
    hub: FakeHub, pull: Pull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    pinned = Choice(Reference("acme", "tiny", "tiny.gguf", hub.commit), "tiny-1", digest, len(CONTENT))
    monkeypatch.setattr(catalogue, "CATALOGUE", (pinned,))
    hub.put("acme/tiny/tiny.gguf", gguf(seed=2))
    status, _, err = await pull("tiny-1")
    assert status == 1 and "offers another file than tiny-1 stands for" in err and not hub.store.asked

    hub.put("acme/tiny/tiny.gguf", gguf(seed=2), promised="")  # a mirror that tells no hash
    status, _, err = await pull("tiny-1")
    assert status == 1 and f"{digest} was promised" in err

    hub.put("acme/tiny/tiny.gguf", CONTENT)
    status, out, _ = await pull("tiny-1")
    assert status == 0 and Path(out.strip()) == tmp_path / f"models/acme/tiny/{hub.commit}/tiny.gguf"


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("heads", [True, False])
async def test_a_busy_hub_says_when_to_come_back(
    hub: FakeHub, pull: Pull, pauses: list[float], status: int, heads: bool
) -> None:
    hub.hub.heads = heads
    hub.hub.twists.append(refuse(status, Retry_After="7"))
    found, _, err = await pull()
    assert found == 0 and f"HTTP {status}" in err and len(pauses) == 1 and 7 <= pauses[0] < 10


async def test_a_hub_that_asks_for_an_hour_is_asked_by_the_person(
    hub: FakeHub, pull: Pull, pauses: list[float]
) -> None:
    hub.store.twists.append(refuse(429, Retry_After="3600"))
    status, _, err = await pull()
    assert status == 5 and "It asks to wait 60 min" in err and not pauses


async def test_a_signed_address_that_ended_is_renewed_at_the_hub(hub: FakeHub, pull: Pull) -> None:
    hub.store.twists += [cut(100_000), refuse(403)]
    assert (await pull())[0] == 0
    assert len(hub.hub.gets()) == 3


@pytest.mark.parametrize(
    ("model", "status", "sentence"),
    [
        ("hf:acme/none/tiny.gguf", 3, "There is no repository acme/none at"),
        ("hf:acme/tiny@v9/tiny.gguf", 3, "acme/tiny has no revision 'v9'"),
        ("hf:acme/tiny/none.gguf", 3, "acme/tiny has no file none.gguf at main"),
        ("hf:acme/tiny", 2, "names no GGUF file"),
        ("tiny", 2, "Short names are smollm2-360m, qwen2.5-1.5b, qwen3-4b"),
        ("https://huggingface.co/acme/tiny/resolve/main/tiny.gguf", 2, "Write hf:acme/tiny/tiny.gguf"),
    ],
)
async def test_what_is_not_there_is_named(
    hub: FakeHub, pull: Pull, tmp_path: Path, model: str, status: int, sentence: str
) -> None:
    found, out, err = await pull(model)
    assert (found, out) == (status, "") and sentence in err
    assert left(tmp_path / "models") == [] and not hub.store.asked


@pytest.mark.parametrize(
    ("code", "token", "sentence"),
    [
        ("GatedRepo", None, "acme/tiny is gated: accept its terms at {url}/acme/tiny and set HF_TOKEN"),
        ("GatedRepo", "hf_other", "and use a token of an account that may"),
        ("RepoNotFound", None, "The hub shows acme/tiny to nobody without a token"),
        ("RepoNotFound", "hf_other", "does not let HF_TOKEN's account at acme/tiny"),
    ],
)
async def test_what_needs_another_token_says_so(
    hub: FakeHub, pull: Pull, monkeypatch: pytest.MonkeyPatch, code: str, token: str | None, sentence: str
) -> None:
    hub.token, hub.private_code = TOKEN, code
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    status, _, err = await pull()
    assert status == 4 and sentence.format(url=hub.url) in err and "hf_other" not in err


@pytest.mark.parametrize(
    ("twists", "status", "sentence"),
    [
        ([refuse(302, Location="/acme/tiny/resolve/main/tiny.gguf")] * 11, 5, "redirects in a circle"),
        ([refuse(302)], 5, "redirects to nowhere"),
        ([refuse(302, Location="file:///etc/passwd")], 5, "redirects to nowhere"),
        ([refuse(302, Location="http://me:pass@127.0.0.1:9/")], 5, "redirects to nowhere"),
        ([lambda _: fake_hub.Reply(200, {}, b"hello", None)], 5, "does not say how large tiny.gguf is"),
        ([refuse(418)], 1, "answered HTTP 418"),
        ([refuse(404)], 3, "acme/tiny has no file tiny.gguf"),
    ],
)
async def test_a_strange_hub_is_told_from_a_busy_one(
    hub: FakeHub, pull: Pull, pauses: list[float], twists: list[Twist], status: int, sentence: str
) -> None:
    hub.hub.heads = True
    hub.hub.twists += twists
    found, _, err = await pull()
    assert found == status and sentence in err and not pauses


async def test_a_hub_that_is_down_is_named(
    hub: FakeHub, pull: Pull, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    status, _, err = await pull()
    assert status == 5 and f"Nothing answers at {NOBODY}" in err and "HF_ENDPOINT" in err and len(pauses) == 5


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"HF_ENDPOINT": "huggingface.co"}, "HF_ENDPOINT is not a URL that works here"),
        ({"HF_TOKEN": "two words"}, "HF_TOKEN is not a token"),
        ({"HF_TOKEN": "x", "HF_ENDPOINT": "http://hub.test"}, "HF_TOKEN would travel unencrypted"),
        ({"ALL_PROXY": "gopher://127.0.0.1:9"}, "The proxy that the environment names cannot be used"),
    ],
)
async def test_an_environment_that_cannot_work_is_refused(
    pull: Pull, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], sentence: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    status, _, err = await pull()
    assert status == 2 and sentence in err


def test_a_redirect_may_not_give_up_encryption(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(302, headers={"Location": "http://store.test/file?Signature=secret"})

    monkeypatch.setattr(httpx2, "Client", partial(httpx2.Client, transport=httpx2.MockTransport(answer)))
    with Hub("https://hub.test") as hub, pytest.raises(Failure, match=r"http://store\.test, which is not encrypted"):
        hub.look(parse(MODEL), "tiny.gguf")


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


# -- what the person sees ---------------------------------------------------------------------------------------------


def test_without_a_terminal_there_is_a_line_every_five_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with Meter(clock=lambda: now) as meter:
        meter.begin("big", 1_000_000_000, 100_000_000)
        for _ in range(12):
            now += 1
            meter.advance(20_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "big: going on from 100 MB of 1.00 GB.",
        "big: 200 MB of 1.00 GB (20 %), 20.0 MB/s, 40 s left",
        "big: 300 MB of 1.00 GB (30 %), 20.0 MB/s, 35 s left",
    ]


async def test_on_a_terminal_there_is_a_bar(hub: FakeHub, tmp_path: Path) -> None:
    hub.store.twists.append(stall(150_000))
    ours, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *command_line.COMMAND,
        *("model", "pull", MODEL),
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=command_line.environment(tmp_path, {"HF_ENDPOINT": hub.url, "TERM": "xterm", "COLUMNS": "100"}),
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = bytearray()

    def read() -> bool:
        try:
            shown.extend(os.read(ours, 65536))
        except OSError:
            return False
        return b"150.0/300.0 kB" in shown

    try:
        await wait_until(read, command_line.PATIENCE, what=lambda: shown[-300:])
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(command_line.PATIENCE):
            assert await process.wait() == 130
        read()
    finally:
        if process.returncode is None:
            process.kill()
        os.close(ours)
    assert b"tiny" in shown and b"\x1b[?25h" in shown  # the cursor is back
