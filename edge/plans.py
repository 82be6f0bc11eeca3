"""Plans: how much a caller may do. Three are built in; settings change them and add more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

ANY = "*"


@dataclass(frozen=True, slots=True)
class Plan:
    """Limits of one kind of caller; None means no limit, 0 means none at all.

    ``requests_per_minute`` counts every limited route, ``streams`` answers running at once, ``tokens_per_day`` prompt
    and answer together from 00:00 UTC, ``tokens_per_request`` the longest answer. ``tokens_per_day_together`` is a
    day's for all callers of the plan, ``seats`` how many of them there may be: a seat is free again a day after its
    caller's last request. ``models`` and ``chat_types`` are names, ``"*"`` for all; ``scopes`` are what a token of
    this plan may hold. ``own`` names the limits that are not the plan's but one caller's.
    """

    name: str
    requests_per_minute: int | None = None
    streams: int | None = None
    tokens_per_day: int | None = None
    tokens_per_request: int | None = None
    tokens_per_day_together: int | None = None
    seats: int | None = None
    models: tuple[str, ...] = ()
    chat_types: tuple[str, ...] = (ANY,)
    scopes: tuple[str, ...] = ("chat",)
    own: frozenset[str] = frozenset()

    def allows_model(self, model: str) -> bool:
        return ANY in self.models or model in self.models

    def allows_chat_type(self, chat_type: str) -> bool:
        return ANY in self.chat_types or chat_type in self.chat_types

    def limits(self) -> dict[str, int | None]:
        """The ``limits`` object of ``POST /v1/token``."""
        return {name: getattr(self, name) for name in LIMITS}

    def limited(self, limits: Mapping[str, int | None]) -> Plan:
        """This plan with other ``limits`` for one caller, by the names of ``LIMITS``."""
        return replace(self, **limits, own=self.own | limits.keys())

    def by(self, limit: str) -> str:
        """Whose ``limit`` it is, for a sentence to the caller."""
        return "under your own limits" if limit in self.own else f"on plan {self.name!r}"

    def with_lists_of(self, other: Plan) -> Plan:
        """This plan with the models and chat types of ``other`` besides its own."""
        models, chat_types = _united(self.models, other.models), _united(self.chat_types, other.chat_types)
        return replace(self, models=models, chat_types=chat_types)


LIMITS = ("requests_per_minute", "streams", "tokens_per_day", "tokens_per_request")
_LISTS = ("models", "chat_types", "scopes")


def _united(names: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    return names if ANY in names else (*names, *(name for name in more if name not in names))


def built_in() -> dict[str, Plan]:
    """The plans that exist without any settings, by name."""
    plans = (
        Plan("anonymous", 20, 2, 20_000, 1024, tokens_per_day_together=1_000_000),
        Plan("member", 60, 4, 200_000, 4096, models=(ANY,)),
        Plan("owner", models=(ANY,), scopes=("chat", "admin")),
    )
    return {plan.name: plan for plan in plans}


def plans_from(settings: Mapping[str, Any]) -> dict[str, Plan]:
    """The built-in plans as ``settings`` (plan name to an object with the fields of Plan) change and add to them.

    A field that is not set stays as built in; in a plan of a new name it is what ``member`` has, because a forgotten
    field must not mean "no limit".
    """
    plans = built_in()
    for name, wanted in settings.items():
        base = plans.get(name) or replace(plans["member"], name=name)
        plans[name] = replace(base, **_changes(wanted))
    return plans


def plan_for(plans: Mapping[str, Plan], name: str, scopes: Sequence[str] = ()) -> Plan:
    """The plan of a credential that is to have ``scopes``. Raises ValueError with a sentence for whoever makes it."""
    if name not in plans:
        known = ", ".join(sorted(plans))
        raise ValueError(f"There is no plan {name[:80]!r}. There are: {known}. Settings add more: [plans.NAME].")
    plan = plans[name]
    if missing := [scope for scope in scopes if scope not in plan.scopes]:
        has = ", ".join(plan.scopes)
        raise ValueError(f"The plan {name} does not have the scope {missing[0][:80]!r}. It has: {has}.")
    return plan


def _changes(wanted: Any) -> dict[str, Any]:
    given = getattr(wanted, "model_fields_set", None)
    changes: dict[str, Any] = {}
    for key in (field.name for field in fields(Plan) if field.name != "name"):
        value: Any = getattr(wanted, key, None)
        # A pydantic model says which of its fields were written down; any other object says it by None.
        if key not in given if given is not None else value is None:
            continue
        changes[key] = tuple(value) if key in _LISTS else value
    return changes
