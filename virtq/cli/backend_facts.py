"""What a vhost-user back-end tells, or lets be found out, that a driver has no use for."""

from __future__ import annotations

from dataclasses import dataclass

from virtq.errors import TransportError
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.exchange import Exchange, Refused
from virtq.transports.vhost_user.messages import PROTOCOL_FEATURES, Front, P
from virtq.transports.vhost_user.protocol import FrontendProtocol
from virtq.transports.vhost_user.rings import MAX_QUEUE_SIZE, MAX_QUEUES, Ring
from virtq.transports.vhost_user.wire import U64, VringState

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class BackendFacts:
    """None for what cannot be known."""

    protocol_features: P
    memory_slots: int | None
    queue_sizes: list[int] | None
    """For each virtqueue the largest power of two that is accepted."""


def backend_facts(path: str) -> BackendFacts:
    """Ask the back-end at a socket path, on a connection of its own: no device state is touched,
    and no queue is started. Raises TransportError if there is none, or it does not answer."""
    protocol = FrontendProtocol()
    negotiation = protocol.negotiation
    negotiation.rings = [Ring(index) for index in range(MAX_QUEUES)]
    exchange = Exchange(channel.connect(path, TIMEOUT_S), protocol.main, path, TIMEOUT_S)
    try:
        negotiation.offered = exchange.ask(Front.GET_FEATURES)
        if not negotiation.offered & PROTOCOL_FEATURES:
            return BackendFacts(P(0), None, None)
        offered = P(exchange.ask(Front.GET_PROTOCOL_FEATURES))
        negotiation.offered_protocol = offered
        chosen = offered & (P.MQ | P.REPLY_ACK | P.CONFIGURE_MEM_SLOTS)
        exchange.tell(Front.SET_PROTOCOL_FEATURES, U64(chosen))
        slots = None
        if P.CONFIGURE_MEM_SLOTS in offered:
            slots = exchange.ask(Front.GET_MAX_MEM_SLOTS)
        return BackendFacts(offered, slots, _queue_sizes(exchange, offered))
    finally:
        exchange.close()


def _queue_sizes(exchange: Exchange, offered: P) -> list[int] | None:
    """Found by setting sizes until one is refused; without acknowledgements nobody would say so."""
    if P.REPLY_ACK not in offered:
        return None
    count = exchange.ask(Front.GET_QUEUE_NUM) if P.MQ in offered else 1
    try:
        return [_largest_size(exchange, index) for index in range(min(count, MAX_QUEUES))]
    except TransportError:
        return None  # it would rather close than refuse


def _largest_size(exchange: Exchange, index: int) -> int:
    accepted = 0
    for bit in range(MAX_QUEUE_SIZE.bit_length()):
        try:
            exchange.tell(Front.SET_VRING_NUM, VringState(index, 1 << bit))
        except Refused:
            break
        accepted = 1 << bit
    return accepted
