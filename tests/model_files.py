"""GGUF files that tests write for what a header says, beside the random model of the bench, which can answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter


def write_experts(path: Path, **options: Any) -> None:
    """A mixture of 8 experts, 2 of them used: 800 weights in the experts and 50 besides. ``options`` are GGUFWriter's,
    such as those that write several shards."""
    writer = GGUFWriter(path, "llama", **options)
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((8, 10, 10), dtype=np.float16))
    writer.add_tensor("token_embd.weight", np.zeros((5, 10), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
