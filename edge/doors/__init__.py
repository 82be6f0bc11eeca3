"""Doors: one file per way to be let in. Each has ``enter(...) -> Principal``, or raises an ApiError that says why."""
