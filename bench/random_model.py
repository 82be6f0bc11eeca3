"""A GGUF of any size with random weights, for what a tiny model is too fast to show: prefill, streaming, tokens/s.

    python -m bench.random_model /tmp/random.gguf --parameters 100000000

Architecture llama, f16, ChatML, one token per byte of prompt. What it says is noise made of whole words, and it never
ends an answer by itself: every answer has exactly ``max_tokens`` tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, PoolingType

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_WORDS = tuple(
    f"{first}{last}"
    for first in ("ba", "do", "ki", "lu", "me", "no", "ra", "ti")
    for last in ("len", "mar", "sot", "vi")
)
_HEAD_SIZE = 64
_HEADS_PER_KV = 4
_FFN_PER_WIDTH = 8 / 3  # as in Llama, rounded to a multiple of 32
_NORMAL, _CONTROL = 1, 3  # llama_token_type


def make(
    path: Path | str,
    *,
    parameters: int = 100_000_000,
    context: int = 4096,
    seed: int = 0,
    shard_tensors: int = 0,
    pooling: bool = False,
) -> Path:
    """Write a model of about ``parameters`` weights (at least some 1 M; within 10 % from 10 M up) and return its path,
    of several shards the first's. ``shard_tensors`` are at most in one file, 0: all. With ``pooling`` it says of itself
    that it makes embeddings, the mean of what it thinks of each token.

    The file has 2 bytes per weight; ``context`` is in tokens. Takes about 1 s and twice the file's size in memory per
    100 M weights. All layers share one set of random weights, which costs the runtime as much as different ones.
    """
    path = Path(path)
    width = _width(parameters)
    ffn = round(width * _FFN_PER_WIDTH / 32) * 32
    layer = width * width * 2 + 2 * width * width // _HEADS_PER_KV + 3 * width * ffn
    layers = max(1, round(parameters / layer))
    writer = GGUFWriter(path, "llama", split_max_tensors=shard_tensors)
    _describe(writer, width=width, ffn=ffn, layers=layers, context=context)
    if pooling:
        writer.add_pooling_type(PoolingType.MEAN)
    _add_tokenizer(writer)
    _add_weights(writer, np.random.default_rng(seed), width=width, ffn=ffn, layers=layers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return writer.format_shard_names(path)[0]


def _width(parameters: int) -> int:
    """Wider as the model grows, so that the number of layers stays between 4 and 40."""
    for limit, width in ((20e6, 256), (60e6, 512), (400e6, 768), (1.5e9, 1536)):
        if parameters < limit:
            return width
    return 3072


def _describe(writer: GGUFWriter, *, width: int, ffn: int, layers: int, context: int) -> None:
    writer.add_name("random")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(width // _HEAD_SIZE)
    writer.add_head_count_kv(width // _HEAD_SIZE // _HEADS_PER_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_HEAD_SIZE)
    writer.add_file_type(1)  # mostly f16


def _add_tokenizer(writer: GGUFWriter) -> None:
    tokens = _tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if token in _SPECIAL else _NORMAL for token in tokens])
    writer.add_token_merges(["ĉ ĉ"])  # one must be there; two tabs are rare enough
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tokens() -> list[str]:
    """Specials, one token per byte in GPT-2's spelling of bytes, the merge, and the words that answers are made of."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
    return [*_SPECIAL, *letters, "ĉĉ", *(f"Ġ{word}" for word in _WORDS)]


def _add_weights(writer: GGUFWriter, random: np.random.Generator, *, width: int, ffn: int, layers: int) -> None:
    """Dimension 0 of the stream is a constant that no layer writes to; the output matrix reads it to forbid every token
    that is no word."""
    tokens = len(_tokens())

    def noise(rows: int, columns: int, scale: float) -> np.ndarray:
        return (random.standard_normal((rows, columns), dtype=np.float32) * (scale / columns**0.5)).astype(np.float16)

    embedding = noise(tokens, width, width**0.5)
    embedding[:, 0] = 8
    output = noise(tokens, width, 3)
    output[:, 0] = -100
    output[-len(_WORDS) :, 0] = 0
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    writer.add_tensor("output.weight", output)
    kv_width = width // _HEADS_PER_KV
    shared = {
        "attn_q": noise(width, width, 1),
        "attn_k": noise(kv_width, width, 1),
        "attn_v": noise(kv_width, width, 1),
        "attn_output": noise(width, width, 0.5),
        "ffn_gate": noise(ffn, width, 1),
        "ffn_up": noise(ffn, width, 1),
        "ffn_down": noise(width, ffn, 0.5),
    }
    shared["attn_output"][0] = shared["ffn_down"][0] = 0
    for index in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{index}.{name}.weight", np.ones(width, dtype=np.float32))
        for name, weights in shared.items():
            writer.add_tensor(f"blk.{index}.{name}.weight", weights, raw_dtype=GGMLQuantizationType.F16)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a GGUF with random weights.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--context", type=int, default=4096)
    given = parser.parse_args()
    print(make(given.path, parameters=given.parameters, context=given.context))


if __name__ == "__main__":
    main()
