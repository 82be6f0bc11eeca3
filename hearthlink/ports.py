"""TCP ports of 127.0.0.1: whether one is free, and which are."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from hearthlink.output import Failure

HOST = "127.0.0.1"
_TRIES = 200  # the first is nearly always good
# Above those of well-known servers, and below those that systems give to connections and to whoever asks for any
# (Linux from 32768, macOS from 49152): the servers bind a second after the choice, and one of these is still free then.
_NAMED = (10_000, 32_766)


def problem(port: int) -> OSError | None:
    """Why nobody could listen on ``port`` now; None when it is free."""
    with socket.socket() as sock:
        # As servers do: a port whose last connections are still in TIME_WAIT is free.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError as error:
            return error
    return None


def free() -> int:
    """A port that nobody uses at this moment, and that the system gives to nobody who does not name it. Raises
    Failure."""
    return _free(1)


def free_pair() -> int:
    """As ``free``, and the next one is free, too. Raises Failure."""
    return _free(2)


def _free(neighbours: int) -> int:
    for _ in range(_TRIES):
        port = random.randrange(*_NAMED)
        if all(problem(port + offset) is None for offset in range(neighbours)):
            return port
    raise Failure("No free port was found on this machine. Name one with --port P.")


def refusal(port: int, error: OSError) -> Failure:
    """What to say, and what to do, when ``port`` cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        return Failure(
            f"Port {port} on {HOST} is taken, perhaps by another `hearthlink up`. Use that one, stop it"
            f" (`ss -ltnp 'sport = :{port}'` names it), or choose another port: --port {port + 10}."
        )
    if error.errno == errno.EACCES:
        return Failure(f"This user may not listen on port {port}: ports below 1024 need root. Choose --port 8700.")
    return Failure(f"Port {port} cannot be listened on: {os.strerror(error.errno or 0)}. Choose another one: --port P.")


@contextmanager
def claimed(port: int) -> Iterator[None]:
    """Check ``port`` and the next one, and keep other starts of the pair away from them. Raises Failure.

    The servers bind a second later, in other processes. Until then, and as long as the pair runs, the UDP port of the
    same number stands for the claim: no server here wants it, and the system gives it back however this process ends.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as claim:
        try:
            claim.bind((HOST, port))
        except OSError as error:
            raise refusal(port, error) from None
        for wanted in (port, port + 1):
            if (error := problem(wanted)) is not None:
                raise refusal(wanted, error)
        yield
