"""A web server of somebody else: pages on another origin than the edge's, with files of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

_PAGE = "<!doctype html><html lang=en><meta charset=utf-8><link rel=icon href='data:,'><title>Elsewhere</title>"


@asynccontextmanager
async def elsewhere(folders: Mapping[str, Path] | None = None, *, host: str = "localhost") -> AsyncIterator[str]:
    """Its origin, while the block runs. ``/`` is an empty page; ``folders`` are served below their names. It listens on
    this machine whatever ``host`` the browser calls it."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=_PAGE, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    for name, folder in (folders or {}).items():
        app.router.add_static(f"/{name}/", folder)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
