"""Audit lines: one for each request, wherever they go, and what happens when they cannot be written."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import socket
import stat
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edge.api.audit import Audit
from edge.metrics import Metrics
from hearthlink.doctor import edge as doctor
from shared import __version__
from shared.audit_sink import AuditError, AuditSink, audit_sink, record_act
from shared.contract.errors import ApiError
from shared.log_outputs import Journal, RotatingFile, Stream, entry
from shared.log_writer import KEPT, LogWriter, Output
from shared.settings import SettingsError, load_settings
from shared.settings_sections import AuditSettings
from tests.fake_runtime import FakeRuntime
from tests.logged import logged
from tests.pair import question
from tests.processes import Process, Processes, running_processes
from tests.test_doctor import machine_with, only, serving_json
from tests.test_logs import full_pipe
from tests.waiting import HANGS, wait_until

MIB = 1 << 20


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip("\0 ")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit" / "audit.log"


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What the log says meanwhile, as ``LEVEL text``."""
    with logged("INFO") as lines:
        yield lines


def sink_at(file: Path, **settings: Any) -> dict[str, str]:
    """The environment of an edge that writes its lines to ``file``."""
    file.parent.mkdir()
    names = {"sink": file, **settings}
    return {f"HEARTHLINK_AUDIT__{name.upper()}": str(value) for name, value in names.items()}


async def ask(pair: Processes) -> tuple[int, dict[str, Any], str]:
    """Status, body and request id of one chat."""
    async with pair.client.post(f"{pair.url}/v1/chat", json=question(), headers=pair.bearer()) as answer:
        return answer.status, await answer.json(), answer.headers["X-Request-Id"]


async def health(pair: Processes) -> dict[str, Any]:
    async with pair.client.get(f"{pair.edge.ops_url}/healthz") as answer:
        return {"http": answer.status, **await answer.json()}


async def alarm(pair: Processes) -> dict[str, Any]:
    """The health of an edge that has noticed that it cannot write its lines."""
    async with asyncio.timeout(HANGS):
        while (told := await health(pair))["audit"] == "ok":  # noqa: ASYNC110 - it is another process that notices
            await asyncio.sleep(0.02)
        return told


async def metric(pair: Processes, name: str) -> float:
    async with pair.client.get(f"{pair.edge.ops_url}/metrics") as answer:
        assert answer.status == 200
        rows = dict(row.rsplit(" ", 1) for row in (await answer.text()).splitlines() if not row.startswith("#"))
    return float(rows[f"hearthlink_edge_{name}"])


def test_of_refusals_ten_a_second_are_written_and_of_answers_all(tmp_path: Path) -> None:
    """A node that is lost ends many answers in one moment, and each of them has spent tokens."""
    written: list[Mapping[str, Any]] = []
    audit = Audit(AuditSink(written.append), Metrics())

    def finish(code: str, **notes: Any) -> None:
        state = {"error": ApiError(code, "…"), "request_id": "r", "audit": {"route": "/v1/chat", **notes}}
        audit.finished({"method": "POST", "state": state}, 200, 0.1)

    for _ in range(30):
        finish("invalid_token")
        finish("upstream_incomplete", prompt_tokens=7, completion_tokens=1)
    assert Counter(line["outcome"] for line in written) == {"invalid_token": 10, "upstream_incomplete": 30}
    audit.tick(1.0)
    finish("invalid_token")
    assert len(written) == 41


# -- a file -----------------------------------------------------------------------------------------------------------


async def test_a_file_gets_one_line_for_each_request_and_the_log_none(
    runtime: FakeRuntime, tmp_path: Path, file: Path
) -> None:
    async with running_processes(runtime.url, tmp_path, environ=sink_at(file)) as pair:
        _, _, first = await ask(pair)
        async with pair.client.get(f"{pair.url}/v1/me") as answer:
            second = answer.headers["X-Request-Id"]
        await wait_until(lambda: file.exists() and len(lines(file)) == 2)
        chat, refused = lines(file)
        assert chat["time"].endswith("+00:00") and chat["principal"].startswith("key_")
        expected = {
            "event": "request",
            "method": "POST",
            "route": "/v1/chat",
            "status": 200,
            "chat_type": "home",
            "outcome": "stop",
            "node": "default",
            "request_id": first,
        }
        assert chat.items() >= expected.items() and chat["completion_tokens"] > 0
        assert (refused["status"], refused["outcome"], refused["request_id"]) == (401, "missing_token", second)
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
        assert '"request"' not in pair.edge.text()
        assert (await health(pair))["audit"] == "ok" and await metric(pair, "audit_failing") == 0


def _fill(file: Path) -> None:
    file.write_bytes(b"\0" * (MIB - 1) + b"\n")


@pytest.fixture
async def full(runtime: FakeRuntime, tmp_path: Path, file: Path, request: pytest.FixtureRequest) -> Any:
    """A pair whose audit file has no room left; ``room()`` gives it back."""
    environ = sink_at(file, rotate_at="1GiB", strict=request.param)
    _fill(file)
    async with running_processes(runtime.url, tmp_path, environ=environ) as pair:
        unlimited = resource.prlimit(pair.edge.child.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pair.edge.child.pid, resource.RLIMIT_FSIZE, (MIB + 100, unlimited[1]))

        def room() -> None:
            resource.prlimit(pair.edge.child.pid, resource.RLIMIT_FSIZE, unlimited)

        yield pair, room


@pytest.mark.case("E63")
@pytest.mark.parametrize("full", [False], indirect=True)
async def test_a_full_disk_stops_nobody_and_the_lines_come_when_there_is_room(
    full: tuple[Processes, Callable[[], None]], file: Path
) -> None:
    pair, room = full
    asked = [(await ask(pair))[2]]
    told = await alarm(pair)
    # What the system says for this limit, or what a write that took half a line stands for.
    assert told["audit"] in (os.strerror(errno.EFBIG), os.strerror(errno.ENOSPC)) and told["http"] == 200
    assert await metric(pair, "audit_failing") == 1
    for _ in range(5):
        status, body, request_id = await ask(pair)
        assert status == 200 and body["choices"][0]["finish_reason"]
        asked.append(request_id)
    assert await metric(pair, "audit_lines_waiting") > 0
    room()
    await wait_until(lambda: [line["request_id"] for line in lines(file)] == asked)
    assert (await health(pair))["audit"] == "ok"
    assert (await metric(pair, "audit_failing"), await metric(pair, "audit_lines_dropped")) == (0, 0)
    await wait_until(lambda: "are written again" in pair.edge.text())
    assert pair.edge.text().count("cannot be written") == 1


@pytest.mark.case("E63")
@pytest.mark.parametrize("full", [True], indirect=True)
async def test_a_strict_edge_refuses_what_it_cannot_write_down(
    full: tuple[Processes, Callable[[], None]], file: Path
) -> None:
    pair, room = full
    await ask(pair)
    told = await alarm(pair)
    assert (told["http"], told["status"]) == (503, "unavailable")
    status, body, _ = await ask(pair)
    assert (status, body["error"]["code"]) == (503, "overloaded") and "audit log" in body["error"]["message"]
    for path, expected in (("/livez", 200), ("/", 200), ("/v1/me", 503), ("/healthz", 503)):
        async with pair.client.get(pair.url + path, headers=pair.bearer()) as answer:
            assert answer.status == expected, path
            assert expected != 503 or path == "/healthz" or answer.headers["Retry-After"] == "10"
    room()
    await pair.healthy()
    assert (await ask(pair))[0] == 200


async def test_the_doctor_tells_of_lines_that_cannot_be_written(tmp_path: Path) -> None:
    health = {"status": "ok", "version": __version__, "nodes": [], "store": "ok", "audit": "No space left on device"}
    async with serving_json({"/healthz": health}) as ops:
        sections = {"edge": {"ops_listen": ops}, "audit": {"sink": "/var/log/hearthlink/audit.log"}}
        async with machine_with(tmp_path, **sections) as machine:
            line = only(await doctor.process(machine), "audit")
    assert line.state == "broken" and line.mend == "df -h '/var/log/hearthlink'"
    assert "cannot write its audit lines to /var/log/hearthlink/audit.log: No space left on device" in line.text


async def test_a_sink_that_cannot_work_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "HEARTHLINK_STATE": str(tmp_path),
        "HEARTHLINK_EDGE__LISTEN": "127.0.0.1:0",
        "HEARTHLINK_EDGE__OPS_LISTEN": "127.0.0.1:0",
        "HEARTHLINK_AUDIT__SINK": str(tmp_path / "none" / "audit.log"),
    }
    with pytest.raises(AssertionError, match=r"No such file or directory\. Make its folder"):
        await Process.start("edge", environ, tmp_path / "log")


def file_of(path: Path, rotate_at: int = 1000, keep: int = 3) -> RotatingFile:
    return RotatingFile(path, rotate_at=rotate_at, keep=keep)


def test_a_file_is_put_aside_when_it_is_full(tmp_path: Path) -> None:
    output = file_of(tmp_path / "audit.log")
    left = [f"{number:03} {'x' * 95}" for number in range(45)]
    while left:
        left = left[output.write(left) :]
    output.close()
    names = ["audit.log.3", "audit.log.2", "audit.log.1", "audit.log"]
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    kept = [line for name in names for line in (tmp_path / name).read_text().splitlines()]
    assert [int(line[:3]) for line in kept] == list(range(10, 45)), "the oldest ten are gone, none between"
    assert all((tmp_path / name).stat().st_size <= 1000 for name in names)


def test_a_line_that_is_longer_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    output = file_of(tmp_path / "audit.log")
    for line in ("short", "x" * 5000, "short"):
        assert output.write([line]) == 1
    output.close()
    assert [(tmp_path / name).stat().st_size for name in ("audit.log.2", "audit.log.1", "audit.log")] == [6, 5001, 6]


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    """As logrotate does it; nobody has to be told."""
    output = file_of(tmp_path / "audit.log")
    output.write(["one"])
    (tmp_path / "audit.log").rename(tmp_path / "yesterday")
    output.write(["two"])
    (tmp_path / "audit.log").unlink()
    output.write(["three"])
    output.close()
    assert (tmp_path / "yesterday").read_text() == "one\n" and (tmp_path / "audit.log").read_text() == "three\n"


def test_half_a_line_of_a_killed_process_is_ended(tmp_path: Path) -> None:
    (tmp_path / "audit.log").write_text('{"whole":1}\n{"half')
    output = file_of(tmp_path / "audit.log")
    output.write(["next"])
    output.close()
    assert (tmp_path / "audit.log").read_text().splitlines() == ['{"whole":1}', '{"half', "next"]


def test_a_disk_that_takes_half_a_line_keeps_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    output = file_of(path, rotate_at=MIB)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (25, before[1]))
    try:
        assert output.write(["x" * 9, "y" * 9, "z" * 9]) == 2
        with pytest.raises(OSError, match="No space left"):
            output.write(["z" * 9])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "xxxxxxxxx\nyyyyyyyyy\n"
    assert output.write(["z" * 9]) == 1
    output.close()
    assert path.read_text().splitlines()[-1] == "z" * 9


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "audit.log")
    with pytest.raises(AuditError, match=r"audit\.log: "), audit_sink(settings(tmp_path / "audit.log"), print):
        pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_device_is_told_to_be_no_file() -> None:
    """That its folder could be made does not help."""
    with (
        pytest.raises(AuditError, match=r"is not an ordinary file\. Write the path of a file"),
        audit_sink(settings(Path("/dev/full")), print),
    ):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_begins_at_the_command_line_is_for_the_edge_to_go_on_with(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 54321)
    record_act(settings(tmp_path / "audit.log"), "key.revoke", "ci")
    made = os.stat(tmp_path / "audit.log")
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (12345, 54321, 0o600)


def settings(file: Path, **more: Any) -> AuditSettings:
    return AuditSettings(sink=str(file), **more)


# -- what waits -------------------------------------------------------------------------------------------------------


class Shut(Output):
    """Takes nothing while ``shut``, and counts how often it was tried."""

    def __init__(self) -> None:
        self.shut = True
        self.tries = 0
        self.taken: list[str] = []

    def write(self, lines: Sequence[str]) -> int:
        self.tries += 1
        if self.shut:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.taken += lines[:3]
        return len(lines[:3])


@pytest.mark.case("E63")
async def test_of_what_cannot_be_written_the_last_lines_are_kept_and_the_others_counted() -> None:
    output, changes = Shut(), list[str | None]()
    began = time.monotonic()
    writer = LogWriter(output, lambda count: f"{count} lost", changes.append)
    try:
        for number in range(3 * KEPT):
            writer.put(str(number))
            if number % KEPT == 0:
                await wait_until(lambda: writer._waiting.empty())
        await wait_until(lambda: writer.dropped == 2 * KEPT)
        assert writer.problem == "No space left on device" and writer.waiting == KEPT
        assert output.tries <= 2 * (time.monotonic() - began) + 2, "a full disk is not written to all the time"
        output.shut = False
        await wait_until(lambda: len(output.taken) == KEPT + 1)
        assert output.taken == [f"{2 * KEPT} lost", *map(str, range(2 * KEPT, 3 * KEPT))]
        assert writer.problem is None and changes == ["No space left on device", None]
        output.shut = True
        writer.put("last")
    finally:
        writer.close()
    assert writer.dropped == 2 * KEPT + 1 and writer.waiting == 0


def test_a_failing_sink_is_said_once_and_at_the_end_what_was_lost(tmp_path: Path, log: list[str]) -> None:
    path = tmp_path / "audit.log"
    with audit_sink(settings(path), print) as sink:
        sink.write({"status": 200})
        path.unlink()
        tmp_path.rename(tmp_path.with_name("away"))
        for _ in range(3):
            sink.write({"status": 200})
    tmp_path.with_name("away").rename(tmp_path)
    assert [line.split(" ", 1)[0] for line in log] == ["ERROR", "ERROR"]
    assert "cannot be written" in log[0] and "the last audit lines are lost" in log[1]


@pytest.mark.case("E63")
@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_reader_that_stopped_reading_is_noticed_and_what_it_did_not_get_is_told(
    goes_on: bool, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write itself hangs: no error says so. A reader that reads again ends the alarm."""
    reader, writer = full_pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with audit_sink(AuditSettings(sink="stdout", strict=True), print) as sink:
            audit = Audit(sink, Metrics())
            for _ in range(3):
                sink.write({"status": 200})
            await wait_until(lambda: audit.tick(0.0) or sink.refuses)
            assert (sink.waiting, sink.dropped) == (3, 0)
            if goes_on:
                os.set_blocking(reader, False)
                await wait_until(lambda: read_off(reader) or audit.tick(0.0) or not sink.refuses)
        assert (sink.problem is None) == goes_on and sink.dropped == (0 if goes_on else 3)
        said = list(log)
        os.close(reader)  # the thread ends, and may say that its pipe is broken
    assert [line.split(" ", 1)[0] for line in said] == ["ERROR", "INFO" if goes_on else "ERROR"]
    assert goes_on or "the last audit lines are lost, 3 since the start" in said[1]


def read_off(reader: int) -> None:
    """Read what there is."""
    with contextlib.suppress(BlockingIOError):
        while os.read(reader, 65536):
            pass


async def test_refusals_never_push_out_the_lines_of_answers() -> None:
    """A strict edge refuses everybody while it cannot write, for as long as that takes."""
    output = Shut()
    writer = LogWriter(output, str)
    metrics = Metrics()
    audit = Audit(AuditSink(print, writer, strict=True), metrics)
    try:
        scope = {"method": "POST", "state": {"request_id": "r", "audit": {"route": "/v1/chat", "prompt_tokens": 5}}}
        audit.finished(scope, 200, 0.1)
        await wait_until(lambda: writer.problem is not None)
        scope = {"method": "POST", "state": {"request_id": "r", "error": ApiError("overloaded", "…")}}
        for second in range(3):
            audit.tick(float(second))
            audit.finished(scope, 503, 0.0)
            audit.refused(ApiError("invalid_request", "…"), "r")
        assert writer.waiting == 1
        assert b'refusals_total{code="overloaded"} 3' in metrics.render()
    finally:
        writer.close()


# -- the journal, standard output -------------------------------------------------------------------------------------


def fields(datagram: bytes) -> dict[str, str]:
    """A datagram as systemd-journald reads it (systemd's docs, "Native Journal Protocol")."""
    found: dict[str, str] = {}
    while datagram:
        name, separator, rest = datagram.partition(b"\n")
        if b"=" in name:
            name, value = name.split(b"=", 1)
        else:
            assert separator
            (length,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        found[name.decode()] = value.decode()
        datagram = rest
    return found


def test_the_journal_gets_an_entry_whose_fields_can_be_asked_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        journald.settimeout(5)
        output = Journal(str(tmp_path / "socket"))
        line = '{"event":"request","status":200,"chat_type":"a\\nb","a-b é":null}'
        assert output.write([line, "not JSON"]) == 2
        assert fields(journald.recv(65536)) == {
            "MESSAGE": line,
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "hearthlink",
            "HEARTHLINK_EVENT": "request",
            "HEARTHLINK_STATUS": "200",
            "HEARTHLINK_CHAT_TYPE": "a\nb",
            "HEARTHLINK_A_B__": "null",
        }
        assert fields(journald.recv(65536))["MESSAGE"] == "not JSON"
        output.close()
    assert len(entry("x" * 10**7)) < 65536


async def test_a_journal_that_is_away_gets_its_lines_later(tmp_path: Path) -> None:
    place = tmp_path / "socket"
    writer = LogWriter(Journal(str(place)), str)
    try:
        writer.put("early")
        await wait_until(lambda: writer.problem is not None)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
            journald.bind(str(place))
            journald.setblocking(False)
            await wait_until(lambda: writer.problem is None)
            assert fields(journald.recv(65536))["MESSAGE"] == "early"
    finally:
        writer.close()


def test_half_a_line_that_a_full_disk_left_in_a_stream_is_ended(tmp_path: Path) -> None:
    """Standard output that leads into a file: nothing can be taken back there."""
    path = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("a") as stream:
        output = Stream(stream)
        resource.setrlimit(resource.RLIMIT_FSIZE, (15, before[1]))
        try:
            assert output.write(["x" * 9, "y" * 9]) == 1
            with pytest.raises(OSError, match="File too large"):
                output.write(["y" * 9])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert output.write(["y" * 9, "z"]) == 2
        assert output.write(["end"]) == 1
    assert path.read_text() == "xxxxxxxxx\nyyyyy\nyyyyyyyyy\nz\nend\n"


def test_a_machine_without_a_journal_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shared.audit_sink.JOURNAL_SOCKET", str(tmp_path / "none"))
    with (
        pytest.raises(AuditError, match="there is none on this machine"),
        audit_sink(AuditSettings(sink="journald"), print),
    ):
        pass


async def test_standard_output_gets_lines_that_are_not_the_logs(runtime: FakeRuntime, tmp_path: Path) -> None:
    environ = {"HEARTHLINK_AUDIT__SINK": "stdout", "HEARTHLINK_LOGS__FORMAT": "text"}
    async with running_processes(runtime.url, tmp_path, environ=environ) as pair:
        _, _, request_id = await ask(pair)
        await wait_until(lambda: request_id in pair.edge.text())
        [line] = [line for line in pair.edge.text().splitlines() if request_id in line]
        assert json.loads(line)["route"] == "/v1/chat"


# -- settings and acts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sink": "file"}, "is no sink: write"),
        ({"sink": "audit/log"}, "is no sink: write"),
        ({"sink": "/var/log/"}, "is no sink: write"),
        ({"strict": "true"}, "has strict without a sink of its own"),
        ({"rotate_at": "1KiB", "sink": "/a"}, "audit.rotate_at"),
    ],
)
def test_settings_that_cannot_be_meant(values: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load_settings(flags={f"audit.{name}": value for name, value in values.items()}, environ={"HOME": "/"})


def test_a_sink_may_be_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/owner")
    assert AuditSettings(sink="~/audit.log").sink == "/home/owner/audit.log"


def test_acts_of_the_command_line_join_the_lines_of_a_running_edge(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with audit_sink(settings(path), print) as sink:
        sink.write({"status": 200})
        record_act(settings(path), "key revoke", "ci", plan="member")
    record_act(settings(path), "invite create", "i1")
    acts = [line for line in lines(path) if line["event"] == "act"]
    assert [(act["act"], act["target"], act["via"]) for act in acts] == [
        ("key revoke", "ci", "command line"),
        ("invite create", "i1", "command line"),
    ]
    assert acts[0]["plan"] == "member" and acts[0]["by"]
    assert len(lines(path)) == 3


def test_an_act_that_could_not_be_written_down_is_told(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with pytest.raises(AuditError, match="No such file"):
        record_act(settings(path / "none"), "key revoke", "ci")


async def test_acts_by_the_api_are_lines_of_their_requests(runtime: FakeRuntime, tmp_path: Path, file: Path) -> None:
    async with (
        running_processes(runtime.url, tmp_path, environ=sink_at(file)) as pair,
        aiohttp.ClientSession(trust_env=False) as client,
    ):
        async with client.get(f"{pair.url}/admin/keys") as answer:
            assert answer.status in (401, 403)
        await wait_until(lambda: file.exists() and len(lines(file)) == 1)
        assert lines(file)[0]["route"].startswith("/admin") and lines(file)[0]["status"] == answer.status
