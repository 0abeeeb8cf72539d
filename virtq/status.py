"""Device status and initialization (VIRTIO 1.4, sections 2.1, 3.1 and 3.4) as one transition table.

The device status field is a byte in the device that says how far the two sides have come. The
driver only ever turns bits on, one step at a time, in the order

    ACKNOWLEDGE    I have seen that you are a VIRTIO device
    DRIVER         and I know how to drive you
    FEATURES_OK    this is the subset of your features that I accept
    DRIVER_OK      your queues are set up: go

and may at any moment turn on FAILED (I give up), or write 0, which is no bit but the request to
reset: everything is forgotten, and the byte reads 0 again once that is done.

The device has two words of its own. After FEATURES_OK it may leave the bit off, which means that it
cannot work with that subset; the driver has to look. And it may turn on DEVICE_NEEDS_RESET at any
time, which says that nothing but a reset helps; if the driver was live then, a configuration change
notification goes with it.

With the feature SUSPEND there is one more pair of steps: the driver turns on SUSPEND, and the
device answers by showing SUSPEND on and DRIVER_OK off; the driver turns DRIVER_OK on again, and
the device shows the reverse.

So there is a chain of phases, RESET to LIVE, with SUSPENDED beside LIVE and FAILED below all of
them. `TRANSITIONS` is that picture: for each phase, which steps lead where. `BITS` is what the
byte looks like in each phase (in FAILED: whatever it was, with FAILED on). DEVICE_NEEDS_RESET is
not a phase: it can stand beside any of them.

Two small objects walk the table, one for each role. `DriverStatus` says which byte to write for
the next step and judges the byte that is read back. `DeviceStatus` turns a byte that was written
into the steps that it means; one write may set several bits at once, and then means several steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntFlag, auto

from virtq.errors import StatusError
from virtq.wire.bits import unbounded_complement


@unbounded_complement
class Status(IntFlag):
    """The bits of the device status field (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    SUSPEND = 16
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Phase(Enum):
    """How far initialization has come."""

    RESET = auto()
    ACKNOWLEDGED = auto()
    DRIVER_FOUND = auto()
    NEGOTIATED = auto()
    LIVE = auto()
    SUSPENDED = auto()
    FAILED = auto()


class Step(Enum):
    """What a driver can do to the status field. RESUME sets the same bit as GO_LIVE."""

    RESET = auto()
    ACKNOWLEDGE = auto()
    KNOW_DRIVER = auto()
    ACCEPT_FEATURES = auto()
    GO_LIVE = auto()
    SUSPEND = auto()
    RESUME = auto()
    FAIL = auto()


_ALWAYS = {Step.RESET: Phase.RESET, Step.FAIL: Phase.FAILED}

TRANSITIONS: Mapping[Phase, Mapping[Step, Phase]] = {
    Phase.RESET: {Step.ACKNOWLEDGE: Phase.ACKNOWLEDGED} | _ALWAYS,
    Phase.ACKNOWLEDGED: {Step.KNOW_DRIVER: Phase.DRIVER_FOUND} | _ALWAYS,
    Phase.DRIVER_FOUND: {Step.ACCEPT_FEATURES: Phase.NEGOTIATED} | _ALWAYS,
    Phase.NEGOTIATED: {Step.GO_LIVE: Phase.LIVE} | _ALWAYS,
    Phase.LIVE: {Step.SUSPEND: Phase.SUSPENDED} | _ALWAYS,
    Phase.SUSPENDED: {Step.RESUME: Phase.LIVE} | _ALWAYS,
    Phase.FAILED: {Step.RESET: Phase.RESET},
}

_STARTED = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK

BITS: Mapping[Phase, Status] = {
    Phase.RESET: Status(0),
    Phase.ACKNOWLEDGED: Status.ACKNOWLEDGE,
    Phase.DRIVER_FOUND: Status.ACKNOWLEDGE | Status.DRIVER,
    Phase.NEGOTIATED: _STARTED,
    Phase.LIVE: _STARTED | Status.DRIVER_OK,
    Phase.SUSPENDED: _STARTED | Status.SUSPEND,
}

# The bit that each step turns on.
STEP_BITS: Mapping[Step, Status] = {
    Step.ACKNOWLEDGE: Status.ACKNOWLEDGE,
    Step.KNOW_DRIVER: Status.DRIVER,
    Step.ACCEPT_FEATURES: Status.FEATURES_OK,
    Step.GO_LIVE: Status.DRIVER_OK,
    Step.RESUME: Status.DRIVER_OK,
    Step.SUSPEND: Status.SUSPEND,
    Step.FAIL: Status.FAILED,
}

# The order in which the bits of one write are taken.
_BIT_ORDER = tuple(dict.fromkeys(STEP_BITS.values()))
_KNOWN = sum(Status)


def describe(status: int) -> str:
    """A status byte for people."""
    names = [bit.name or "" for bit in Status if status & bit]
    rest = status & ~_KNOWN
    return " | ".join(names + ([f"{rest:#x}"] if rest else [])) or "0 (reset)"


class DriverStatus:
    """The driver's view: takes the table's steps, and checks what the device shows afterwards."""

    def __init__(self) -> None:
        self.phase = Phase.RESET
        self._bits = Status(0)

    def step(self, step: Step) -> int:
        """Take a step; returns the byte to write. Raises StatusError where the table has none."""
        following = TRANSITIONS[self.phase].get(step)
        if following is None:
            raise StatusError(f"a driver cannot {step.name} in phase {self.phase.name} (3.1.1)")
        written = self._bits | STEP_BITS.get(step, 0) if step is not Step.RESET else Status(0)
        self.phase = following
        self._bits = BITS.get(following, written)
        return int(written)

    def confirm(self, status: int) -> None:
        """Judge the byte that is read back after a step.

        Raises StatusError if the device is not in the phase that the step leads to: above all when
        it does not take the subset of features (3.1.1 step 6), or when it asks for a reset (2.1.2).
        """
        if status & Status.DEVICE_NEEDS_RESET:
            raise StatusError(f"the device needs a reset: its status is {describe(status)} (2.1.2)")
        if self.phase is Phase.NEGOTIATED and not status & Status.FEATURES_OK:
            self.phase = Phase.DRIVER_FOUND
            self._bits = BITS[self.phase]
            raise StatusError(
                "the device does not accept this subset of features: FEATURES_OK stayed off (3.1.1)"
            )
        if (status ^ self._bits) & _KNOWN:
            raise StatusError(
                f"the device's status is {describe(status)}, not {describe(self._bits)}"
            )


class DeviceStatus:
    """The device's view: the byte itself, and what a write to it means."""

    def __init__(self) -> None:
        self.phase = Phase.RESET
        self._shown = Status(0)
        self._may_suspend = False

    @property
    def value(self) -> int:
        """The byte as the driver reads it."""
        return int(self._shown)

    def steps(self, written: int) -> list[Step]:
        """What a written byte means: the steps to carry out, in order. Report each with `done`; a
        step that cannot be carried out is not reported, and its bit then stays off (2.2.2,
        3.4.2).

        Raises StatusError for a write that clears a bit without being a reset (2.1.1), and for
        one that sets a bit out of sequence (3.1.1). SUSPEND is ignored unless the device is live
        and the feature was negotiated (3.4.2)."""
        if written == 0:
            return [Step.RESET]
        if gone := self._shown & ~written & ~Status.DEVICE_NEEDS_RESET:
            raise StatusError(f"the driver cleared {describe(gone)} without a reset (2.1.1)")
        if written & Status.FAILED & ~self._shown:
            return [Step.FAIL]
        phase, steps = self.phase, []
        for bit in _BIT_ORDER:
            if not written & bit & ~self._shown:
                continue
            step = next((s for s in TRANSITIONS[phase] if STEP_BITS.get(s) is bit), None)
            if bit is Status.SUSPEND and not (step and self._may_suspend):
                continue
            if step is None:
                raise StatusError(f"the driver set {bit.name} in phase {phase.name} (3.1.1)")
            steps.append(step)
            phase = TRANSITIONS[phase][step]
        return steps

    def done(self, step: Step, *, may_suspend: bool = False) -> None:
        """The step has been carried out: show it. `may_suspend`, with ACCEPT_FEATURES: whether the
        feature SUSPEND is among the accepted ones."""
        self.phase = TRANSITIONS[self.phase][step]
        if step is Step.RESET:
            self._shown, self._may_suspend = Status(0), False
            return
        if step is Step.ACCEPT_FEATURES:
            self._may_suspend = may_suspend
        needs_reset = self._shown & Status.DEVICE_NEEDS_RESET
        self._shown = BITS.get(self.phase, self._shown | STEP_BITS[step]) | needs_reset

    def need_reset(self) -> bool:
        """Show DEVICE_NEEDS_RESET; True if a configuration change notification has to follow
        (2.1.2)."""
        self._shown |= Status.DEVICE_NEEDS_RESET
        return bool(self._shown & Status.DRIVER_OK)
