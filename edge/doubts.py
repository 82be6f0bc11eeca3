"""Settings that are valid, and yet hardly what their owner wants."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from urllib.parse import urlsplit

from edge.plans import built_in
from shared import addresses
from shared.addresses import NODE_PORT
from shared.settings import Settings
from shared.settings_edge import EdgeSettings


def doubts(settings: Settings) -> Iterator[str]:
    """A sentence for each, with what to write instead; for the log at the start."""
    edge = settings.edge
    yield from _of_doors(edge, {*built_in(), *settings.plans})
    yield from _of_upstreams(edge)
    yield from _of_lists(edge)
    if edge.public_url is None or addresses.is_loopback(urlsplit(edge.public_url).hostname or ""):
        return
    if edge.page and (edge.anonymous or edge.invites) and edge.public_url not in edge.allowed_origins:
        yield (
            f'the chat page is served but gets no token: add "{edge.public_url}" to edge.allowed_origins, or switch the'
            " page off with edge.page = false"
        )
    if not edge.trusted_proxies and addresses.is_loopback(addresses.split_listen(edge.listen)[0]):
        yield (
            "all callers will look like this machine and share one limit: name the server in front of the edge in"
            ' edge.trusted_proxies, such as ["127.0.0.1"]'
        )


def _of_doors(edge: EdgeSettings, plans: Collection[str]) -> Iterator[str]:
    for door, is_open in (("oidc", edge.oidc.issuer), ("cloudflare_access", edge.cloudflare_access.team)):
        plan = getattr(edge, door).plan
        if is_open and plan not in plans:
            yield f'edge.{door}.plan is "{plan}", which is no plan, so callers are refused: add [plans.{plan}]'


def _of_lists(edge: EdgeSettings) -> Iterator[str]:
    listed = edge.allowed_addresses or edge.denied_addresses
    if listed and not edge.trusted_proxies and addresses.is_loopback(addresses.split_listen(edge.listen)[0]):
        yield (
            "all callers look like this machine to edge.allowed_addresses and edge.denied_addresses: name the server in"
            ' front of the edge in edge.trusted_proxies, such as ["127.0.0.1"]'
        )


def _of_upstreams(edge: EdgeSettings) -> Iterator[str]:
    for name, upstream in edge.upstreams.items():
        url = urlsplit(upstream.url or "")
        if addresses.is_tailnet(url.hostname or ""):
            yield (
                f"edge.upstreams.{name}.url leads into a tailnet, whose addresses change: write node ="
                f' "{url.hostname}" instead, with port where it is not {NODE_PORT}, so that the edge finds the machine'
                " again, keeps the path to it warm and tells what is wrong"
            )
