"""GGUF files that tests write for what a header says, beside the random model of the bench, which can answer."""

from __future__ import annotations

from collections.abc import Mapping
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
    _write(writer)


def write_projector(path: Path, width: int) -> Path:
    """A vision projector that llama.cpp loads, for models of this width: images of 28 x 28 in four patches."""
    inner, ffn, patch, image, layers = 32, 64, 14, 28, 2
    writer = GGUFWriter(path, "clip")
    random = np.random.default_rng(0)

    def noise(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * 0.1).astype(np.float32))

    def layer(name: str, rows: int, columns: int = 0) -> None:
        noise(f"{name}.weight", *((rows, columns) if columns else (rows,)))
        noise(f"{name}.bias", rows)

    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    writer.add_string("clip.projector_type", "mlp")
    sizes = {"image_size": image, "patch_size": patch, "embedding_length": inner, "feed_forward_length": ffn}
    for name, size in {**sizes, "block_count": layers, "projection_dim": width, "attention.head_count": 2}.items():
        writer.add_uint32(f"clip.vision.{name}", size)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    noise("v.class_embd", inner)
    noise("v.patch_embd.weight", inner, 3, patch, patch)
    noise("v.position_embd.weight", (image // patch) ** 2 + 1, inner)
    for name in ("v.pre_ln", "v.post_ln", *(f"v.blk.{i}.ln{j}" for i in range(layers) for j in (1, 2))):
        layer(name, inner)
    for name in (f"v.blk.{i}.attn_{part}" for i in range(layers) for part in ("q", "k", "v", "out")):
        layer(name, inner, inner)
    for i in range(layers):
        noise(f"v.blk.{i}.ffn_down.weight", ffn, inner)
        noise(f"v.blk.{i}.ffn_down.bias", ffn)
        noise(f"v.blk.{i}.ffn_up.weight", inner, ffn)
        noise(f"v.blk.{i}.ffn_up.bias", inner)
    layer("mm.0", width, inner)
    layer("mm.2", width, width)
    _write(writer)
    return path


def write_header(path: Path, architecture: str, fields: Mapping[str, bool | int]) -> Path:
    """A file without weights that says ``fields`` of itself."""
    writer = GGUFWriter(path, architecture)
    for name, value in fields.items():
        writer.add_bool(name, value) if isinstance(value, bool) else writer.add_uint32(name, value)
    _write(writer)
    return path


def _write(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
