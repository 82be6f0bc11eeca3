"""The demo model with a chat template that knows tools. What it calls is nonsense, and in form what llama.cpp's grammar
demands; ``brace`` is the token that a call begins with, so that a bias on it makes the model call one."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFReader, GGUFValueType, GGUFWriter

from tests.runtime_support import DEMO

_TEMPLATE = """\
{%- if tools %}<|im_start|>system
You have access to the following functions. Respond with JSON: {"name": function name, "parameters": its arguments}.
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "tool" %}<|im_start|>tool
{{ message.content }}<|im_end|>
{% elif message.tool_calls %}<|im_start|>assistant
{%- set call = message.tool_calls[0].function %}
{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_tool_model(path: Path, template: str = _TEMPLATE) -> Path:
    reader = GGUFReader(DEMO)
    writer = GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "tokenizer.chat_template"):
            continue
        kind = field.types[0]
        of = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=of)
    writer.add_chat_template(template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def brace() -> str:
    """The id of the token ``{``, as a key of ``logit_bias``."""
    return str(GGUFReader(DEMO).fields["tokenizer.ggml.tokens"].contents().index("{"))
