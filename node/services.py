"""What a running node consists of. Made and closed by ``node.app``; handed to every route."""

from __future__ import annotations

from dataclasses import dataclass, field

from node.conversations.conversations import Conversations
from node.events import Events
from node.gpu import Gpus
from node.metrics import Metrics
from node.models.models import Models
from node.placement import Placement
from node.prompts import ChatTypes
from node.running import Running
from node.runtime import Runtime
from node.special_tokens import Neutraliser
from node.turns import Turns
from shared.contract.snapshot import RuntimeState
from shared.ticker import Ticker


@dataclass(slots=True)
class Timeouts:
    """Seconds a runtime may keep a caller waiting: for its first token, and between two."""

    first_token: float
    stall: float


@dataclass(slots=True)
class Services:
    node_id: str
    boot_id: str
    runtime: Runtime
    models: Models
    chat_types: ChatTypes
    turns: Turns
    running: Running
    ticker: Ticker
    metrics: Metrics
    events: Events
    timeouts: Timeouts
    max_tokens: int
    max_body: int
    conversations: Conversations | None = None  # None where the owner wants none
    placement: Placement | None = None  # None on loopback, which needs no looking after
    gpus: Gpus = field(default_factory=Gpus)
    neutraliser: Neutraliser = field(default_factory=lambda: Neutraliser(frozenset()))
    runtime_state: RuntimeState = "starting"  # the last one that was logged
    draining: bool = False
