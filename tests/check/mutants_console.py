"""Consoles that get one thing wrong."""

from __future__ import annotations

from collections.abc import Iterable

from tests.check.mutants import REFERENCES, catches
from tests.check.reference_console import OPEN, REMOVE, Console, Plain
from virtq.errors import ConfigError

REFERENCES["console"] = (Console, Plain)


@catches("console.an_emergency")
class NoEmergencyBeforeItIsLive(Console):
    def write_config(self, offset: int, data: bytes) -> None:
        if not self.status:
            raise ConfigError("not yet")
        super().write_config(offset, data)


@catches("console.an_emergency")
class DiesInAnEmergency(Console):
    def emergency(self, character: int) -> None:
        self.gone = True


@catches("console.port_0")
class MorePortsThanItCanHave(Plain):
    queue_count = 6


@catches("console.port_0")
class MultiportOnly(Console):
    def may_serve(self) -> bool:
        return super().may_serve() and 3 in self.queues


@catches("console.ports_are_added_once")
class AddsAgain(Console):
    def to_add(self) -> Iterable[int]:
        return range(self.ports)


@catches("console.ports_are_in_range")
class AddsOneTooMany(Console):
    def to_add(self) -> Iterable[int]:
        return [*super().to_add(), self.ports]


@catches("console.ports_are_there_to_be_removed")
class RemovesWhatIsNotThere(Console):
    def heard(self, port: int, event: int, value: int) -> None:
        super().heard(port, event, value)
        if event == OPEN:
            self.say(REMOVE, [port])
