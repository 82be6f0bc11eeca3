"""What a server built with FastAPI offers, as its own description of itself says."""

from __future__ import annotations

from node.runtime import Api
from node.runtimes.client import Client
from node.runtimes.dialect import PATHS

_LEAST: frozenset[Api] = frozenset({"chat", "completions"})


async def offered(client: Client) -> frozenset[Api]:
    """The APIs that have a route below /v1; a route may still refuse a model that is of another kind. Raises as
    ``Client.ask``."""
    paths = (await client.json("/openapi.json")).get("paths")
    if not isinstance(paths, dict):
        return _LEAST
    return _LEAST.union(api for api, path in PATHS.items() if f"/v1{path}" in paths)
