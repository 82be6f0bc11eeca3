"""JSON schemas of callers: what would cost a runtime more than an answer is refused before it gets there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.contract.body import parse_body
from shared.contract.chat_completions import ChatCompletionBody
from shared.contract.errors import ApiError
from shared.contract.messages import MessagesBody
from shared.contract.responses import ResponsesBody
from shared.contract.schema import check_schema

HI = [{"role": "user", "content": "hi"}]
CIRCLE: dict[str, Any] = {
    "allOf": [{"$ref": "#/$defs/a"}],
    "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
}


def properties(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {} for i in range(count)}}


def chain(steps: int) -> dict[str, Any]:
    links: dict[str, Any] = {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(steps)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(steps): {"type": "null"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        properties(100),
        {"type": "object", "properties": {f"o{i}": properties(90) for i in range(5)}},
        {"enum": list(range(500))},
        {"type": "object", "properties": {"$ref": {"type": "string"}, "next": {"$ref": "#"}}},
        {"prefixItems": [{"type": "null"}], "items": {"$ref": "#/prefixItems/0"}},
        {"allOf": [{"$ref": "#/$defs/a"}, properties(50)], "$defs": {"a": properties(50)}},
        {"allOf": "none", "properties": 1, "enum": {}, "$ref": 1},
        chain(7),
    ],
)
def test_what_a_grammar_is_soon_made_of(schema: dict[str, Any]) -> None:
    assert check_schema(schema) is schema


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (properties(101), "at most 100 properties"),
        ({"properties": {f"o{i}": properties(99) for i in range(6)}}, "at most 500 properties"),
        ({"a": [0] * 1000}, "at most 1000 parts"),
        ({"enum": list(range(501))}, "at most 500 values"),
        ({"allOf": [properties(60), properties(60)]}, "at most 100 properties"),
        (
            {"allOf": [{"anyOf": [{"$ref": "#/$defs/a"}] * 3}], "$defs": {"a": properties(40)}},
            "at most 100 properties",
        ),
        (CIRCLE, "leads to itself"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}}, "leads to itself"),
        (chain(8), "leads to itself, or over more than 8"),
        ({"$ref": "https://example.org/schema"}, "refers only to itself"),
        ({"$ref": "#name"}, "refers only to itself"),
        ({"$ref": "#/nowhere"}, "names a place that is not in it"),
        ({"items": [{"$ref": "#/items/1"}]}, "names a place that is not in it"),
        ({"items": [{"$ref": "#/items/00000000000"}]}, "names a place that is not in it"),
    ],
)
def test_what_a_grammar_would_be_long_made_of(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_schema(schema)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (
            ChatCompletionBody,
            lambda schema: {"messages": HI, "tools": [{"type": "function", "function": {"name": "f", **schema}}] * 21},
        ),
        (
            MessagesBody,
            lambda schema: {"messages": HI, "tools": [{"name": "f", "input_schema": schema["parameters"]}] * 21},
        ),
        (ResponsesBody, lambda schema: {"input": "hi", "tools": [{"type": "function", "name": "f", **schema}] * 21}),
    ],
)
def test_tools_have_a_bound_together(kind: Any, fields: Any) -> None:
    parse_body(kind, json.dumps(fields({"parameters": properties(95)})).encode())
    with pytest.raises(ApiError) as refused:
        parse_body(kind, json.dumps(fields({"parameters": properties(96)})).encode())
    assert (refused.value.param, "2000 properties together" in refused.value.message) == ("tools", True)
