"""``hearthlink model pull`` from a hub that lies, refuses or is not there."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import httpx2
import pytest

from hearthlink.models import catalogue
from hearthlink.models.catalogue import Choice
from hearthlink.models.hub import Hub
from hearthlink.models.reference import Reference, parse
from hearthlink.output import Failure
from tests import fake_hub
from tests.fake_hub import NOBODY, FakeHub, Twist, cut, long, refuse, send, short, stall
from tests.pulling import CONTENT, MODEL, Pull, gguf, left

TOKEN = "hf_verysecret"

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
