"""Ollama's own requests and streams, as far as the version of tests/ollama cannot show them: reasoning, log
probabilities, images, and lines that break off (runtimes §4.4)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from node.runtime import Inference
from node.runtimes import ollama_request
from node.runtimes.ollama_request import Facts
from node.runtimes.ollama_stream import ChunkWriter, OllamaStream
from shared.contract.errors import ApiError

IMAGE = "data:image/png;base64,iVBORw0KGgo="
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


class Pieces:
    """A ``RuntimeStream`` that gives these pieces."""

    content_type = "application/x-ndjson"

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = list(pieces)

    @property
    def at_end(self) -> bool:
        return not self._pieces

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    async def read_slowly(self, seconds: float) -> bytes:
        whole = b"".join(self._pieces)
        self._pieces.clear()
        return whole


async def read(*pieces: bytes, chat: bool = True, counts: list[int] | None = None) -> bytes:
    stream = OllamaStream(Pieces(pieces), ChunkWriter("m", chat), (counts if counts is not None else []).append)
    found = []
    while piece := await stream.read():
        found.append(piece)
    assert stream.at_end
    return b"".join(found)


def line(done: str | None = None, **message: Any) -> bytes:
    end = {"done_reason": done, "prompt_eval_count": 9, "eval_count": 2} if done is not None else {}
    return (
        json.dumps(
            {"model": "m", "message": {"role": "assistant", **message}, "done": done is not None, **end}
        ).encode()
        + b"\n"
    )


def choices(raw: bytes) -> list[dict[str, Any]]:
    events = [json.loads(event[6:]) for event in raw.decode().split("\n\n") if event.startswith("data: {")]
    return [choice for event in events for choice in event.get("choices", ())]


def chat(*messages: dict[str, Any], facts: Facts | None = None, **parameters: Any) -> dict[str, Any]:
    asked = list(messages) or [{"role": "user", "content": "hi"}]
    inference = Inference("chat", "m", {"messages": asked}, 64, parameters)
    return ollama_request.chat_body(inference, facts or Facts())


# -- streams ----------------------------------------------------------------------------------------------------------


async def test_lines_may_be_cut_anywhere() -> None:
    whole = line(content="søster 🌍") + line(content='"quoted"') + line("stop", content="")
    for size in (1, 7, len(whole)):
        raw = await read(*(whole[at : at + size] for at in range(0, len(whole), size)))
        assert "".join(choice["delta"].get("content", "") for choice in choices(raw)) == 'søster 🌍"quoted"'
        assert raw.endswith(b"data: [DONE]\n\n")


async def test_reasoning_is_apart_from_the_answer() -> None:
    raw = await read(line(content="", thinking="hm"), line(content="yes"), line("stop", content=""))
    deltas = [choice["delta"] for choice in choices(raw)]
    assert deltas == [{"reasoning_content": "hm"}, {"content": "yes"}, {}]


async def test_calls_of_tools_are_numbered_through_the_answer() -> None:
    calls = [{"function": {"name": "look", "arguments": {"at": "å"}}}, {"id": "own", "function": {"name": "listen"}}]
    raw = await read(*(line(content="", tool_calls=[call]) for call in calls), line("stop", content=""))
    found = [call for choice in choices(raw) for call in choice["delta"].get("tool_calls", ())]
    assert [(call["index"], call["function"]) for call in found] == [
        (0, {"name": "look", "arguments": '{"at":"å"}'}),
        (1, {"name": "listen", "arguments": "{}"}),
    ]
    assert found[0]["id"].startswith("call_") and found[1]["id"] == "own"
    assert choices(raw)[-1]["finish_reason"] == "tool_calls"


async def test_log_probabilities_are_as_openai_writes_them() -> None:
    told = {"token": "å", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -2.0}]}
    whole = json.dumps({"message": {"content": "å"}, "logprobs": [told], "done": False}).encode() + b"\n"
    (choice,) = choices(await read(whole))
    assert choice["logprobs"]["content"] == [
        {
            "token": "å",
            "logprob": -0.5,
            "bytes": [195, 165],
            "top_logprobs": [{"token": "a", "logprob": -2.0, "bytes": [97]}],
        }
    ]


@pytest.mark.parametrize(("told", "reason"), [("stop", "stop"), ("length", "length"), ("new one", "stop")])
async def test_reasons_of_the_end(told: str, reason: str) -> None:
    counts: list[int] = []
    raw = await read(line(told, content=""), counts=counts)
    assert choices(raw)[-1]["finish_reason"] == reason and counts == [9]
    assert b'"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}' in raw


async def test_an_end_without_a_reason_is_none() -> None:
    """Its runner lost its connection: whoever reads the events sees an answer that was cut."""
    raw = await read(line(content="half"), line("", content=""))
    assert b"[DONE]" not in raw and choices(raw)[-1]["finish_reason"] is None


async def test_an_error_in_the_stream_is_an_event() -> None:
    raw = await read(line(content="a"), b'{"error":"it broke"}\n')
    assert raw.endswith(b'data: {"error":"it broke"}\n\n')


@pytest.mark.parametrize("bad", [b"nonsense\n", b"[1]\n", b'{"other":1}\n', b"x" * (1 << 20) + b"y"])
async def test_what_is_no_line_of_an_answer_is_an_error(bad: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        await read(bad)
    assert caught.value.code == "upstream_invalid"


async def test_completions_have_text() -> None:
    lines = b'{"response":"a","done":false}\n{"response":"","done":true,"done_reason":"length","eval_count":1}\n'
    raw = await read(lines, chat=False)
    assert [(choice["text"], choice["finish_reason"]) for choice in choices(raw)] == [("a", None), ("", "length")]
    assert raw.count(b'"object":"text_completion"') == 3


# -- requests ---------------------------------------------------------------------------------------------------------


def test_only_what_was_asked_for_is_an_option() -> None:
    body = chat(temperature=0.5, top_k=3, repeat_penalty=1.1, logit_bias={"1": 2})
    assert body["options"] == {"temperature": 0.5, "top_k": 3, "repeat_penalty": 1.1, "num_predict": 64}
    assert (body["truncate"], body["shift"], body["stream"]) == (False, False, True)
    assert not {"tools", "format", "think", "logprobs"} & body.keys()


def test_images_are_put_beside_the_text() -> None:
    parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    (message,) = chat({"role": "user", "content": parts})["messages"]
    assert message == {"role": "user", "content": "what?", "images": ["iVBORw0KGgo="]}


def test_an_answer_of_a_tool_carries_its_name() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    messages = chat(
        {"role": "developer", "content": "be kind"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
    )["messages"]
    assert messages[0]["role"] == "system"
    assert messages[1]["tool_calls"] == [{"id": "c1", "function": {"name": "look", "arguments": {"at": 1}}}]
    assert messages[2] == {"role": "tool", "content": "a cat", "tool_call_id": "c1", "tool_name": "look"}


@pytest.mark.parametrize("arguments", ["{", "[1]"])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    call = {"id": "c1", "function": {"name": "look", "arguments": arguments}}
    with pytest.raises(ApiError) as caught:
        chat({"role": "assistant", "content": None, "tool_calls": [call]})
    assert caught.value.param == "messages"


def test_a_choice_of_tools_is_kept_to_or_refused() -> None:
    assert chat(tools=[TOOL], tool_choice="auto")["tools"] == [TOOL]
    assert "tools" not in chat(tools=[TOOL], tool_choice="none")
    for choice in ("required", {"type": "function", "function": {"name": "look"}}):
        with pytest.raises(ApiError) as caught:
            chat(tools=[TOOL], tool_choice=choice)
        assert caught.value.param == "tool_choice"


def test_formats() -> None:
    schema = {"type": "object"}
    assert chat(response_format={"type": "json_object"})["format"] == "json"
    assert chat(response_format={"type": "json_schema", "json_schema": {"schema": schema}})["format"] == schema
    assert "format" not in chat(response_format={"type": "text"})


@pytest.mark.parametrize(
    ("capabilities", "family", "effort", "think"),
    [
        ((), "llama", "high", None),
        (("completion",), "llama", "high", None),
        (("thinking",), "qwen3", None, True),
        (("thinking",), "qwen3", "high", True),
        (("thinking",), "qwen3", "none", False),
        (("thinking",), "gptoss", "high", "high"),
        (("thinking",), "gptoss", None, True),
    ],
)
def test_reasoning_is_asked_for_in_the_way_of_the_model(
    capabilities: tuple[str, ...], family: str, effort: str | None, think: Any
) -> None:
    facts = Facts(frozenset(capabilities), families=(family,))
    given = {} if effort is None else {"reasoning_effort": effort}
    assert chat(facts=facts, **given).get("think") == think


def test_facts_of_a_model() -> None:
    shown = {
        "capabilities": ["completion", "vision"],
        "details": {"family": "llama", "families": ["llama"]},
        "model_info": {"general.architecture": "llama", "llama.context_length": 8192, "llama.block_count": 32},
        "parameters": 'temperature                    0.7\nstop                           "<|im_end|>"\nstop   "a b"\n',
    }
    assert Facts.read(shown) == Facts(frozenset({"completion", "vision"}), 8192, 33, ("llama",), ("<|im_end|>", "a b"))
    assert Facts.read({}) == Facts()


def test_a_completion_is_raw_unless_it_has_a_suffix() -> None:
    def body(facts: Facts, **parameters: Any) -> dict[str, Any]:
        return ollama_request.completion_body(Inference("completions", "m", {"prompt": "a"}, 4, parameters), facts)

    assert body(Facts())["raw"] is True
    filled = body(Facts(frozenset({"insert"})), suffix="z")
    assert filled["suffix"] == "z" and "raw" not in filled
    with pytest.raises(ApiError) as caught:
        body(Facts(frozenset({"completion"})), suffix="z")
    assert caught.value.param == "suffix"
    with pytest.raises(ApiError):
        ollama_request.completion_body(Inference("completions", "m", {"prompt": ["a", "b"]}, 4), Facts())
