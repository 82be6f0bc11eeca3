"""The door for guests: a page is looked at before an invite is spent, and a program needs none. Which invites are valid
is the store's to say, see ``tests/store`` and ``test_invites``."""

from __future__ import annotations

import pytest

from edge.doors.invite import InviteDoor
from edge.doors.pages import Page
from edge.principals import Principal
from shared.contract.errors import ApiError

APP = "https://app.example.com"
SERVED = "https://edge.tailnet.ts.net"  # our own page behind Serve, which is in no list
GUEST = Principal("invite_0123456789ab_x", "invite", "member", ("chat",), origin=APP)


class Book:
    """A store that lets everybody in and writes down whom."""

    def __init__(self) -> None:
        self.admitted: list[tuple[str, str, str | None]] = []
        self.renewed: list[Principal] = []

    async def admit(self, text: str, ip: str, origin: str | None) -> Principal:
        self.admitted.append((text, ip, origin))
        return GUEST

    async def readmit(self, guest: Principal) -> Principal:
        self.renewed.append(guest)
        return guest


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def door(book: Book) -> InviteDoor:
    return InviteDoor([APP], book.admit, book.readmit)


@pytest.mark.parametrize("page", [Page(APP, "cross-site"), Page(APP, None), Page(None, None)])
async def test_a_listed_page_or_a_program_is_let_in(door: InviteDoor, book: Book, page: Page) -> None:
    assert await door.enter("hli_x", page, ip="203.0.113.7") is GUEST
    assert await door.renew(GUEST, page) is GUEST
    assert book.admitted == [("hli_x", "203.0.113.7", page.origin)] and book.renewed == [GUEST]


@pytest.mark.parametrize(
    "page", [Page("https://evil.example", None), Page("null", None), Page(None, "same-origin"), Page(APP, "none")]
)
async def test_any_other_page_is_refused_before_anything_is_spent(door: InviteDoor, book: Book, page: Page) -> None:
    for entering in (door.enter("hli_x", page, ip="203.0.113.7"), door.renew(GUEST, page)):
        with pytest.raises(ApiError) as caught:
            await entering
        assert caught.value.code == "origin_not_allowed"
    assert book.admitted == book.renewed == []


async def test_our_own_page_was_looked_at_already(door: InviteDoor, book: Book) -> None:
    page = Page(SERVED, "same-origin")
    assert await door.enter("hli_x", page, ip="100.64.0.7", own=SERVED) is GUEST
    assert await door.renew(GUEST, page, own=SERVED) is GUEST
    assert book.admitted == [("hli_x", "100.64.0.7", SERVED)]


async def test_who_shows_nothing_is_asked_for_an_invite(door: InviteDoor) -> None:
    error = door.missing()
    assert (error.code, error.status, error.param) == ("missing_token", 401, "invite")
