"""The page and its files, read once and kept compressed: what ``/`` and ``/static/`` are answered with."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Beside the packages in a checkout and in a wheel alike.
_ROOT = Path(__file__).resolve().parent.parent
WEB = _ROOT / "web"
CLIENT = _ROOT / "clients" / "js" / "dist" / "hearthlink.js"

# Pages are not among them: a page needs the policy that only ``/`` is sent with.
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PAGE = "text/html; charset=utf-8"
_STATIC = re.compile(rb'(\b(?:src|href)=")/static/')
_DIGEST_CHARACTERS = 16  # 64 bits: it tells versions apart, it does not prove them
_GZIP_PAYS_FROM = 512  # bytes; below it the header of a gzip stream eats what it saves


class SiteError(Exception):
    """The page's files are not as they were installed; the text says which and what to do."""


@dataclass(frozen=True, slots=True)
class File:
    """``gzipped`` is None where compression does not pay. ``etag`` is weak, because both encodings share it (RFC 9110
    §8.8.3)."""

    body: bytes
    gzipped: bytes | None
    content_type: str
    etag: str


@dataclass(frozen=True, slots=True)
class Site:
    """``files`` by their path below ``prefix``, which changes with any byte of them, so that they may be cached for
    ever."""

    index: File
    files: Mapping[str, File]
    prefix: str

    @classmethod
    def load(cls, web: Path = WEB, client: Path = CLIENT) -> Site:
        """Read what browsers need of ``web``, and ``client`` as ``hearthlink.js``. Raises SiteError when a file is
        missing."""
        try:
            return cls._load(web, client)
        except OSError as error:
            text = f"the page's file {error.filename} cannot be read ({error.strerror}): install Hearthlink again"
            raise SiteError(text) from None

    @classmethod
    def _load(cls, web: Path, client: Path) -> Site:
        found = {
            path.relative_to(web).as_posix(): path.read_bytes()
            for path in sorted(web.rglob("*"))
            if path.suffix in _TYPES and not path.name.startswith(".") and path.is_file()
        }
        found["hearthlink.js"] = client.read_bytes()
        digest = hashlib.sha256()
        for name, body in sorted(found.items()):
            digest.update(b"%d %d " % (len(name), len(body)) + name.encode() + body)
        prefix = f"/static/{digest.hexdigest()[:_DIGEST_CHARACTERS]}/"
        page = _STATIC.sub(rb"\1" + prefix.encode(), (web / "index.html").read_bytes())
        files = {name: _file(_TYPES[Path(name).suffix], body) for name, body in found.items()}
        return cls(_file(_PAGE, page), files, prefix)


def _file(content_type: str, body: bytes) -> File:
    gzipped = gzip.compress(body, mtime=0) if len(body) >= _GZIP_PAYS_FROM else None
    return File(body, gzipped, content_type, f'W/"{hashlib.sha256(body).hexdigest()[:_DIGEST_CHARACTERS]}"')
