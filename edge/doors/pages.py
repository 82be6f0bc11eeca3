"""What a browser says of the page that asks: the headers Origin and Sec-Fetch-Site. A program sends neither."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from shared.contract.errors import ApiError

# What a browser sends with a request that a page made; "none" is a person typing the address.
_FROM_A_PAGE = frozenset({"same-origin", "same-site", "cross-site"})
# Repeated in the refusal only when it can hold nothing but an origin.
_SHOWABLE = re.compile(r"[a-z][a-z0-9+.-]{1,20}://[A-Za-z0-9.:_\[\]-]{1,255}")


@dataclass(frozen=True, slots=True)
class Page:
    """``origin`` and ``fetch_site`` as they were sent, None where they were not."""

    origin: str | None
    fetch_site: str | None

    @classmethod
    def read(cls, headers: Iterable[tuple[bytes, bytes]]) -> Page:
        """Of ASGI's headers; the first of each, as everywhere."""
        found: dict[bytes, str] = {}
        for name, value in headers:
            if name in (b"origin", b"sec-fetch-site"):
                found.setdefault(name, value.decode("latin-1"))
        return cls(found.get(b"origin"), found.get(b"sec-fetch-site"))

    def listed(self, allowed_origins: Collection[str]) -> str:
        """The page's origin, one of those that are allowed, compared exactly. Raises ApiError
        ``origin_not_allowed``."""
        if self.origin is None:
            raise _refused(
                "No Origin header was sent, and only pages on a listed origin get a token without an API key."
            )
        if self.origin not in allowed_origins:
            shown = (
                f"The origin {self.origin}" if _SHOWABLE.fullmatch(self.origin) else "The Origin header that was sent"
            )
            raise _refused(f"{shown} is not in the list of those that may get a token.")
        if self.fetch_site is not None and self.fetch_site not in _FROM_A_PAGE:
            raise _refused("The browser says (Sec-Fetch-Site) that no page made this request.")
        return self.origin

    def listed_or_program(self, allowed_origins: Collection[str]) -> str | None:
        """As ``listed``; None for a program, which needs no page where it shows who it is."""
        return None if self.origin is None and self.fetch_site is None else self.listed(allowed_origins)


def _refused(why: str) -> ApiError:
    return ApiError(
        "origin_not_allowed",
        f"{why} The owner of this edge lists origins (scheme, host, port) in the setting edge.allowed_origins.",
    )
