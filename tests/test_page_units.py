"""The chat page's files, without a browser: its logic in node, its weight, its vendored libraries, and what its markup,
styles and scripts must agree on."""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from shared.contract.errors import CODES
from tests.chat_page import pair_with_page
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import text
from tests.javascript import require_node, run

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "web"
INDEX = (WEB / "index.html").read_text(encoding="utf-8")
OWN_SCRIPTS = sorted((WEB / "chat").glob("*.js"))
STYLES = sorted((WEB / "chat").glob("*.css"))
SCRIPTS = [*OWN_SCRIPTS, *sorted((WEB / "vendor").glob("*/*.js")), ROOT / "clients" / "js" / "dist" / "hearthlink.js"]
LOCK = json.loads((WEB / "vendor" / "vendored.json").read_text(encoding="utf-8"))["libraries"]

# Bytes, as they cross the wire: what a phone loads before the first question.
MAX_SCRIPTS = 45_000
MAX_MARKUP = 15_000
# WCAG 2.2 AA for text of ordinary size.
MIN_CONTRAST = 4.5


def zipped(paths: list[Path]) -> dict[str, int]:
    return {path.name: len(gzip.compress(path.read_bytes(), 9)) for path in paths}


async def test_logic_in_node() -> None:
    require_node()
    files = sorted((ROOT / "tests" / "web").glob("*.test.mjs"))
    said = await run("node", "--test", "--test-reporter=tap", *map(str, files), cwd=ROOT, seconds=60)
    assert re.search(r"^# pass [1-9]", said, re.M), said


async def test_what_it_says_without_scripts_works() -> None:
    written = re.search(r"<noscript>\s*<h1>.*?<code>(EDGE=.*?)</code></pre>", INDEX, re.S)
    assert written is not None
    async with FakeRuntime() as runtime, pair_with_page(runtime.url) as pair:
        lines = html.unescape(written[1]).replace("http://127.0.0.1:8700", pair.url)
        said = await run("bash", "-c", lines, cwd=ROOT, seconds=30)
    deltas = [json.loads(line[6:])["choices"] for line in said.splitlines() if line.startswith("data: {")]
    assert "".join(choice["delta"].get("content") or "" for choices in deltas for choice in choices) == text(5)


def test_weight() -> None:
    scripts = zipped(SCRIPTS)
    assert sum(scripts.values()) <= MAX_SCRIPTS, scripts
    markup = zipped([WEB / "index.html", *STYLES])
    assert sum(markup.values()) <= MAX_MARKUP, markup


def test_vendored_files_are_those_of_the_lock() -> None:
    locked = {
        f"{library['name']}-{library['version']}/{file['file']}": file["sha256"]
        for library in LOCK
        for file in library["files"]
    }
    here = {
        path.relative_to(WEB / "vendor").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (WEB / "vendor").glob("*/*")
    }
    assert here == locked
    assert all(f"{library['name']}-{library['version']}/LICENSE" in locked for library in LOCK)


def test_vendored_files_are_as_released() -> None:
    require_node()
    done = subprocess.run([sys.executable, WEB / "vendor.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_is_preloaded_and_imported_by_a_relative_path() -> None:
    preloaded = set(re.findall(r'<link rel="modulepreload" href="/static/([^"]+)"', INDEX))
    entry = re.findall(r'<script type="module" src="/static/([^"]+)"', INDEX)
    assert entry == ["chat/page.js"]
    served = {path.relative_to(WEB).as_posix() for path in SCRIPTS if path.is_relative_to(WEB)} | {"hearthlink.js"}
    assert preloaded == served - set(entry)
    for path in OWN_SCRIPTS:
        for name in re.findall(r"^(?:import|export) (?:.* from )?'([^']+)'", path.read_text(encoding="utf-8"), re.M):
            assert ((path.parent / name).resolve().relative_to(WEB.resolve()).as_posix()) in served, (
                f"{path.name}: {name}"
            )


def test_every_element_that_a_script_asks_for_is_in_the_page() -> None:
    ids = re.findall(r'\bid="([^"]+)"', INDEX)
    assert len(ids) == len(set(ids))
    for path in OWN_SCRIPTS:
        for wanted in re.findall(r"(?:\$|copyOf)\('([^']+)'\)", path.read_text(encoding="utf-8")):
            assert wanted in ids, f"{path.name} asks for #{wanted}"
    for wanted in re.findall(r' (?:for|aria-labelledby|aria-describedby)="([^"]+)"', INDEX):
        assert wanted in ids


def test_nothing_needs_more_than_the_policy_allows() -> None:
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?! type=\"module\" src=)|javascript:", INDEX)
    assert not re.search(r'(?:src|href)="(?!/static/|/"|#)', INDEX)
    for path in STYLES:
        assert not re.search(r"url\(|@import|@font-face", path.read_text(encoding="utf-8")), path.name
    for path in OWN_SCRIPTS:
        text = path.read_text(encoding="utf-8")
        wrong = re.search(
            r"(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\('style'", text
        )
        assert not wrong, f"{path.name}: {wrong}"


def test_words_for_errors_are_for_errors_that_exist() -> None:
    types = (ROOT / "clients" / "js" / "types" / "index.d.ts").read_text(encoding="utf-8")
    of_client = set(re.findall(r"^  \| '(\w+)'$", types, re.M))
    classes = set(re.findall(r"export class (\w+Error) extends", types))
    blocks = re.findall(r'<p data-for="([^"]*)">', INDEX)
    named = [name for block in blocks for name in block.split()]
    assert len(named) == len(set(named))
    assert set(named) <= set(CODES) | of_client | classes
    # The first match counts, and what fits nothing gets the last one.
    first_class = next(index for index, block in enumerate(blocks) if "Error" in block)
    assert all("Error" in block for block in blocks[first_class:-1])
    assert blocks[-1] == ""


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme: int) -> None:
    css = (WEB / "chat" / "base.css").read_text(encoding="utf-8")
    colours = {
        name: pair.split(",")[scheme].strip()
        for name, pair in re.findall(r"--([\w-]+): light-dark\(([^)]+)\);", css)
        if len(pair.split(",")[scheme].strip()) == 7
    }
    pairs = [*product(("ink", "soft", "accent"), ("ground", "raised", "sunk")), ("ink", "tint"), ("accent", "tint")]
    poor = {
        (text, ground): round(ratio, 2)
        for text, ground in [*pairs, ("on-accent", "accent")]
        if (ratio := contrast(colours[text], colours[ground])) < MIN_CONTRAST
    }
    assert not poor


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2 for two colours as ``#rrggbb``."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
