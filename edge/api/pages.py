"""The chat page at ``/``, its files below ``/static/``, and the JavaScript client for pages elsewhere."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from edge.api.limiter import RateLimiter
from edge.site import File, Site
from shared.contract.errors import ApiError

# Per IP. A page costs one of the first and, when the browser's cache is empty, about twenty of the second; an office
# behind one address may open it together.
_PAGE_LIMIT = "120/minute"
_FILE_LIMIT = "2400/minute"

_TAKES_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))")

# Nothing but our own files; no inline script or style; HTML is made from text by DOMPurify alone (clients §7).
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
_PAGE_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "x-xss-protection": "1; mode=block",
    "cache-control": "no-cache",
}
# Any page may import the client; the files hold nothing private.
_OPEN_HEADERS = {"access-control-allow-origin": "*", "cross-origin-resource-policy": "cross-origin"}
_FILE_HEADERS = {**_OPEN_HEADERS, "cache-control": "public, max-age=31536000, immutable"}


class PageRoutes:
    """``page``: whether ``/`` is the chat page; the client is there in any case."""

    def __init__(self, site: Site, limiter: RateLimiter, *, page: bool) -> None:
        self._site = site

        @limiter.limit(_PAGE_LIMIT)
        async def index(request: Request) -> Response:
            return _answer(request, site.index, _PAGE_HEADERS)

        @limiter.limit(_FILE_LIMIT)
        async def file(request: Request) -> Response:
            return self._file(request)

        @limiter.limit(_FILE_LIMIT)
        async def client(request: Request) -> Response:
            return self._client()

        self.routes = [Route("/static/{path:path}", file), Route("/hearthlink.js", client)]
        if page:
            self.routes.append(Route("/", index))

    def _file(self, request: Request) -> Response:
        name = f"/static/{request.path_params['path']}"
        found = self._site.files.get(name.removeprefix(self._site.prefix))
        if found is None:
            raise ApiError("not_found", "There is no such file, or it is of another version: load the page again.")
        return _answer(request, found, _FILE_HEADERS)

    def _client(self) -> Response:
        # Asked for each time: after an upgrade the file of before is gone.
        headers = {**_OPEN_HEADERS, "cache-control": "no-cache"}
        return RedirectResponse(f"{self._site.prefix}hearthlink.js", 302, headers)


def _answer(request: Request, file: File, headers: dict[str, str]) -> Response:
    headers = {**headers, "etag": file.etag, "vary": "Accept-Encoding"}
    if file.etag in map(str.strip, request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    if file.gzipped is not None and _TAKES_GZIP.search(request.headers.get("accept-encoding", "")):
        return Response(file.gzipped, headers={**headers, "content-encoding": "gzip"}, media_type=file.content_type)
    return Response(file.body, headers=headers, media_type=file.content_type)
