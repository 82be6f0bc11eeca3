"""What ``up`` says when the pair is ready: where it answers, with what, and a line to try it with."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from hearthlink.ports import HOST
from hearthlink.tokens import mint_local

if TYPE_CHECKING:
    from hearthlink.pair import Ready
    from shared.settings import Settings

_TOKEN_HOURS = 24
_CHAT_TYPE = "whereToGo"
_QUESTION = "It is raining and we have two kids with us."
_TOY = ", a toy of 4.8 MB that came along; a real one: --model smollm2-360m"
_YIELDED = "yielded, nobody is answered until you take the GPU back: hearthlink model resume"


def text(url: str, ops_port: int, ready: Ready, settings: Settings, config: Path | None) -> str:
    """Some lines for standard output; the one to try works when it is pasted into a shell. Raises Failure."""
    from shared.settings_node import DEMO_MODEL

    curl = shutil.which("curl") is not None
    hint = f" (its token is good for {_TOKEN_HOURS} hours)" if curl else ""
    toy = ready.runtime == "embedded" and settings.node.runtime.own_model == DEMO_MODEL
    model = f"{ready.model} ({ready.runtime}){_TOY if toy else ''}"
    lines = (
        f"Hearthlink answers at {url}",
        f"  page        {url}/ in your browser" if settings.edge.page else "  page        off (edge.page)",
        f"  model       {_YIELDED if ready.yielded else model}",
        f"  state       {settings.state}",
        f"  operations  http://{HOST}:{ops_port}/metrics",
        f"Try it, here or in another terminal{hint}:",
        f"  {_curl(url, settings) if curl else _chat(url, config)}",
        "Ctrl-C stops it.",
    )
    return "\n".join(lines)


def _curl(url: str, settings: Settings) -> str:
    token, _ = mint_local(settings, "up", "member", _TOKEN_HOURS * 3600.0)
    parts = ["curl", "-N", *(["--noproxy", HOST] if _behind_proxy() else []), f"{url}/v1/chat"]
    for header in (f"Authorization: Bearer {token}", "Content-Type: application/json", "Accept: text/event-stream"):
        parts += ["-H", header]
    body = {"chat_type": _CHAT_TYPE, "messages": [{"role": "user", "content": _QUESTION}]}
    return shlex.join([*parts, "-d", json.dumps(body)])


def _chat(url: str, config: Path | None) -> str:
    where = ["--url", url, *(["--config", str(config.absolute())] if config is not None else [])]
    return shlex.join([*_own_command(), "chat", _QUESTION, "--type", _CHAT_TYPE, *where])


def _own_command() -> list[str]:
    """How this program is called from any folder."""
    if shutil.which("hearthlink"):
        return ["hearthlink"]
    beside = Path(sys.executable).with_name("hearthlink")
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "hearthlink"]


def _behind_proxy() -> bool:
    """Whether curl would ask a proxy for loopback; it reads HTTP_PROXY in small letters only."""
    proxied = any(os.environ.get(name) for name in ("http_proxy", "all_proxy", "ALL_PROXY"))
    return proxied and HOST not in os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(",")


def open_page(url: str) -> bool:
    """Open ``url`` in the person's browser; False where there is no person or no display."""
    shows = sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return shows and sys.stdout.isatty() and webbrowser.open(url)
