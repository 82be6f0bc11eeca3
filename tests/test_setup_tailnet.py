"""``hearthlink setup tailnet`` against tailscaled's LocalAPI, certificates included, and an edge that runs."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import shlex
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from edge.app import run_edge
from tests import command_line
from tests.command_line import Finished
from tests.fake_localapi import FakeLocalAPI
from tests.pair import ANY_PORT, settings_for

NAME = "edge.tail.test"
OWNERS = {
    "TCP": {"443": {"HTTPS": True}, "8080": {"HTTP": True}},
    "Web": {
        f"{NAME}:443": {"Handlers": {"/files": {"Path": "/srv"}}},
        f"{NAME}:8080": {"Handlers": {"/": {"Proxy": "http://127.0.0.1:3000"}}},
    },
}


@dataclass
class Machine:
    """A machine with an edge and a tailscaled. ``environ`` holds its settings."""

    fake: FakeLocalAPI
    state: Path
    environ: dict[str, str]

    @property
    def target(self) -> str:
        return f"unix:{self.state}/serve.sock"

    async def setup(self, *arguments: str) -> Finished:
        return await command_line.run("setup", "tailnet", *arguments, state=self.state, environ=self.environ)

    def led_to(self, host: str) -> Any:
        return (self.fake.serve or {}).get("Web", {}).get(host, {}).get("Handlers", {}).get("/", {}).get("Proxy")


@asynccontextmanager
async def running(folder: Path, serve: str = "unix", *, edge: bool = True) -> AsyncIterator[Machine]:
    state = folder / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    async with FakeLocalAPI(folder) as fake:
        fake.status["CertDomains"] = [NAME]
        environ = {"TS_SOCKET": str(fake.path), "HEARTHLINK_EDGE__SERVE": serve}
        machine = Machine(fake, state, environ)
        if not edge:
            yield machine
            return
        sections: dict[str, Any] = {
            "edge": {"listen": ANY_PORT, "ops_listen": ANY_PORT, "serve": serve},
            "tailscale": {"socket": str(fake.path)},
        }
        async with run_edge(settings_for(state, sections), lambda line: None) as edge_running:
            where = edge_running.services.serve
            if where not in ("unix", None):
                environ["HEARTHLINK_EDGE__SERVE"] = where
            yield machine


@pytest_asyncio.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    async with running(tmp_path) as machine:
        yield machine


async def test_https_where_there_is_a_certificate(machine: Machine) -> None:
    done = await machine.setup()
    assert (done.status, done.out) == (0, f"https://{NAME}/\n"), done.err
    assert machine.fake.serve == {
        "TCP": {"443": {"HTTPS": True}},
        "Web": {f"{NAME}:443": {"Handlers": {"/": {"Proxy": machine.target}}}},
    }
    grant = {
        "src": ["autogroup:member"],
        "dst": ["tag:edge"],
        "ip": ["tcp:443"],
        "app": {"hearthlink.internal/cap/tester": [{"plan": "member"}]},
    }
    assert json.dumps(grant) in done.err
    assert "fetches the certificate" in done.err and "--off" in done.err


async def test_plain_http_where_there_is_none(machine: Machine) -> None:
    machine.fake.status["CertDomains"] = None
    done = await machine.setup()
    assert (done.status, done.out) == (0, f"http://{NAME}/\n")
    assert machine.fake.serve == {
        "TCP": {"80": {"HTTP": True}},
        "Web": {f"{NAME}:80": {"Handlers": {"/": {"Proxy": machine.target}}}},
    }
    assert "plain HTTP" in done.err and "HTTPS certificates" in done.err


async def test_what_the_owner_serves_stays(machine: Machine) -> None:
    machine.fake.serve = copy.deepcopy(OWNERS)
    assert (await machine.setup()).status == 0
    assert machine.led_to(f"{NAME}:443") == machine.target
    assert machine.led_to(f"{NAME}:8080") == "http://127.0.0.1:3000"
    done = await machine.setup("--off")
    assert (done.status, done.err) == (0, f"https://{NAME}/ does not lead to this edge any more.\n")
    assert machine.fake.serve == OWNERS


async def test_a_second_time_changes_nothing(machine: Machine) -> None:
    first = json.loads((await machine.setup("--json")).out)
    before = copy.deepcopy(machine.fake.serve)
    posted = len([asked for asked in machine.fake.asked if asked.method == "POST"])
    second = json.loads((await machine.setup("--json")).out)
    assert (first.pop("changed"), second.pop("changed")) == (True, False)
    assert first == second
    assert (first["url"], first["https"], first["target"]) == (f"https://{NAME}/", True, machine.target)
    assert first["grant"]["dst"] == ["tag:edge"]
    assert machine.fake.serve == before
    assert len([asked for asked in machine.fake.asked if asked.method == "POST"]) == posted
    assert json.loads((await machine.setup("--off", "--json")).out) == {"removed": [f"https://{NAME}/"]}
    off = await machine.setup("--off")
    assert (off.status, off.out) == (0, "") and "nothing to take out" in off.err


async def test_another_port(machine: Machine) -> None:
    assert (await machine.setup("--port", "8443")).out == f"https://{NAME}:8443/\n"
    assert machine.led_to(f"{NAME}:8443") == machine.target
    assert "https://edge.tail.test:8443/" in (await machine.setup("--off")).err
    assert machine.fake.serve == {}


async def test_another_port_takes_the_place_of_the_first(machine: Machine) -> None:
    assert (await machine.setup("--port", "8443")).status == 0
    done = await machine.setup()
    assert machine.fake.serve == {
        "TCP": {"443": {"HTTPS": True}},
        "Web": {f"{NAME}:443": {"Handlers": {"/": {"Proxy": machine.target}}}},
    }
    assert f"https://{NAME}:8443/ does not lead to it any more." in done.err


@pytest.mark.parametrize("port", [None, "8443"])
async def test_https_takes_the_place_of_plain_http(machine: Machine, port: str | None) -> None:
    """As the second run does that the first one advises."""
    chosen = [] if port is None else ["--port", port]
    machine.fake.status["CertDomains"] = None
    plain = json.loads((await machine.setup("--json", *chosen)).out)
    machine.fake.status["CertDomains"] = [NAME]
    done = await machine.setup("--json", *chosen)
    assert done.status == 0, done.err
    assert json.loads(done.out)["removed"] == [plain["url"]]
    port = port or "443"
    assert machine.fake.serve == {
        "TCP": {port: {"HTTPS": True}},
        "Web": {f"{NAME}:{port}": {"Handlers": {"/": {"Proxy": machine.target}}}},
    }


async def test_a_funnel_that_was_opened_is_closed_again(machine: Machine) -> None:
    """By the two commands that the edge's log names."""
    assert (await machine.setup()).status == 0
    assert machine.fake.serve is not None
    machine.fake.serve |= {"AllowFunnel": {f"{NAME}:443": True}, "TCP": {"443": {"HTTPS": True}, "22": {}}}
    assert (await machine.setup("--off")).status == 0
    assert (await machine.setup()).status == 0
    assert machine.led_to(f"{NAME}:443") == machine.target
    assert "AllowFunnel" not in machine.fake.serve and "22" in machine.fake.serve["TCP"]


@pytest.mark.parametrize("now", ["off", "127.0.0.1:8799", "unix"])
async def test_off_finds_what_was_put_there_under_another_setting(tmp_path: Path, now: str) -> None:
    async with running(tmp_path, "127.0.0.1:0") as machine:
        assert (await machine.setup()).status == 0
        machine.environ["HEARTHLINK_EDGE__SERVE"] = now
        assert f"https://{NAME}/ does not lead" in (await machine.setup("--off")).err
        assert machine.fake.serve == {}
        # What the owner serves there later is not ours.
        machine.fake.serve = theirs = {
            "TCP": {"443": {"HTTPS": True}},
            "Web": {f"{NAME}:443": {"Handlers": {"/": {"Proxy": "http://127.0.0.1:9"}}}},
        }
        assert "nothing to take out" in (await machine.setup("--off")).err
        assert machine.fake.serve == theirs


async def test_another_setting_takes_the_place_of_the_first(tmp_path: Path) -> None:
    async with running(tmp_path, "127.0.0.1:0") as machine:
        assert (await machine.setup()).status == 0
        before = machine.fake.serve
    async with running(tmp_path, "unix") as machine:
        machine.fake.serve = copy.deepcopy(before)
        done = await machine.setup("--port", "443")
        assert done.status == 0, done.err
        assert machine.led_to(f"{NAME}:443") == machine.target


async def test_a_state_folder_that_cannot_be_written_is_said(machine: Machine) -> None:
    """All the same the edge is served."""
    (machine.state / "served.json").mkdir()
    done = await machine.setup()
    assert done.status == 0 and machine.led_to(f"{NAME}:443") == machine.target
    assert "could not be kept" in done.err and "--off" in done.err
    assert (await machine.setup("--off")).status == 0
    assert machine.fake.serve == {}


async def test_an_earlier_name_of_the_machine_is_replaced(machine: Machine) -> None:
    assert (await machine.setup()).status == 0
    machine.fake.own["DNSName"] = "renamed.tail.test."
    machine.fake.status["CertDomains"] = ["renamed.tail.test"]
    assert (await machine.setup()).out == "https://renamed.tail.test/\n"
    assert machine.fake.serve is not None
    assert list(machine.fake.serve["Web"]) == ["renamed.tail.test:443"]


async def test_off_finds_it_under_the_name_that_the_machine_had(machine: Machine) -> None:
    assert (await machine.setup()).status == 0
    machine.fake.own["DNSName"] = "renamed.tail.test."
    assert f"https://{NAME}/" in (await machine.setup("--off")).err
    assert machine.fake.serve == {}


async def test_a_port_of_loopback_for_an_old_tailscaled(tmp_path: Path) -> None:
    async with running(tmp_path, "127.0.0.1:0") as machine:
        machine.fake.capability_version = 130
        # What was there from a time with a socket is ours too.
        machine.fake.serve = {
            "TCP": {"443": {"HTTPS": True}},
            "Web": {f"{NAME}:443": {"Handlers": {"/": {"Proxy": machine.target}}}},
        }
        done = await machine.setup()
        assert done.status == 0, done.err
        assert machine.led_to(f"{NAME}:443") == f"http://{machine.environ['HEARTHLINK_EDGE__SERVE']}"
        assert (await machine.setup("--off")).status == 0
        assert machine.fake.serve == {}


async def test_an_old_tailscaled_serves_no_unix_socket(machine: Machine) -> None:
    machine.fake.capability_version = 130
    done = await machine.setup()
    assert done.status == 1
    assert "older than 1.94" in done.err and 'edge.serve = "127.0.0.1:8702"' in done.err
    assert machine.fake.serve is None


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"TCP": {"443": {"TCPForward": "127.0.0.1:5432"}}}, "is served already, as something else than HTTPS"),
        (
            {
                "TCP": {"443": {"HTTPS": True}},
                "Web": {f"{NAME}:443": {"Handlers": {"/": {"Proxy": "http://127.0.0.1:3000"}}}},
            },
            "is served already, by something else",
        ),
        ({"AllowFunnel": {f"{NAME}:443": True}}, "open to the whole internet by Funnel"),
    ],
)
async def test_what_is_in_the_way_is_named(machine: Machine, theirs: dict[str, Any], said: str) -> None:
    machine.fake.serve = copy.deepcopy(theirs)
    done = await machine.setup()
    assert (done.status, done.out) == (1, "")
    assert said in done.err and "choose another port" in done.err
    assert machine.fake.serve == theirs


@pytest.mark.parametrize(
    ("right", "said"),
    [("write", "sudo tailscale set --operator="), ("local admin", "To serve a unix socket or a path, be root")],
)
async def test_who_may_not_is_told_what_is_missing_and_the_command(machine: Machine, right: str, said: str) -> None:
    machine.fake.rights.discard(right)
    done = await machine.setup("--port", "8443")
    assert done.status == 1
    assert said in done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("As root: sudo HEARTHLINK_STATE=") and last.endswith(" setup tailnet --port 8443")
    assert str(machine.state) in last, "root has a state folder of its own"


async def test_the_command_for_root_is_one_that_works(machine: Machine) -> None:
    """Root's environment has none of this user's variables; secrets do not belong on a command line."""
    machine.environ |= {
        "HEARTHLINK_TAILSCALE__TESTER_CAPABILITY": "example.com/cap/beta",
        "HEARTHLINK_EDGE__SIGNING_KEYS": '["' + "s" * 43 + '"]',
    }
    machine.fake.rights.discard("write")
    done = await machine.setup()
    sudo, *words = shlex.split(done.err.splitlines()[-1].removeprefix("As root: "))
    assert sudo == "sudo" and "sss" not in done.err
    machine.fake.rights.add("write")
    path = {"PATH": os.environ["PATH"], **command_line.PYTHON_PATH}
    process = await asyncio.create_subprocess_exec(
        "env",
        "-i",
        *(f"{name}={value}" for name, value in path.items()),
        *words,
        "--json",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert list(json.loads(out)["grant"]["app"]) == ["example.com/cap/beta"]


async def test_without_an_edge_nothing_is_served(tmp_path: Path) -> None:
    async with running(tmp_path, edge=False) as machine:
        done = await machine.setup()
        assert done.status == 5
        assert f"No edge answers at {machine.target}" in done.err and "hearthlink edge" in done.err
        assert "another state folder" in done.err
        assert machine.fake.serve is None


async def test_the_socket_of_an_edge_that_was_killed_is_no_edge(tmp_path: Path) -> None:
    async with running(tmp_path, edge=False) as machine:
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(f"{machine.state}/serve.sock")
        done = await machine.setup()
        assert done.status == 5 and "it does not run. Start it" in done.err


async def test_a_port_where_nobody_listens_is_no_edge(tmp_path: Path) -> None:
    async with running(tmp_path, "127.0.0.1:9", edge=False) as machine:
        done = await machine.setup()
        assert done.status == 5 and "No edge answers at http://127.0.0.1:9" in done.err


async def test_something_else_at_the_place_is_not_served(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        writer.close()

    async with running(tmp_path, edge=False) as machine:
        async with await asyncio.start_unix_server(answer, machine.state / "serve.sock"):
            done = await machine.setup()
        assert done.status == 1 and "is no edge" in done.err
        assert machine.fake.serve is None


async def test_an_edge_that_is_not_to_be_served_is_not(tmp_path: Path) -> None:
    async with running(tmp_path, "off") as machine:
        done = await machine.setup()
        assert done.status == 1 and 'edge.serve is "off"' in done.err


@pytest.mark.parametrize("command", [(), ("--off",)])
async def test_a_tailscaled_that_is_not_there_is_said(machine: Machine, command: tuple[str, ...]) -> None:
    await machine.fake.stop()
    done = await machine.setup(*command)
    assert done.status == 5 and "tailscaled does not run" in done.err


async def test_a_machine_that_is_not_in_the_tailnet_is_said(machine: Machine) -> None:
    machine.fake.status["BackendState"] = "NeedsLogin"
    done = await machine.setup()
    assert done.status == 5 and "sudo tailscale up" in done.err


async def test_what_keeps_people_away_all_the_same_is_said(machine: Machine) -> None:
    machine.fake.prefs["ShieldsUp"] = True
    machine.environ["HEARTHLINK_EDGE__PAGE"] = "false"
    done = await machine.setup()
    assert done.status == 0
    assert "--shields-up=false" in done.err and "edge.page is false" in done.err
