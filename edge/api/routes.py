"""The routes of the edge, and what each request passes on its way to one."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router

from edge.api.admin import admin_routes
from edge.api.audit import Audit
from edge.api.chat import ChatEndpoint
from edge.api.funnel import FunnelGuard
from edge.api.gate import Gate, open_to
from edge.api.health import HealthRoutes
from edge.api.limiter import RateLimiter
from edge.api.lists import ListRoutes
from edge.api.operations import operation_routes
from edge.api.pages import PageRoutes
from edge.api.peers import is_peers, may_be_peers, treat_as_peers
from edge.api.stop import StopRoute
from edge.api.tokens import TokenRoutes
from edge.services import Services
from shared.asgi.front import Envelope, Front, plain_http
from shared.asgi.types import App, Receive, Scope, Send, header
from shared.contract.surface import SURFACES

# What OpenAI's and Anthropic's SDKs send from a browser (clients §1), and our own.
_REQUEST_HEADERS = (
    "Authorization", "Content-Type", "Accept", "X-API-Key", "X-Request-Id", "Idempotency-Key", "Last-Event-ID",
    "OpenAI-Organization", "OpenAI-Project", "OpenAI-Beta",
    "Anthropic-Version", "Anthropic-Beta", "Anthropic-Dangerous-Direct-Browser-Access",
    *(f"X-Stainless-{name}" for name in (
        "Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Retry-Count", "Timeout",
        "Helper-Method", "Poll-Helper", "Async", "Read-Timeout", "Raw-Response", "Custom-Poll-Interval",
    )),
)  # fmt: skip
_EXPOSED_HEADERS = (
    "X-Request-Id", "Retry-After", "x-should-retry", "Hearthlink-Chat-Id", "Hearthlink-Dropped-Params",
    *(f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")),
)  # fmt: skip
_PREFLIGHT_SECONDS = 7200  # Chrome's own upper bound


def create_app(edge: Services, audit: Audit) -> App:
    """The routes of design §3.5 that this version has, behind id, CORS and envelope."""
    limiter = RateLimiter(edge)
    tokens, pages = TokenRoutes(edge, limiter), PageRoutes(edge.site, limiter, page=edge.policy.page)
    lists, health, stop = ListRoutes(edge), HealthRoutes(edge), StopRoute(edge)
    routes = [
        *(Route(surface.path, ChatEndpoint(surface, edge), methods=["POST"]) for surface in SURFACES.values()),
        Route("/v1/token", tokens.mint, methods=["POST"]),
        Route("/v1/token", tokens.revoke, methods=["DELETE"]),
        Route("/v1/me", tokens.me),
        Route("/v1/chat/types", lists.chat_types),
        Route("/v1/chat/{id}", stop.stop, methods=["DELETE"]),
        Route("/v1/models", lists.models),
        Route("/v1/models/{id:path}", lists.model),
        Route("/healthz", health.healthz),
        Route("/health", health.health),
        Route("/livez", health.livez),
        Route("/readyz", health.readyz),
        Route("/metrics", health.metrics),
        *pages.routes,
        *admin_routes(edge),
        *operation_routes(edge),
    ]
    envelope = Envelope(open_to(plain_http(audit.strictly(Router(routes, redirect_slashes=False))), edge))
    envelope.state.limiter = limiter
    cors = CORSMiddleware(
        envelope,
        allow_origins=sorted(edge.policy.allowed_origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=(*_REQUEST_HEADERS, *(("X-User-Id",) if edge.policy.user_ids else ())),
        expose_headers=_EXPOSED_HEADERS,
        max_age=_PREFLIGHT_SECONDS,
    )

    funnel = FunnelGuard()

    async def by_origin(scope: Scope, receive: Receive, send: Send) -> None:
        if funnel.concerns(scope):
            await funnel.refuse(scope, send)
            return
        if may_be_peers(scope, edge) and await is_peers(scope, edge) and not await treat_as_peers(scope, send):
            return
        # Programs send no Origin. What may be cached is open to every origin, so answers to them need no Vary either.
        await (envelope if header(scope, b"origin") is None else cors)(scope, receive, send)

    return Front(Gate(by_origin, edge), audit.finished)
