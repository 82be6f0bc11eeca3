"""The index of hostile and faulty cases: what each is, what has to come of it, and that some test proves it.

A test says which cases it proves: ``@pytest.mark.case("A3")``. Run the tests of a family with ``pytest -m case``.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

# Requests that mean harm.
_REQUESTS = {
    "A1": "invalid JSON: 400 invalid_json",
    "A2": "a list, a text or null at the top: 400 invalid_json",
    "A3": "100,000 levels of nesting: 400 invalid_json, never a 500",
    "A4": "a number of 5,000 digits, 1e400, NaN, Infinity: 400 invalid_json",
    "A5": "a key twice in one object: 400 invalid_json",
    "A6": "a body a byte over the limit, with and without Content-Length: 413, and no more of it is read",
    "A7": "a body shorter than its Content-Length, then silence: 408 after edge.body_timeout, closed",
    "A8": "framing that two servers could read differently: 400, closed",
    "A9": "500 connections that trickle their headers: each closed after edge.header_timeout, nobody else waits",
    "A10": "a body that trickles: 408 after edge.body_timeout",
    "A11": "a connection on which nothing is sent: closed after edge.header_timeout",
    "A12": "100 KiB in a header, 1,000 headers, a URL of 64 KiB: 431 or 414 in bounded memory",
    "A13": "invalid UTF-8, a lone surrogate, NUL: 400 invalid_json, never a 500 at the runtime",
    "A14": "line ends, escape sequences or 4 KiB as X-Request-Id: an id of ours, the log keeps one line a request",
    "A15": "a compressed body: 415, nothing is inflated",
    "A16": "another media type, method or path: 415, 405 or 404 in JSON",
    "A17": "50 pipelined requests: answered in order, no answer in another's place",
    "A18": "values out of bounds and lists without end: refused at the edge, the node untouched",
}
# Credentials and addresses that are not what they seem.
_IDENTITY = {
    "B19": "a forged signature: 401 invalid_token",
    "B20": "a token signed for another purpose: 401 invalid_token",
    "B21": "a JWT without a signature: 401 invalid_token",
    "B22": "other spellings of a good token: 401, and a revoked one stays revoked",
    "B23": "an expired token: 401 token_expired, and the client gets one new token for all that wait",
    "B24": "a token issued 20 s ahead: accepted; 5 minutes ahead: 401 invalid_token",
    "B25": "revoked while an answer runs: the stream ends in token_revoked within 5 s",
    "B26": "signing keys rotated under load: no request fails",
    "B27": "one invite entered 50 times at once: one is let in",
    "B28": "a token in the URL: 400, and it stands in no log",
    "B29": "Origin null, another, a listed one with more behind it, in capitals, with a port: 403",
    "B30": "X-Forwarded-For forged, repeated, with ports, IPv6, garbage: counted as the same caller",
    "B31": "a forged Host, an absolute URL, odd characters in Host: 400",
    "B32": "Tailscale-User headers on the public listener: not read",
    "B33": "another caller's answer stopped or resumed: 404",
}
# What is below the edge fails.
_INFRASTRUCTURE = {
    "E57": "Redis is down: known callers go on, rates are half, quotas 503, nobody without a name comes in",
    "E58": "Redis takes 3 s: 50 ms are waited for, then as when it is down",
    "E59": "Redis fails over (READONLY, MOVED, a reset): one retry",
    "E60": "Redis evicts keys: refused at the start and by the doctor; no quota begins anew unnoticed",
    "E61": "SIGTERM while answers run: they finish or end in server_draining, exit within 30 s",
    "E62": "SIGKILL: reservations are settled, callers see an answer that broke off",
    "E63": "the audit's disk is full: served, the newest lines kept, an alarm; refused in strict mode",
    "E64": "the log's pipe is blocked: lines are dropped and counted, the loop never stalls",
    "E65": "no file descriptor is left: no busy loop, health answers",
    "E66": "the wall clock jumps an hour: no timer notices, tokens as in B24",
    "E67": "a certificate that expired or is not there: said in words, by the doctor too",
    "E68": "broken settings at a reload: the old ones are kept, and it is said",
    "E69": "90 % of the memory limit: 503 overloaded before the kernel kills",
    "E70": "the loop stalls for over 250 ms: counted, and systemd's watchdog is told nothing",
    "E71": "500 callers renew their tokens at once: all within a second at the 99th percentile",
    "E72": "a port in use, or no tailnet address yet: one clear message, and tried again where it may pass",
}
CASES = _REQUESTS | _IDENTITY | _INFRASTRUCTURE


def marks_of(source: str) -> Iterator[tuple[str, str]]:
    """(case, test) of each ``pytest.mark.case`` on a test of ``source``, and in its parameters."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            for decorator in node.decorator_list:
                for call in ast.walk(decorator):
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.case":
                        yield from ((ast.literal_eval(argument), node.name) for argument in call.args)


@pytest.fixture(scope="module")
def tests_by_case() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for case, test in marks_of(path.read_text(encoding="utf-8")):
            found[case].append(f"{path.relative_to(TESTS)}::{test}")
    return found


def test_marks_are_found_on_tests_and_in_their_parameters() -> None:
    source = """
@pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.case("A2"))])
@pytest.mark.case("A1", "B19")
async def test_one(x): ...

@pytest.mark.case("A3")
def not_a_test(): ...
"""
    assert sorted(marks_of(source)) == [("A1", "test_one"), ("A2", "test_one"), ("B19", "test_one")]


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_a_test(tests_by_case: dict[str, list[str]], case: str) -> None:
    assert tests_by_case.get(case), f"no test is marked with the case {case}: {CASES[case]}"


def test_every_mark_names_a_case(tests_by_case: dict[str, list[str]]) -> None:
    assert {case: tests for case, tests in tests_by_case.items() if case not in CASES} == {}
