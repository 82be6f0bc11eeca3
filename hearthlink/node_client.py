"""The node that the owner's verbs mean: the one on this machine, or one behind an edge."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from hearthlink import options
from hearthlink.output import Failure, Status

if TYPE_CHECKING:
    from hearthlink.client import EdgeClient
    from shared.settings import Settings

# What a request over the socket names; nothing is looked up.
_BY_SOCKET = "http://localhost"


def node_client(settings: Settings, url: str | None, key: str | None) -> EdgeClient:
    """Not entered yet. With ``url`` the edge there, which wants ``key``, a key with the scope admin; else the node on
    this machine, which wants its own token. Raises Failure."""
    from hearthlink.client import EdgeClient

    if url is None:
        where, socket = _here(settings)
        return EdgeClient(where, _bearer(_own_token(settings)), socket=socket)
    if key is None:
        raise Failure(
            f"The edge at {url} wants an API key with the scope admin. Set HEARTHLINK_CHAT_KEY, or give it on standard"
            " input with --key -.",
            Status.AUTH,
        )
    return EdgeClient(url, _bearer(key))


def at_node(path: str, node: str | None) -> str:
    """``path`` for the node that an edge calls ``node``; None is its first."""
    return path if node is None else f"{path}?node={quote(node, safe='')}"


def _bearer(secret: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def _here(settings: Settings) -> tuple[str, Path | None]:
    """A URL, and the socket in the state folder where a node of this user keeps one."""
    from shared.addresses import OnAddress, parse_node_listen

    socket = settings.state / "node.sock"
    try:
        if stat.S_ISSOCK(socket.stat().st_mode):
            return _BY_SOCKET, socket
    except OSError:
        pass
    listen = parse_node_listen(settings.node.listen)
    if isinstance(listen, OnAddress) and listen.port and not settings.node.tls.on:
        host = f"[{listen.host}]" if ":" in listen.host else listen.host
        return f"http://{host}:{listen.port}", None
    raise Failure(
        f"No node of this user runs here: there is no {socket}. Start one with `hearthlink up` or `hearthlink node`,"
        " run this as its user, or name the edge with --url URL.",
        Status.UNAVAILABLE,
    )


def _own_token(settings: Settings) -> str:
    from shared.state import StateError

    if settings.node.tokens:
        return settings.node.tokens[0].get_secret_value()
    try:
        return options.state_of(settings).node_token()
    except StateError as error:
        raise Failure(str(error), Status.AUTH) from None
