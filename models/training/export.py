"""The weights as a GGUF file for llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType
from tokenizers import Tokenizer

from models.training.network import EPSILON, ROPE_BASE, Shape
from models.training.tokenizer import END, END_OF_TEXT, SPECIAL

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_NAME = "Hearthlink demo"
_DESCRIPTION = "A toy chat model, trained on sentences made by a script"


def export(path: Path, weights: dict[str, np.ndarray], shape: Shape, tokenizer: Tokenizer, context: int) -> None:
    """Write matrices as f16 and norms as f32; ``context`` is in tokens. The output matrix is left out: llama.cpp takes
    the embedding for it."""
    writer = GGUFWriter(path, "llama")
    _describe(writer, shape, context)
    _add_tokenizer(writer, tokenizer)
    for name in ("token_embd", "output_norm"):
        writer.add_tensor(f"{name}.weight", _stored(weights[name]))
    for layer in range(shape.layers):
        for name, stacked in weights.items():
            if name not in ("token_embd", "output_norm"):
                writer.add_tensor(f"blk.{layer}.{name}.weight", _stored(stacked[layer]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: GGUFWriter, shape: Shape, context: int) -> None:
    writer.add_name(_NAME)
    writer.add_description(_DESCRIPTION)
    writer.add_license("Apache-2.0")
    writer.add_context_length(context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(2)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    ids: dict[str, int] = model["vocab"]
    tokens = sorted(ids, key=lambda token: ids[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(ids[END_OF_TEXT])
    writer.add_eos_token_id(ids[END])
    writer.add_pad_token_id(ids[END_OF_TEXT])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _stored(weight: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(weight, np.float32 if weight.ndim == 1 else np.float16)
