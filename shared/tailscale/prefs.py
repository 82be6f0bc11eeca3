"""The preferences of tailscaled that matter here."""

from __future__ import annotations

from dataclasses import dataclass

from shared.tailscale.reading import Json, flag, number, text, texts


@dataclass(frozen=True, slots=True)
class Prefs:
    """None and empty are unknown. ``shields_up``: nothing may come in, a node with it is unreachable. ``accept_dns``:
    names of the tailnet resolve on this machine."""

    control_url: str
    want_running: bool | None
    logged_out: bool | None
    shields_up: bool | None
    accept_dns: bool | None
    accept_routes: bool | None
    host_name: str
    tags: tuple[str, ...]
    services: tuple[str, ...]
    operator: str
    netfilter_mode: int

    @classmethod
    def read(cls, answer: Json) -> Prefs:
        return cls(
            control_url=text(answer.get("ControlURL")),
            want_running=flag(answer.get("WantRunning")),
            logged_out=flag(answer.get("LoggedOut")),
            shields_up=flag(answer.get("ShieldsUp")),
            accept_dns=flag(answer.get("CorpDNS")),
            accept_routes=flag(answer.get("RouteAll")),
            host_name=text(answer.get("Hostname")),
            tags=texts(answer.get("AdvertiseTags")),
            services=texts(answer.get("AdvertiseServices")),
            operator=text(answer.get("OperatorUser")),
            netfilter_mode=number(answer.get("NetfilterMode")),
        )


def changed(**fields: object) -> dict[str, object]:
    """The body that changes ``fields``, named as tailscaled does: ``changed(ShieldsUp=False)``."""
    return {**fields, **{f"{field}Set": True for field in fields}}
