"""``hearthlink model load|unload|activate|yield|resume``: the models that a node answers with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from hearthlink import options
from hearthlink.node_client import at_node, node_client
from hearthlink.output import Failure, Status, print_json, say

_Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The model as `model list` names it, or an alias.", show_default=False)
]
Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The edge to ask; else the node on this machine.")
]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="HEARTHLINK_CHAT_KEY", help="A key with the scope admin; - reads standard input."),
]
Node = Annotated[str | None, typer.Option("--node", metavar="NODE", help="Which of the edge's nodes; else the first.")]
# Bounds are those of the node's bodies (node/models/defaults.py).
_Context = Annotated[
    int | None, typer.Option("--context", min=128, max=16_777_216, help="Tokens of prompt and answer, per slot.")
]
_GpuRatio = Annotated[float | None, typer.Option("--gpu-ratio", min=0, max=1, help="Share of the layers on the GPU.")]
_GpuLayers = Annotated[
    int | None, typer.Option("--gpu-layers", min=-1, max=100_000, help="Layers on the GPU; -1: all that fit.")
]
_Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="Threads that compute it.")]
_Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0, max=2, help="For requests that set none: 0 to 2.")
]
_MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", min=1, max=1_000_000, help="The longest answer of requests that set none."),
]
_TopP = Annotated[
    float | None, typer.Option("--top-p", min=0, max=1, help="For requests that set none: above 0, to 1.")
]
_TopK = Annotated[int | None, typer.Option("--top-k", min=0, max=100_000, help="For requests that set none; 0 is all.")]
_Penalty = Annotated[float | None, typer.Option("--repeat-penalty", min=0, max=10, help="For requests that set none.")]
_Stop = Annotated[list[str] | None, typer.Option("--stop", help="Where an answer ends; several times, up to 4.")]
_Stream = Annotated[bool | None, typer.Option("--stream/--no-stream", help="For requests that do not say.")]

# Operations that the node's sentences name, and the verbs for whoever types.
_VERBS = (
    ("GET /admin/models lists", "`hearthlink model list` lists"),
    ("POST /admin/models/yield", "`hearthlink model yield`"),
)
# An edge writes into a silent stream every 10 s; a node that is asked itself says what its runtime says of a load.
_SILENT_SECONDS = 3600.0


def load(
    name: _Name,
    context: _Context = None,
    gpu_ratio: _GpuRatio = None,
    gpu_layers: _GpuLayers = None,
    threads: _Threads = None,
    activate: Annotated[bool, typer.Option("--activate", help="Also answer with it when nobody names one.")] = False,
    url: Url = None,
    key: Key = None,
    node: Node = None,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Load a model into memory. What makes room for it answers until then.

    Example: hearthlink model load smollm2-360m --context 8192 --activate
    """
    gpu = _given(ratio=gpu_ratio, layers=gpu_layers)
    wish = _given(contextLength=context, cpuThreads=threads, gpu=gpu or None)
    body = {"modelKey": name, "loadConfig": wish, "activate": activate}
    done = asyncio.run(_watch("/admin/models/load", body, url, key, node, config))
    if json:
        print_json(done)
        return
    say(str(done.get("message", "")))
    if done.get("ignored"):
        say(f"Not applied, because the runtime has no way for it: {', '.join(done['ignored'])}.")
    for step in (done.get("workflow") or {}).values():
        say(f"  {step}")


def unload(
    name: _Name,
    url: Url = None,
    key: Key = None,
    node: Node = None,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Take a model out of memory, once its answers have ended. Whoever names it later has it loaded again."""
    _tell(asyncio.run(_ask("POST", "/admin/models/unload", {"modelKey": name}, url, key, node, config)), json)


def activate(
    name: _Name,
    temperature: _Temperature = None,
    max_tokens: _MaxTokens = None,
    top_p: _TopP = None,
    top_k: _TopK = None,
    repeat_penalty: _Penalty = None,
    stop: _Stop = None,
    stream: _Stream = None,
    url: Url = None,
    key: Key = None,
    node: Node = None,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Answer with a model when nobody names one, and add parameters to requests for it that lack them.

    Without parameters those of a model that is active already stay.
    """
    inference = _given(
        temperature=temperature,
        maxTokens=max_tokens,
        topP=top_p,
        topK=top_k,
        repeatPenalty=repeat_penalty,
        stopStrings=stop or None,
        stream=stream,
    )
    body = {"modelKey": name, **({"defaultInference": inference} if inference else {})}
    _tell(asyncio.run(_ask("POST", "/admin/models/activate", body, url, key, node, config)), json)


def yield_(
    url: Url = None, key: Key = None, node: Node = None, json: options.Json = False, config: options.Config = None
) -> None:
    """Free the GPU now: running answers end, models leave memory, nobody is answered until `resume`."""
    _tell(asyncio.run(_ask("POST", "/admin/models/yield", {}, url, key, node, config)), json)


def resume(
    url: Url = None, key: Key = None, node: Node = None, json: options.Json = False, config: options.Config = None
) -> None:
    """Take the GPU back: load what was in memory, and answer again."""
    _tell(asyncio.run(_watch("/admin/models/resume", {}, url, key, node, config)), json)


async def listed(url: str | None, key: str | None, node: str | None, config: Any) -> dict[str, Any]:
    """What the node says of its models. Raises Failure."""
    return await _ask("GET", "/admin/models", None, url, key, node, config)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _tell(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        say(str(answer.get("message", "")))


async def _ask(
    method: str, path: str, body: Any, url: str | None, key: str | None, node: str | None, config: Any
) -> dict[str, Any]:
    _only_behind_an_edge(url, node)
    settings = options.settings_from(config)
    async with node_client(settings, url, options.read_secret(key, "key")) as client:
        with _in_verbs():
            return await client.ask(method, at_node(path, node), body)


async def _watch(
    path: str, body: Any, url: str | None, key: str | None, node: str | None, config: Any
) -> dict[str, Any]:
    """The result, showing until then how far it is."""
    from hearthlink.load_bar import LoadBar

    _only_behind_an_edge(url, node)
    settings = options.settings_from(config)
    async with node_client(settings, url, options.read_secret(key, "key")) as client:
        with _in_verbs(), LoadBar() as bar:
            async for name, fields in client.events("POST", at_node(path, node), body, silent=_SILENT_SECONDS):
                if name == "result":
                    return fields
                if name == "loading":
                    bar.show(str(fields.get("model", "")), fields.get("progress"))
    raise Failure("The node stopped before it was done. Its log may say why.")


def _only_behind_an_edge(url: str | None, node: str | None) -> None:
    """Raises Failure for a node's name where no edge is asked, which knows names."""
    if node is not None and url is None:
        text = "--node names one of an edge's nodes: name the edge with --url URL. Without both it is the one here."
        raise Failure(text, Status.USAGE)


@contextmanager
def _in_verbs() -> Iterator[None]:
    """Turn the HTTP of a refusal into what can be typed."""
    try:
        yield
    except Failure as failure:
        said = str(failure)
        for operation, verb in _VERBS:
            said = said.replace(operation, verb)
        raise Failure(said, failure.status) from None
