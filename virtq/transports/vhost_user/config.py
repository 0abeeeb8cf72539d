"""A device's configuration space, as a front-end reads and writes it with messages."""

from __future__ import annotations

from virtq.errors import ConfigError
from virtq.transports.vhost_user.exchange import Refused
from virtq.transports.vhost_user.link import Link
from virtq.transports.vhost_user.messages import Front, P
from virtq.transports.vhost_user.wire import MAX_CONFIG_BYTES, Config, ProtocolError


def find_size(link: Link) -> int:
    """How much of it the back-end shows, in bytes: found out by asking, the messages do not tell.
    0 without CONFIG."""
    if not link.negotiation.has(P.CONFIG):
        return 0
    known, unknown = 0, MAX_CONFIG_BYTES + 1
    probe = MAX_CONFIG_BYTES
    while known + 1 < unknown:
        if _first(link, probe) is not None:
            known = probe
        else:
            unknown = probe
        probe = (known + unknown) // 2
    return known


def read(link: Link, offset: int, length: int, name: str) -> bytes:
    """Raises ConfigError beyond what the back-end shows, and without CONFIG."""
    if not length:
        return b""
    # libvhost-user ignores the offset, so it is always asked for the beginning.
    end = offset + length
    data = _first(link, end) if 0 <= offset < end <= MAX_CONFIG_BYTES else None
    if data is None:
        raise ConfigError(f"{name}: no configuration bytes {offset} to {end}")
    return data[offset:]


def write(link: Link, offset: int, data: bytes, name: str) -> None:
    """Raises ConfigError if the back-end refuses, and without CONFIG."""
    end = offset + len(data)
    if not link.negotiation.has(P.CONFIG) or end > MAX_CONFIG_BYTES:
        raise ConfigError(f"{name}: no configuration bytes {offset} to {end}")
    try:
        link.exchange.tell(Front.SET_CONFIG, Config(offset, len(data), 0, bytes(data)))
    except Refused as refused:
        raise ConfigError(f"{name}: bytes {offset} to {end}: {refused}") from None
    link.exchange.settle()


def _first(link: Link, size: int) -> bytes | None:
    """The first `size` bytes, None if the back-end does not show so many."""
    if not link.negotiation.has(P.CONFIG):
        return None
    reply = link.exchange.transact(Front.GET_CONFIG, Config(0, size, 0, bytes(size)))
    if reply is None or not isinstance(reply.payload, Config):
        return None
    if not reply.payload.size:
        return None  # an error, told with the head of a configuration
    if reply.payload.size != size:
        error = ProtocolError("reply to GET_CONFIG", "size", reply.payload.size, f"not {size}")
        raise link.exchange.fail(error)
    return reply.payload.data
