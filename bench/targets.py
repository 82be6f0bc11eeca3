"""What is measured, each started whole: nothing in between, two nginx hops, Hearthlink on either store, LiteLLM."""

from __future__ import annotations

import asyncio
import getpass
import http.client
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import HERE, BenchError, Cpus, Place, Process, free_port
from edge.store.opening import admin_from
from shared.settings import load_settings
from shared.state import StateDir

CHAT = "/v1/chat/completions"
UPSTREAM = "upstream"

# Servers are in places that are not on everybody's path.
_PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin"

_NGINX = """\
user {user};
worker_processes 1;
daemon off;
pid {folder}/{name}.pid;
error_log stderr crit;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {folder}/{name}-body;
  proxy_temp_path {folder}/{name}-proxy;
  keepalive_timeout 600s;
  keepalive_requests 10000000;
  upstream next {{ server 127.0.0.1:{upstream}; keepalive 4096; keepalive_requests 10000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://next;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""

_LITELLM = """\
model_list:
  - model_name: bench
    litellm_params:
      model: openai/bench
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: none
litellm_settings:
  telemetry: false
  drop_params: false
"""

_LITELLM_KEY = "sk-bench"

# Limits that are counted at every request and never reached; the per-address one too, since it is all one client.
_PLAN = """\
[plans.bench]
requests_per_minute = 1000000
streams = 1000000
tokens_per_day = 1000000000000
tokens_per_request = 1000000
models = ["*"]
chat_types = ["*"]
scopes = ["chat"]

[plans.refused]
requests_per_minute = 1
streams = 1000000
models = ["*"]
chat_types = ["*"]
scopes = ["chat"]

[edge]
requests_per_minute_per_ip = 1000000
connections_per_ip = 1000000
max_streams = 4096
allowed_origins = ["http://bench.test"]
token_lifetime = "6h"

[node]
slots = 4096
"""


@dataclass(frozen=True)
class Target:
    """Something that answers chat completions at ``url``; ``processes`` by the name their figures get."""

    name: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    # By status, the headers of a request that must be refused with it.
    refused: Mapping[int, dict[str, str]] = field(default_factory=dict)
    # Where the generator runs; process ids of daemons in the way, by name, and of the upstream if it has its own.
    place: Place = HERE
    daemons: dict[str, int] = field(default_factory=dict)
    helpers: Sequence[int] = ()

    def pids(self) -> dict[str, list[int]]:
        started = {name: process.pids for name, process in self.processes.items()}
        return started | {name: [pid] for name, pid in self.daemons.items()}


@contextmanager
def upstream(folder: Path, cpus: Cpus, place: Place = HERE) -> Iterator[tuple[int, int]]:
    """The paced runtime; gives its port and process id."""
    port = free_port()
    command = [sys.executable, "-m", "bench.upstream", str(port)]
    with Process(UPSTREAM, command, folder, cpus.load, place=place) as process:
        process.wait_ready(f"http://127.0.0.1:{port}/health")
        yield port, process.pid


def direct(upstream_port: int) -> Target:
    """No hop: what the generator and the upstream cost themselves."""
    return Target("direct", f"http://127.0.0.1:{upstream_port}{CHAT}")


@contextmanager
def nginx_pair(folder: Path, cpus: Cpus, upstream_port: int) -> Iterator[Target]:
    """Two nginx, one worker each, the first in front of the second."""
    with _nginx("nginx-2", folder, cpus, upstream_port) as (second, second_port):  # noqa: SIM117
        with _nginx("nginx-1", folder, cpus, second_port) as (first, port):
            yield Target("nginx", f"http://127.0.0.1:{port}{CHAT}", {}, {"edge": first, "node": second})


@contextmanager
def _nginx(name: str, folder: Path, cpus: Cpus, upstream_port: int) -> Iterator[tuple[Process, int]]:
    binary = shutil.which("nginx", path=_PATH)
    if binary is None:
        raise BenchError("nginx is not installed. On Debian: apt-get install -y nginx-light")
    port = free_port()
    config = folder / f"{name}.conf"
    values = {"user": getpass.getuser(), "folder": folder, "name": name, "port": port, "upstream": upstream_port}
    config.write_text(_NGINX.format(**values))
    with Process(name, [binary, "-p", str(folder), "-c", str(config)], folder, cpus.measured) as process:
        process.wait_ready(f"http://127.0.0.1:{port}/health")
        yield process, port


@dataclass(frozen=True)
class Pair:
    """Ports, folder and environment of one Hearthlink pair; its processes are started one by one."""

    folder: Path
    cpus: Cpus
    environment: dict[str, str]
    edge_port: int
    node_port: int

    @classmethod
    def prepare(cls, folder: Path, cpus: Cpus, runtime_url: str, link: Mapping[str, str] | None = None) -> Pair:
        """``link`` are settings that say where the node listens and the edge finds it, if not on loopback."""
        edge, ops, node = free_port(), free_port(), free_port()
        loopback = {
            "HEARTHLINK_EDGE__UPSTREAMS__DEFAULT__URL": f"ws://127.0.0.1:{node}/link",
            "HEARTHLINK_NODE__LISTEN": f"127.0.0.1:{node}",
        }
        config = folder / "hearthlink.toml"
        config.write_text(_PLAN)
        environment = {
            "HEARTHLINK_CONFIG": str(config),
            "HEARTHLINK_STATE": str(folder / "state"),
            "HEARTHLINK_LOGS__FORMAT": "json",
            "HEARTHLINK_EDGE__LISTEN": f"127.0.0.1:{edge}",
            "HEARTHLINK_EDGE__OPS_LISTEN": f"127.0.0.1:{ops}",
            "HEARTHLINK_NODE__RUNTIME__KIND": "openai",
            "HEARTHLINK_NODE__RUNTIME__URL": runtime_url,
            **(loopback if link is None else link),
        }
        return cls(folder, cpus, environment, edge, node)

    def start(self, name: str, place: Place = HERE, **settings: str) -> Process:
        """``edge`` or ``node``, as a process that the caller ends; ``settings`` are that side's only."""
        environment = {**self.environment, **settings}
        return Process(name, [sys.executable, "-m", name], self.folder, self.cpus.measured, environment, place)

    def edge_url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.edge_port}{path}"

    def key(self, plan: str, name: str | None = None) -> dict[str, str]:
        """The Authorization header of a new API key with ``plan``, whose name it gets if there is no other."""
        return asyncio.run(self._create_key(plan, name or plan))

    async def _create_key(self, plan: str, name: str) -> dict[str, str]:
        settings = load_settings(environ=self.environment)
        async with admin_from(settings, StateDir(settings.state)) as admin:
            _, text = await admin.create_key(name, plan, ["chat"])
        return {"Authorization": f"Bearer {text}"}

    def page_token(self) -> dict[str, str]:
        """The Authorization header of a token that a page was given, from the edge that runs."""
        connection = http.client.HTTPConnection("127.0.0.1", self.edge_port, timeout=10)
        with closing(connection):
            connection.request(
                "POST", "/v1/token", b"{}", {"Content-Type": "application/json", "Origin": "http://bench.test"}
            )
            return {"Authorization": f"Bearer {json.load(connection.getresponse())['token']}"}


@contextmanager
def hearthlink_pair(folder: Path, cpus: Cpus, runtime_url: str) -> Iterator[Target]:
    """Edge and node with everything on: key, rates, quota, audit log, metrics."""
    with _pair("hearthlink", Pair.prepare(folder, cpus, runtime_url)) as target:
        yield target


@contextmanager
def redis_pair(folder: Path, cpus: Cpus, runtime_url: str) -> Iterator[Target]:
    """The same, with its keys and limits in a Redis of its own."""
    folder.mkdir()
    with _redis(folder, cpus) as (server, port):
        pair = Pair.prepare(folder, cpus, runtime_url)
        pair.environment["HEARTHLINK_EDGE__STORE"] = f"redis://127.0.0.1:{port}/0"
        with _pair("redis", pair) as target:
            target.processes["redis"] = server
            yield target


@contextmanager
def _pair(name: str, pair: Pair) -> Iterator[Target]:
    known, limited = pair.key("bench"), pair.key("refused")
    with pair.start("node") as node, pair.start("edge") as edge:
        node.wait_ready(f"http://127.0.0.1:{pair.node_port}/livez")
        edge.wait_ready(pair.edge_url("/healthz"))
        # A key that nobody has; a page's token without the page's Origin; a key over its rate.
        unknown = {"Authorization": "Bearer hlk_" + "0" * 12 + "_" + "A" * 43}
        refused = {401: unknown, 403: pair.page_token(), 429: limited}
        yield Target(name, pair.edge_url(CHAT), known, {"edge": edge, "node": node}, refused)


@contextmanager
def _redis(folder: Path, cpus: Cpus) -> Iterator[tuple[Process, int]]:
    """A server that keeps nothing on disk, and its port."""
    binary = shutil.which("redis-server", path=_PATH)
    if binary is None:
        raise BenchError("redis-server is not installed. On Debian: apt-get install -y redis-server")
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with Process("redis", command, folder, cpus.measured) as process:
        process.wait_listening(port)
        yield process, port


@contextmanager
def litellm(folder: Path, cpus: Cpus, upstream_port: int, venv: Path) -> Iterator[Target]:
    """LiteLLM's proxy as shipped: one worker, one hop, its master key asked for."""
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(_LITELLM.format(upstream=upstream_port))
    binary = venv / "bin" / "litellm"
    if not binary.exists():
        raise BenchError(f"{binary} does not exist. Make it: uv venv {venv} && uv pip install 'litellm[proxy]'")
    command = [str(binary), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": _LITELLM_KEY}
    with Process("litellm", command, folder, cpus.measured, environment) as process:
        process.wait_ready(f"http://127.0.0.1:{port}/health/liveliness", 120)
        headers = {"Authorization": f"Bearer {_LITELLM_KEY}"}
        yield Target("litellm", f"http://127.0.0.1:{port}{CHAT}", headers, {"litellm": process})
