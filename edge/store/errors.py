"""What can go wrong with a store, in sentences for the owner."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot be used; the text says why and what to do."""


class AdminError(ValueError):
    """What the owner asked for cannot be done; the text says why and what to do."""


class NoSuchError(AdminError):
    """There is no living key, invite or principal of that name."""
