"""The operations over the node's own plain HTTP, for the owner beside it: as over the link."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.routing import Route

from node.admission import Admission
from node.api.chat import HttpOutlet
from node.api.operations import operate
from node.services import Services
from shared.asgi.accept import wants_stream
from shared.asgi.body import ClientLeft, check_json, discard_body, read_body
from shared.asgi.departure import Departure
from shared.asgi.query import read_query
from shared.asgi.request_id import new_id
from shared.asgi.types import Receive, Scope, Send
from shared.contract.errors import ApiError
from shared.contract.operation import Operation, by_path
from shared.link.call import Call


class OperationEndpoint:
    """ASGI app for one path; ``operations`` by method."""

    def __init__(self, operations: Mapping[str, Operation], node: Services, admission: Admission) -> None:
        self._operations = operations
        self._node = node
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = self._operations["GET" if scope["method"] == "HEAD" else scope["method"]]
        try:
            await self._admission.admit(scope, operation.role)
        except ApiError:
            await discard_body(receive, self._node.max_body)
            raise
        if self._node.draining:
            raise ApiError("draining", "The node is restarting. Please try again.")
        if operation.method == "POST":
            check_json(scope)
        call = Call(
            surface=operation,
            body=await read_body(scope, receive, self._node.max_body),
            chat_id=new_id(),
            request_id=scope["state"]["request_id"],
            principal=self._admission.principal(scope),
            stream=operation.streams and scope["method"] != "HEAD" and wants_stream(scope, None, operation.live),
            deadline=asyncio.get_running_loop().time() + operation.seconds,
            path={**read_query(scope), **scope["path_params"]},
            admin=operation.role == "admin",
        )
        out = HttpOutlet(send, call.chat_id)
        try:
            async with (
                Departure(receive) as caller,
                self._admission.kept(scope, caller.end_with, needs=operation.role),
            ):
                await operate(call, out, self._node)
                await out.end()
        except ClientLeft:
            pass
        except ApiError as error:
            if not out.started:
                raise error.outside_stream() from None
            await out.end(operation.frame_error(error, call.request_id))
        finally:
            await out.close()


def operation_routes(node: Services, admission: Admission) -> list[Route]:
    return [
        Route(path, OperationEndpoint(operations, node, admission), methods=list(operations))
        for path, operations in by_path().items()
    ]
