"""What can go wrong with a store, in sentences for the owner."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot be used; the text says why and what to do."""


class StoreNotYet(StoreError):
    """The store may be usable soon, without anybody's doing. It is worth waiting for as many seconds as ``patience``
    says, maybe without end."""

    def __init__(self, text: str, patience: float) -> None:
        super().__init__(text)
        self.patience = patience


class AdminError(ValueError):
    """What the owner asked for cannot be done; the text says why and what to do."""


class NoSuchError(AdminError):
    """There is no living key, invite or principal of that name."""
