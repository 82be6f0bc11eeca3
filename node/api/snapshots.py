"""What this node says of itself now: for its edges over the link, and for its own health and model routes."""

from __future__ import annotations

from node.api.ways import surfaces_of
from node.services import Services
from shared import __version__
from shared.contract.snapshot import NodeSnapshot


def snapshot(node: Services, seq: int = 0) -> NodeSnapshot:
    status = node.models.status()
    return NodeSnapshot(
        node_id=node.node_id,
        boot_id=node.boot_id,
        seq=seq,
        version=__version__,
        runtime=node.runtime.kind,
        runtime_state=status.state,
        reason=status.reason,
        default_model=status.default_model,
        models=status.models,
        chat_types=node.chat_types.infos(),
        slots=node.turns.slots,
        running=node.turns.running,
        queued=node.turns.queued,
        queue_limit=node.turns.queue_limit,
        max_tokens=node.max_tokens,
        surfaces=surfaces_of(status.apis),
        streamed=tuple(model.id for model in status.models if node.models.defaults(model.alias_of or model.id).stream),
    )
