"""The door for guests: an invite, ``hli_…``, from a page on a listed origin or from a program; and the way back in with
the token it gave.

An invite is a secret, as a key is, so a program that shows one needs no Origin. A browser always says where its page
is from, and what it says has to be listed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from edge.doors.pages import Page
from edge.principals import Principal
from shared.contract.errors import ApiError


class InviteDoor:
    """``admit(text, ip, origin)`` and ``readmit(guest)`` are the store's: they know which invites are valid.

    ``own`` is the origin of our own page where that is in no list and was checked. Both ways in raise ApiError
    ``origin_not_allowed``, and what the store raises.
    """

    def __init__(
        self,
        allowed_origins: Collection[str],
        admit: Callable[[str, str, str | None], Awaitable[Principal]],
        readmit: Callable[[Principal], Awaitable[Principal]],
    ) -> None:
        self._allowed_origins = allowed_origins
        self._admit = admit
        self._readmit = readmit

    async def enter(self, text: str, page: Page, *, ip: str, own: str | None = None) -> Principal:
        """Whom the invite ``text`` lets in, locked to the page's origin."""
        self._check_page(page, own)
        return await self._admit(text, ip, page.origin)

    async def renew(self, guest: Principal, page: Page, *, own: str | None = None) -> Principal:
        """``guest``, who showed a valid token of this door, for another token."""
        self._check_page(page, own)
        return await self._readmit(guest)

    def missing(self) -> ApiError:
        """What somebody who shows nothing is told. A page asks for an invite when it reads ``param``."""
        return ApiError(
            "missing_token",
            'This edge is by invitation. Send {"invite":"hli_…"} with the invite that you were given, or an API key.',
            param="invite",
        )

    def _check_page(self, page: Page, own: str | None) -> None:
        if own is None:
            page.listed_or_program(self._allowed_origins)
