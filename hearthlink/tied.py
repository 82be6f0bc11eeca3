"""``python -m hearthlink.tied node|edge``: a deployable that stops when the process that started it is gone.

Its standard input is a pipe of which the parent holds the other end, unused. However the parent ends, killed outright
too, the pipe ends with it, and the deployable drains as if it had been asked to stop.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

# The drain (edge.drain_timeout and node.drain_timeout, at most 300 s) and some seconds to close.
_LONGEST_STOP_SECONDS = 310.0


def _stop_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LONGEST_STOP_SECONDS)
    os._exit(1)


def main(which: str) -> int:
    """The exit status of the deployable."""
    threading.Thread(target=_stop_at_end_of_input, name="parent-watch", daemon=True).start()
    # Imported after the watch began: the parent may be gone before the imports are done.
    if which == "edge":
        from edge.__main__ import main as edge

        return edge(patient=False)  # the person who started both is told at once what is in the way
    from node.__main__ import main as node

    return node()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
