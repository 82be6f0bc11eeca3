"""uvicorn's WebSocket with what it lacks: a deadline for the handshake, and somebody who hears of the end."""

from __future__ import annotations

from collections.abc import Callable

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """A connection from its handshake on, which ``DeadlineProtocol`` hands over with ``begin``."""

    def begin(self, until: float, lost: Callable[[], None]) -> None:
        """``until``, in the loop's time, the app must have answered the handshake; ``lost`` is called once, when the
        connection has closed."""
        self._until = until
        self._lost = lost

    @property
    def understood(self) -> bool:
        """Whether the handshake could be read. What cannot be is never answered by uvicorn 0.54."""
        return self.handshake_initiated

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()
        super().connection_lost(exc)

    def sweep(self, now: float) -> None:
        """Drop a connection whose handshake nobody answers."""
        if not self.handshake_complete and now > self._until:
            self.transport.abort()
