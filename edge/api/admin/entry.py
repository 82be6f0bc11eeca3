"""Who may administer, and what every route of it does the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from loguru import logger
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge.api import accounting
from edge.plans import plan_for
from edge.principals import Principal, is_id
from edge.services import Services
from edge.store.admin import Admin
from edge.store.errors import AdminError, NoSuchError, StoreError
from shared.asgi.body import check_json, read_body
from shared.contract.body import Body, parse_body
from shared.contract.errors import ApiError
from shared.contract.secrets import API_KEY, INVITE
from shared.state import StateError

_SCOPE = "admin"
# All other credentials go to people whom nobody chose one by one, or whom somebody else chose.
_KINDS = frozenset({"key", "token", "tailnet"})
_MAX_BODY = 16 * 1024
# Seconds for all that one request does to the store: a database that is busy so long is in trouble.
_WITHIN = 10.0


def resource(path: str, **methods: Callable[[Request], Awaitable[Response]]) -> Route:
    """One route for all ``methods`` of a path, so that whoever tries another one reads them all in ``Allow``."""

    async def endpoint(request: Request) -> Response:
        return await methods["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, endpoint, methods=list(methods))


async def enter(request: Request, edge: Services, route: str) -> None:
    """Let an admin in, and nobody else, before the body is read. Raises ApiError 401, 403 or 429."""
    caller = accounting.enter(request.scope, edge, route, _SCOPE)
    check_credential(caller.principal)
    await accounting.take_request(request.scope, edge, caller)


@asynccontextmanager
async def administering(edge: Services) -> AsyncIterator[Admin]:
    """The store, open for the block. Raises ApiError: ``not_found`` where nothing has that name, ``invalid_request``
    for what cannot be done, ``overloaded`` when the store cannot be used."""
    try:
        async with asyncio.timeout(_WITHIN), edge.admin() as admin:
            yield admin
    except NoSuchError as error:
        raise ApiError("not_found", str(error)) from None
    except AdminError as error:
        raise ApiError("invalid_request", str(error)) from None
    except (StateError, StoreError, TimeoutError) as error:
        logger.error("the store cannot be administered: {}", str(error) or f"no answer within {_WITHIN:.0f} s")
        text = "The store did not answer: see the edge's log, and look whether it was done before you try again."
        raise ApiError("overloaded", text) from None


def check_credential(principal: Principal) -> None:
    """Raises ApiError ``missing_token`` for a caller who shows none because nobody has to, ``insufficient_scope`` for
    one that is for chats whatever its plan says, or is locked: it could make another one without its locks."""
    if principal.kind == "local":
        raise ApiError("missing_token", "Administering needs a credential. Send a key or token with the scope admin.")
    if principal.kind not in _KINDS:
        raise ApiError("insufficient_scope", "Administering needs an API key with the scope admin, or a token of one.")
    # The page of somebody of the tailnet is locked to where it is; a token of a key is by whoever asked for that.
    origin = None if principal.kind == "tailnet" else principal.origin
    if (origin, principal.chat_types, principal.max_tokens, principal.uses) != (None, None, None, None):
        raise ApiError("insufficient_scope", "A token that is locked does not administer. Use the key it was made of.")


async def read(request: Request, kind: type[Body]) -> Body:
    """The body. Raises ApiError as ``parse_body``."""
    check_json(request.scope)
    return parse_body(kind, await read_body(request.scope, request.receive, _MAX_BODY))


def named(request: Request) -> str:
    """What the path names. Raises ApiError ``invalid_request`` for a secret."""
    (name,) = request.path_params.values()
    if name.startswith((API_KEY, INVITE)):
        text = "A key or an invite does not belong in a URL, which is logged on its way. Give its name or id."
        raise ApiError("invalid_request", text)
    return name


def plan_in(name: str, scopes: Sequence[str], edge: Services) -> None:
    """Raises ApiError ``invalid_request`` when no credential can have that plan with these scopes."""
    try:
        plan_for(edge.plans, name, scopes)
    except ValueError as error:
        raise ApiError("invalid_request", str(error), param="scopes" if name in edge.plans else "plan") from None


def checked(principal: str) -> str:
    """Raises ApiError ``invalid_request`` for what is no id of a caller."""
    if not is_id(principal):
        text = "A caller is named as audit lines and GET /v1/me name it: principal, such as key_4c1d2e3f4a5b."
        raise ApiError("invalid_request", text, param="principal")
    return principal


def answer(payload: Any, status: int = 200) -> JSONResponse:
    """Never cached: it may hold a secret that is shown once."""
    return JSONResponse(payload, status, {"cache-control": "no-store"})


def listed(rows: list[dict[str, Any]]) -> JSONResponse:
    return answer({"object": "list", "data": rows})
