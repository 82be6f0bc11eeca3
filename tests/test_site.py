"""The page's files as the edge keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.site import CLIENT, WEB, Site, SiteError


def copy_of(web: Path, folder: Path) -> Path:
    copy = folder / "web"
    for path in web.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(web)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(web)).write_bytes(path.read_bytes())
    return copy


def test_any_changed_byte_is_another_version(tmp_path: Path) -> None:
    web = copy_of(WEB, tmp_path)
    before = Site.load(web, CLIENT)
    assert before.prefix == Site.load().prefix
    (web / "new.css").write_text("p { margin: 0 }")
    assert Site.load(web, CLIENT).prefix != before.prefix
    (web / "new.css").unlink()
    client = tmp_path / "hearthlink.js"
    client.write_bytes(CLIENT.read_bytes() + b"\n")
    after = Site.load(web, client)
    assert after.prefix != before.prefix
    assert after.prefix.encode() in after.index.body
    assert after.index.etag != before.index.etag


def test_notes_and_licences_are_not_served(tmp_path: Path) -> None:
    web = copy_of(WEB, tmp_path)
    (web / "notes.md").write_text("for developers")
    (web / ".page.js").write_text("an editor's")
    (web / "other.html").write_text("a page without a policy")
    assert Site.load(web, CLIENT).prefix == Site.load().prefix


def test_a_missing_page_is_told(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"index\.html .*install Hearthlink again"):
        Site.load(tmp_path, CLIENT)
    with pytest.raises(SiteError, match=r"gone\.js"):
        Site.load(WEB, tmp_path / "gone.js")
