"""The answer of ``whois``: which member of the tailnet an address belongs to, and what it may do here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.tailscale.nodes import Node, User
from shared.tailscale.reading import Json, capabilities, mapping


@dataclass(frozen=True, slots=True)
class WhoIs:
    """``capabilities`` are what the policy's grants give this caller towards this machine: name to a list of values,
    one for each grant that applies, to be read as a sum. They change with the policy, and no event tells: ask again.

    It says whose an address is, not that a packet came through the tunnel.
    """

    node: Node
    user: User
    capabilities: Mapping[str, tuple[Any, ...]]

    @property
    def name(self) -> str:
        """For a log: the machine where it is tagged, else the person."""
        return self.node.name if self.node.tags or not self.user.login else self.user.login

    @classmethod
    def read(cls, answer: Json) -> WhoIs:
        return cls(
            node=Node.from_node(mapping(answer.get("Node"))),
            user=User.from_profile(mapping(answer.get("UserProfile"))),
            capabilities=capabilities(answer.get("CapMap")),
        )
