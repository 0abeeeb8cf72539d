"""The pytest plugin that comes with virtq.

`ring_kind`       every kind of ring in turn, as a `virtq.RingKind`
`virtq_loopback`  drives a device in this process, in every kind of ring
`virtq_serve`     runs `virtq serve`, a back-end in a process of its own
`virtq_guest`     runs a command in a Linux guest under QEMU

A test that wants some kinds of ring only says so: `@pytest.mark.parametrize("ring_kind",
[RingKind.PACKED])`. Where a part of the guest is missing (see `virtq.testing.parts`), its tests are
skipped, or fail with `virtq_guest_required = true` in the configuration.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

import pytest

from virtq.driver import Driver
from virtq.features import Change, RingKind

if TYPE_CHECKING:
    from virtq.device import Device
    from virtq.testing.guest import GuestResult
    from virtq.testing.serving import Serving
    from virtq.wrap import Wrapper

D = TypeVar("D", bound=Driver)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "virtq_guest_required",
        "fail, rather than skip, tests whose guest cannot be started for want of a part",
        type="bool",
        default=False,
    )


@pytest.fixture(params=RingKind, ids=str)
def ring_kind(request: pytest.FixtureRequest) -> RingKind:
    """Each kind of ring in turn: split and packed, in any order and in order."""
    kind: RingKind = request.param
    return kind


class Loopback(Protocol):
    """What `virtq_loopback` is."""

    @overload
    def __call__(
        self,
        device: Device | Wrapper,
        *,
        want: int = 0,
        offer: Change | str | None = None,
        **settings: Any,
    ) -> Driver: ...
    @overload
    def __call__(
        self,
        device: Device | Wrapper,
        driver: type[D],
        *,
        want: int = 0,
        offer: Change | str | None = None,
        **settings: Any,
    ) -> D: ...


@pytest.fixture
def virtq_loopback(ring_kind: RingKind) -> Iterator[Loopback]:
    """Drive a device in this process: `virtq_loopback(device)`, or `virtq_loopback(device,
    BlkDriver)` for a driver of one's own. The test runs in every kind of ring. The driver and the
    device are closed when the test ends. `want`, `offer` and other settings are the driver's."""
    from virtq.transports.loopback import LoopbackTransport

    with contextlib.ExitStack() as stack:

        def drive(
            device: Device | Wrapper,
            driver: type[Any] = Driver,
            *,
            want: int = 0,
            offer: Change | str | None = None,
            **settings: Any,
        ) -> Any:
            asked = Change.of(offer, device.device_id)
            kind = ring_kind.change
            change = Change(asked.add | kind.add, asked.remove & ~kind.add | kind.remove)
            transport = LoopbackTransport(device, when_closed=device.close)
            stack.callback(transport.close)
            made = driver(transport, want=want | ring_kind.features, offer=change, **settings)
            stack.callback(made.close)
            return made

        yield cast(Loopback, drive)


@pytest.fixture
def virtq_folder() -> Iterator[Path]:
    """A folder whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="virtq-") as name:
        yield Path(name)


class Serve(Protocol):
    """What `virtq_serve` is."""

    def __call__(self, *words: object) -> Serving: ...


@pytest.fixture
def virtq_serve(virtq_folder: Path) -> Iterator[Serve]:
    """Run `virtq serve` with these words, such as `virtq_serve("blk", "memory:16M")` or
    `virtq_serve("shout.py:Shout")`. Returns a `virtq.testing.serving.Serving`: its `uri` to
    connect to, its `socket_path`, and `end()` for its report. It is ended when the test ends; the
    test fails if it then exits otherwise than it should."""
    from virtq.testing.serving import Serving

    with contextlib.ExitStack() as stack:
        count = 0

        def serve(*words: object) -> Serving:
            nonlocal count
            count += 1
            path = virtq_folder / f"{count}.sock"
            return stack.enter_context(Serving(*words, socket_path=path))

        yield serve


class Guest(Protocol):
    """What `virtq_guest` is."""

    def __call__(
        self,
        script: str,
        *services: Serving,
        card: str = ...,
        properties: Mapping[str, object] | None = None,
        modules: Sequence[str] | None = None,
        args: Sequence[str] = (),
        timeout_s: float = 120.0,
    ) -> GuestResult: ...


@pytest.fixture
def virtq_guest(request: pytest.FixtureRequest, ring_kind: RingKind) -> Guest:
    """Run a shell script in a Linux guest and return how it went: `virtq_guest("cat /dev/vda | wc
    -c", disk).text`. The test runs in every kind of ring, and fails if the script does not exit
    with 0.

    `services`: back-ends, each of which gets a `card` (QEMU's name of the device, by default
    vhost-user-blk-pci) with `properties`. `modules`: of the guest's kernel, by default those that
    the card needs. `args`: more options for QEMU. `timeout_s` bounds the guest's life."""
    from virtq.testing.guest import GuestConfig, run_guest, vhost_user, vhost_user_net
    from virtq.testing.parts import MissingPart

    def run(
        script: str,
        *services: Serving,
        card: str = "vhost-user-blk-pci",
        properties: Mapping[str, object] | None = None,
        modules: Sequence[str] | None = None,
        args: Sequence[str] = (),
        timeout_s: float = 120.0,
    ) -> GuestResult:
        kind = {"packed": ring_kind.packed, "in_order": ring_kind.in_order}
        words = list(args)
        for number, service in enumerate(services):
            settings = {**kind, **(properties or {})}
            path, name = service.socket_path, f"dev{number}"
            if card.startswith("virtio-net"):
                words += vhost_user_net(path, name=name, properties=settings)
            else:
                words += vhost_user(card, path, name=name, properties=settings)
        wanted = MODULES.get(card, ()) if modules is None else modules
        try:
            return run_guest(GuestConfig(script, words, wanted, timeout_s=timeout_s))
        except MissingPart as missing:
            if request.config.getini("virtq_guest_required"):
                pytest.fail(str(missing))
            pytest.skip(str(missing))

    return run


MODULES: Mapping[str, Sequence[str]] = {
    "vhost-user-blk-pci": ["virtio_blk"],
    "virtio-net-pci": ["virtio_net"],
}
"""The modules that the guest's kernel needs for a card."""
