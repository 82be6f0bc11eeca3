"""A llama.cpp server for the tokens-per-second figure, the same one for both ways to it.

python -m bench.llama_server MODEL PORT CONTEXT THREADS
"""

from __future__ import annotations

import signal
import sys

from xllamacpp import CommonParams, Server  # pyright: ignore[reportAttributeAccessIssue]


def main() -> None:
    model, (port, context, threads) = sys.argv[1], map(int, sys.argv[2:5])
    params = CommonParams()
    params.model.path = model
    params.port = port
    params.n_ctx = context
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0
    params.model_alias = {"bench"}
    server = Server(params)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing here needs a tidy end
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
