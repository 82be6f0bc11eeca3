"""What the policy of a tailnet lets a person do here: the values of a grant's capability, read as a sum. Pure.

    {"plan": "beta", "roles": ["chat"], "limits": {"requests_per_minute": 30, "tokens_per_day": "unlimited"}}

Each grant that applies adds its values, and none takes anything away: of each limit the largest counts, and the roles,
models and chat types of all. Within one value a field that is missing is as the plan has it; no plan is ``member``, no
roles are ``chat``. A value that cannot be read in full gives nothing: what was not understood may have been meant as a
bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edge.plans import ANY, LIMITS, Plan

_FIELDS = frozenset({"plan", "roles", "role", "limits"})
# A role and the scopes of a token that it stands for.
_SCOPES: Mapping[str, tuple[str, ...]] = {"chat": ("chat",), "admin": ("chat", "admin")}
_UNLIMITED = "unlimited"
# Far above what anybody counts to; a token carries its limits and must not grow without bound.
_LARGEST = 10**12
_LONGEST_NAME = 64
_MOST_PLANS = 8  # a token names them


@dataclass(frozen=True, slots=True)
class Granted:
    """``limits`` by the names of ``plans.LIMITS``, None is no limit. ``plans`` together say which models and chat
    types: the one that lists most, which names the whole, then those that add to it."""

    plans: tuple[Plan, ...]
    scopes: frozenset[str]
    limits: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Merged:
    """``granted`` is None where no value gives anything. ``faults`` say what is wrong with the others, one sentence
    each, for the owner."""

    granted: Granted | None
    faults: tuple[str, ...]


def merge(values: Iterable[object], plans: Mapping[str, Plan]) -> Merged:
    """The sum of ``values``, in whatever order they come."""
    given: list[Granted] = []
    faults: list[str] = []
    for value in values:
        try:
            given.append(read(value, plans))
        except ValueError as fault:
            faults.append(str(fault))
    if not given:
        return Merged(None, tuple(faults))
    needed = _needed({plan for one in given for plan in one.plans})
    if len(needed) > _MOST_PLANS:
        left_out = ", ".join(plan.name for plan in needed[_MOST_PLANS:])
        faults.append(f"they name more than {_MOST_PLANS} plans, and the models of these are left out: {left_out}")
    limits = {name: _most([one.limits[name] for one in given]) for name in LIMITS}
    scopes = frozenset[str]().union(*(one.scopes for one in given))
    return Merged(Granted(needed[:_MOST_PLANS], scopes, limits), tuple(faults))


def read(value: object, plans: Mapping[str, Plan]) -> Granted:
    """What one value gives. Raises ValueError with a sentence."""
    if not isinstance(value, dict):
        raise ValueError('a value of the capability is no object: write {"plan": "member"}')
    if unknown := sorted(str(name) for name in value if name not in _FIELDS):
        raise ValueError(f"{unknown[0][:_LONGEST_NAME]!r} is no field of it: there are plan, roles and limits")
    plan = _plan(value.get("plan", "member"), plans)
    allowed = _scopes(value) & set(plan.scopes)
    if not allowed:
        raise ValueError(f"the plan {plan.name!r} may not hold its roles: name another plan, or set its scopes")
    return Granted((plan,), frozenset(allowed), {**plan.limits(), **_limits(value.get("limits", {}))})


def example(source: str, destination: str, port: int, capability: str) -> dict[str, Any]:
    """The grant for a policy that lets ``source`` (a login, group or autogroup) in at ``destination`` (a tag or an
    address)."""
    # A policy tells a person by the @, which the logins of a headscale server may lack.
    source = source if "@" in source or ":" in source else f"{source}@"
    app = {capability: [{"plan": "member"}]}
    return {"src": [source], "dst": [destination], "ip": [f"tcp:{port}"], "app": app}


def _plan(name: object, plans: Mapping[str, Plan]) -> Plan:
    plan = plans.get(name) if isinstance(name, str) else None
    if plan is None:
        raise ValueError(f"there is no plan {str(name)[:_LONGEST_NAME]!r} here: there are {', '.join(sorted(plans))}")
    return plan


def _scopes(value: Mapping[str, Any]) -> set[str]:
    roles = value.get("roles", [])
    if isinstance(roles, list) and "role" in value:
        roles = [*roles, value["role"]]
    if not isinstance(roles, list) or not all(isinstance(role, str) and role in _SCOPES for role in roles):
        raise ValueError('its roles are not understood: write "roles": ["chat"], or ["admin"]')
    return {scope for role in roles or ["chat"] for scope in _SCOPES[role]}


def _limits(given: object) -> dict[str, int | None]:
    if not isinstance(given, dict):
        raise ValueError('its limits are no object: write "limits": {"streams": 2}')
    if unknown := [str(name) for name in given if name not in LIMITS]:
        raise ValueError(f"{unknown[0][:_LONGEST_NAME]!r} is no limit: there are {', '.join(LIMITS)}")
    for name, limit in given.items():
        if limit != _UNLIMITED and (type(limit) is not int or not 0 <= limit <= _LARGEST):
            raise ValueError(f'its limit {name} is not understood: write a whole number, or "{_UNLIMITED}"')
    return {name: None if limit == _UNLIMITED else limit for name, limit in given.items()}


def _most(limits: Iterable[int | None]) -> int | None:
    found = list(limits)
    return None if None in found else max(limit for limit in found if limit is not None)


def _needed(plans: Iterable[Plan]) -> tuple[Plan, ...]:
    """Those that list a model or a chat type that no wider one does."""
    together, *others = sorted(plans, key=_width, reverse=True)
    needed = [together]
    for plan in others:
        if (wider := together.with_lists_of(plan)) != together:
            together = wider
            needed.append(plan)
    return tuple(needed)


def _width(plan: Plan) -> tuple[bool, int, bool, int, str]:
    """How much it lists; its name only makes the order the same each time."""
    return ANY in plan.models, len(plan.models), ANY in plan.chat_types, len(plan.chat_types), plan.name
