"""Driving the device that a URI names."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar, overload

from virtq.driver import Driver
from virtq.errors import UriError
from virtq.features import Change
from virtq.named_devices import DEVICES
from virtq.transports.base import DriverTransport
from virtq.uri import Uri, opening, parse_flag, parse_number, parse_seconds, parse_size

D = TypeVar("D", bound=Driver)


def parse_patience(text: str) -> float | None:
    """Seconds to wait for a back-end that is gone: a number such as 2.5, on for the usual time, off
    for none (None). Raises UriError."""
    from virtq.transports.vhost_user.reconnect import RECONNECT_S

    if re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        return float(text)
    return RECONNECT_S if parse_flag(text) else None


def _open_loopback(uri: Uri) -> DriverTransport:
    from virtq.transports.loopback import MEMORY_BYTES, LoopbackTransport

    if uri.target not in DEVICES:
        known = ", ".join(f"loopback:{name}" for name in DEVICES)
        raise UriError(f"{uri.text!r}: no device is called {uri.target!r}; there are: {known}")
    memory = uri.take("memory", parse_size, MEMORY_BYTES)
    device = DEVICES[uri.target](uri)
    return LoopbackTransport(device, memory_bytes=memory, when_closed=device.close)


def _open_vhost_user(uri: Uri) -> DriverTransport:
    from virtq.transports.vhost_user import frontend

    if not uri.target:
        raise UriError(f"{uri.text!r} names no socket")
    queues = uri.take("queues", parse_number, None)
    queue_size = uri.take("queue_size", parse_number, frontend.QUEUE_SIZE)
    memory = uri.take("memory", parse_size, frontend.MEMORY_BYTES)
    timeout_s = uri.take("timeout", parse_seconds, frontend.TIMEOUT_S)
    reconnect_s = uri.take("reconnect", parse_patience, None)
    track = uri.take("track", parse_flag, None)
    protocol = uri.take("protocol", str, "")
    uri.done()
    return frontend.Frontend(
        uri.target,
        timeout_s=timeout_s,
        queues=queues,
        queue_size_max=queue_size,
        memory_size=memory,
        reconnect_s=reconnect_s,
        track=track,
        protocol=protocol,
    )


def _open_qtest(uri: Uri) -> DriverTransport:
    from virtq.transports import qtest
    from virtq.transports.qtest import machine

    settings = {
        "disk": uri.take("disk", str, None),
        "disk_bytes": uri.take("size", parse_size, 64 << 20),
        "arguments": uri.take("args", shlex.split, []),
        "machine": uri.take("machine", str, None),
        "ram_bytes": uri.take("memory", parse_size, machine.RAM_BYTES),
        "qemu": uri.take("qemu", str, machine.QEMU),
        "queue_size_max": uri.take("queue_size", parse_number, None),
    }
    uri.done()
    return qtest.QtestTransport(uri.target, **settings)  # type: ignore[arg-type]


TRANSPORTS: dict[str, Callable[[Uri], DriverTransport]] = {
    "loopback": _open_loopback,
    "qtest": _open_qtest,
    "vhost-user": _open_vhost_user,
}
"""What opens a driver's transport, by scheme."""


def open_transport(uri: str) -> DriverTransport:
    """The driver's end of what a URI names. Raises UriError, TransportError."""
    parts = Uri.parse(uri)
    parts.take("device", str, "")
    return _open(parts)


def _open(uri: Uri) -> DriverTransport:
    if uri.scheme not in TRANSPORTS:
        known = ", ".join(f"{scheme}:" for scheme in TRANSPORTS)
        raise UriError(f"{uri.text!r}: no transport is called {uri.scheme}; there are: {known}")
    with opening(uri.text):
        return TRANSPORTS[uri.scheme](uri)


@overload
def connect(
    uri: str,
    *,
    want: int | str = 0,
    offer: Change | str | None = None,
    driver: type[D],
    **settings: Any,
) -> D: ...
@overload
def connect(
    uri: str,
    *,
    want: int | str = 0,
    offer: Change | str | None = None,
    driver: None = None,
    **settings: Any,
) -> Driver: ...
def connect(
    uri: str,
    *,
    want: int | str = 0,
    offer: Change | str | None = None,
    driver: type[Driver] | None = None,
    **settings: Any,
) -> Driver:
    """Drive the device that a URI names; use the result with `with`.

    `want`: features without which to give up. `offer`: what the driver is ready to accept, as a
    change such as `-RING_PACKED`. `driver`: the class to drive with; by default the one for the
    device type where the transport or the option `device=` tells it, else the plain `Driver`.
    `settings` go to the driver.

    Raises UriError, TransportError, and what the driver raises.
    """
    from virtq import drivers

    parts = Uri.parse(uri)
    named = parts.take("device", str, "")
    transport = _open(parts)
    try:
        kind = driver or drivers.find(named or transport.device_id)
        return kind(transport, want=want, offer=offer, **settings)
    except BaseException:
        transport.close()
        raise


@contextlib.asynccontextmanager
async def connect_async(
    uri: str,
    *,
    want: int | str = 0,
    offer: Change | str | None = None,
    driver: type[Driver] | None = None,
    **settings: Any,
) -> AsyncIterator[Any]:
    """`connect` for asyncio, with `async with`: setting up and closing do not hold up the loop. The
    driver's queues have `acall`."""
    made = await asyncio.to_thread(
        connect,  # type: ignore[arg-type]
        uri,
        want=want,
        offer=offer,
        driver=driver,
        **settings,
    )
    try:
        yield made
    finally:
        await asyncio.to_thread(made.close)
