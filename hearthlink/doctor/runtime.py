"""The group runtime: does what computes the answers work, and can nobody but the node reach it?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from hearthlink import options
from hearthlink.doctor.exposure import answering
from hearthlink.doctor.machine import Machine
from hearthlink.doctor.probes import Probe, in_thread
from hearthlink.doctor.report import Group, Line
from hearthlink.output import Failure
from shared.addresses import is_loopback, split_listen

if TYPE_CHECKING:
    from node.runtime import RuntimeStatus

RUNTIME = Group("runtime")
_SECONDS = 9.0
_LOOK_SECONDS = 2.5
# How each server is started on loopback only.
_STARTS = {
    "Ollama": "OLLAMA_HOST=127.0.0.1 ollama serve",
    "LM Studio": "lms server start --bind 127.0.0.1",
}
# Those that are started with a model and more, which only their owner knows, and listen as this says.
_WITH_FLAG, _FLAG = ("llama.cpp", "vLLM", "SGLang"), "--host 127.0.0.1"
_SHOWN = 5  # models in a line
_RESUME = "hearthlink model resume"
_DEFAULT_PORTS = {"http": 80, "https": 443}


def probes(machine: Machine) -> list[Probe]:
    return [
        Probe(RUNTIME, "model", lambda: model(machine), _SECONDS),
        Probe(RUNTIME, "remote", lambda: remote(machine), _SECONDS),
        Probe(RUNTIME, "exposed", lambda: exposed(machine), _SECONDS),
    ]


async def model(machine: Machine) -> Sequence[Line]:
    """The runtime of the node on this machine: as the node says, or by a look of our own where no node runs."""
    here = await machine.node_runs()
    if not machine.has_node and not here:
        return [] if await machine.nodes() else [RUNTIME.absent("model", "No node is set up on this machine.")]
    health = (await machine.node()).json
    if "runtime" in health:
        return [_told(health, machine)]
    url = await _url(machine)
    if url is None:
        return [await in_thread(lambda: _embedded(machine, runs=here))]
    try:
        return [_server(await _look(url, machine), url)]
    except TimeoutError:
        text = f"The runtime at {url} takes connections and does not answer. Restart it, or see its log."
        return [RUNTIME.broken("model", text, f"curl -m 3 {url}")]


def _told(health: Mapping[str, Any], machine: Machine) -> Line:
    name, reason = str(health["runtime"]), str(health.get("runtime_reason") or "")
    state = health.get("runtime_state")
    if health.get("model") and not reason:
        slots = f"{health.get('slots', 1)} at once, {health.get('running', 0)} now"
        return RUNTIME.ok("model", f"The runtime ({name}) answers with {health['model']}, {slots}.")
    if health.get("status") == "yielded":
        text = f"The owner has taken the GPU back; the runtime ({name}) answers nobody until it is given again."
        return RUNTIME.warning("model", text, _RESUME)
    if state in ("starting", "loading"):
        return RUNTIME.warning(
            "model", f"The runtime ({name}) is {state}. {reason}".strip(), "hearthlink doctor", "soon"
        )
    return RUNTIME.broken("model", f"The runtime ({name}) cannot answer. {reason}".strip(), _how(name, machine))


def _how(name: str, machine: Machine) -> str:
    """Start the server or ask it, or mend the settings that name the model."""
    if name == "embedded":
        return "hearthlink config check"
    url = machine.settings.node.runtime.url
    return _STARTS.get(name) or (f"curl -m 3 {url}" if url is not None else machine.edit)


async def _url(machine: Machine) -> str | None:
    """The server that the settings name, or that the node would find; None for the embedded runtime."""
    from node.runtimes.detect import find
    from node.runtimes.dialects import dialect_of

    runtime, edge = machine.settings.node.runtime, machine.settings.edge
    if runtime.embedded:
        return None
    if runtime.url is not None:
        return runtime.url
    own = [machine.node_listen.port, split_listen(edge.listen)[1], split_listen(edge.ops_listen)[1]]
    if (dialect := dialect_of(runtime.kind)) is not None:
        return await find(own, dialect.places) or dialect.places[0]
    return await find(own)


def _embedded(machine: Machine, *, runs: bool) -> Line:
    """Whether the model is there, can be read, and is one."""
    from node.runtimes.gguf import NotGGUFError
    from node.runtimes.model_file import read_model

    try:
        wanted = options.wanted_model(machine.settings)
    except Failure as failure:
        return RUNTIME.broken("model", str(failure), "hearthlink model list")
    runtime = machine.settings.node.runtime
    path = wanted.path if wanted is not None else runtime.own_model
    if path is None and runtime.models is not None:
        return _folder(runtime.models)
    if not isinstance(path, Path):
        text = "There is no model: no runtime with a model in memory runs here, and no file is named."
        return RUNTIME.broken("model", text, "hearthlink node --model smollm2-360m")
    if wanted is not None and wanted.choice is not None and not path.exists():
        text = f"The model {machine.settings.node.runtime.model} is not here yet."
        return RUNTIME.broken("model", text, f"hearthlink model pull {machine.settings.node.runtime.model}")
    try:
        read_model(path)
    except OSError as error:
        text = f"The model {error.filename or path} cannot be read ({error.strerror})."
        return RUNTIME.broken("model", text, f"ls -l '{path}'")
    except NotGGUFError as error:
        return RUNTIME.broken("model", f"The model {path} {error}.", "hearthlink model list")
    memory = "the doctor of the edge's machine tells whether it is in memory" if runs else "no node runs that loads it"
    return RUNTIME.ok("model", f"The model {path.name} is here and can be read; {memory}.")


async def _look(url: str, machine: Machine) -> tuple[str, RuntimeStatus]:
    """What answers there, and how it is."""
    from node.runtimes.server import ServerRuntime

    configured = machine.settings.node.runtime
    key = configured.key.get_secret_value() if configured.key is not None else None
    runtime = ServerRuntime(url, key=key, default_model=configured.default_model)
    looked = asyncio.Event()
    await runtime.start(looked.set)
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            await looked.wait()
    finally:
        await runtime.close()
    return runtime.kind, runtime.status()


def _server(found: tuple[str, RuntimeStatus], url: str) -> Line:
    name, status = found
    if status.state == "ready":
        return RUNTIME.ok("model", f"The runtime at {url} ({name}) has {status.default_model}, {status.slots} at once.")
    if status.state in ("starting", "loading"):
        return RUNTIME.warning("model", status.reason, "hearthlink doctor", "soon")
    return RUNTIME.broken("model", status.reason, _STARTS.get(name, f"curl {url}"))


def _folder(folder: Path) -> Line:
    """Whether there is any model in the folder that the node loads from."""
    from node.runtimes.model_folder import ModelFolder

    if found := ModelFolder(None, folder).scan():
        return RUNTIME.ok("model", f"Models that can be read are in {folder}: {', '.join(list(found)[:_SHOWN])}.")
    text = f"No model is in {folder}, where node.runtime.models says that they are."
    return RUNTIME.broken("model", text, f"ls -l '{folder}'")


async def remote(machine: Machine) -> Sequence[Line]:
    """The runtimes of linked nodes, as they told this edge."""
    own = str((await machine.node()).json.get("model", ""))
    return [
        line
        for row in await machine.nodes()
        if row.get("connected") and not (own and is_loopback(urlsplit(str(row.get("url", ""))).hostname or ""))
        for line in (_remote(row),)
    ]


def _remote(row: Mapping[str, Any]) -> Line:
    name, state, kind = row["name"], row.get("runtime_state", "starting"), row.get("runtime", "")
    reason = str(row.get("runtime_reason") or "")
    if state == "ready":
        models = [str(model) for model in row.get("models") or ()]
        more = f" and {len(models) - 1} more" if len(models) > 1 else ""
        first = models[0] if models else "no model"
        slots = f"{row.get('slots', 1)} at once, {row.get('running', 0)} now, {row.get('queued', 0)} waiting"
        return RUNTIME.ok("remote", f"Node {name} ({kind}) answers with {first}{more}, {slots}.")
    if f"`{_RESUME}`" in reason:
        return RUNTIME.warning("remote", f"Node {name} answers nobody. {reason}", _RESUME, f"on {name}")
    if state in ("starting", "loading"):
        text = f"The runtime of node {name} is {state}. {reason}".strip()
        return RUNTIME.warning("remote", text, "hearthlink doctor", "soon")
    return RUNTIME.broken(
        "remote", f"The runtime of node {name} cannot answer. {reason}".strip(), "hearthlink doctor", f"on {name}"
    )


async def exposed(machine: Machine) -> Sequence[Line]:
    """A runtime asks nobody who they are, so it is to listen on loopback only: in the tailnet too, where it would be
    used past the node."""
    if not machine.has_node and not await machine.node_runs():
        return []
    url = await _url(machine)
    if url is None:
        return [RUNTIME.ok("exposed", "The model runs inside the node: nobody else reaches it.")]
    parts = urlsplit(url)
    if not is_loopback(parts.hostname or ""):
        return [RUNTIME.absent("exposed", f"The runtime at {url} is another machine's to protect.")]
    port = _port(parts)
    addresses = await machine.addresses()
    reached = await answering(addresses, port)
    if not reached:
        return [RUNTIME.ok("exposed", f"The runtime answers on loopback only (port {port}).")]
    name = str((await machine.node()).json.get("runtime", ""))
    text = (
        f"The runtime answers at {', '.join(f'{address} ({addresses[address]})' for address in reached)}, port {port}:"
        " whoever reaches that address uses it without any token. Have it listen on 127.0.0.1 only."
    )
    if name in _STARTS:
        return [RUNTIME.broken("exposed", text, _STARTS[name], "stop it, then")]
    if name in _WITH_FLAG:
        return [RUNTIME.broken("exposed", text, _FLAG, "start it again with")]
    firewall = f"sudo ufw deny in on {addresses[reached[0]]} to any port {port} proto tcp"
    return [RUNTIME.broken("exposed", text, firewall)]


def _port(url: SplitResult) -> int:
    return url.port or _DEFAULT_PORTS[url.scheme]
