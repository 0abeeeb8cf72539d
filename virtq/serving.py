"""Serving devices at the places that URIs name."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence

from virtq.errors import UriError
from virtq.transports.base import DeviceSide
from virtq.uri import Uri, opening


def serve(device: DeviceSide, uri: str) -> None:
    """Serve a device at a URI, to one driver after another, until the process is told to stop
    (SIGTERM, SIGINT).

    Raises UriError, TransportError, and FeatureError if what the device is to offer makes no sense.
    """
    serve_all((device, uri))


def serve_all(*devices: tuple[DeviceSide, str]) -> None:
    """`serve` several devices in one process, each at its URI: `serve_all((a, "vhost-user:/a"),
    (b, "vhost-user:/b"))`. If one cannot be served any more, all end, and that is raised."""
    places = [(device, *_socket(uri), uri) for device, uri in devices]
    asyncio.run(_serve_until_told(places))


async def serve_async(
    device: DeviceSide, uri: str, *, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve a device from a running asyncio loop, until the task is cancelled. `ready` is called
    when drivers can connect. Raises what `serve` raises."""
    from virtq.transports import vhost_user

    path, protocol = _socket(uri)
    with opening(uri):
        await vhost_user.serve(device, path, protocol=protocol, ready=lambda _: ready())


def _socket(uri: str) -> tuple[str, str]:
    """The path of the socket, and how the protocol features differ from the usual ones."""
    parts = Uri.parse(uri)
    if parts.scheme != "vhost-user":
        raise UriError(f"{uri!r}: a device can be served at vhost-user:PATH only")
    if not parts.target:
        raise UriError(f"{uri!r} names no socket")
    protocol = parts.take("protocol", str, "")
    parts.done()
    return parts.target, protocol


async def _serve_until_told(places: Sequence[tuple[DeviceSide, str, str, str]]) -> None:
    from virtq.transports import vhost_user

    loop, signals = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    backends: list[vhost_user.Backend] = []
    told = False

    def close_all() -> None:
        nonlocal told
        told = True
        for backend in backends:
            backend.close()

    def ready(backend: vhost_user.Backend) -> None:
        backends.append(backend)
        if told:
            backend.close()

    async def serve_one(device: DeviceSide, path: str, protocol: str, uri: str) -> None:
        with opening(uri):
            await vhost_user.serve(device, path, protocol=protocol, ready=ready)

    # Signals are the main thread's; who serves in another one ends that in another way.
    with contextlib.suppress(RuntimeError, ValueError):
        for number in signals:
            loop.add_signal_handler(number, close_all)
    tasks = [asyncio.ensure_future(serve_one(*place)) for place in places]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(RuntimeError, ValueError):
            for number in signals:
                loop.remove_signal_handler(number)
