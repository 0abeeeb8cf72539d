"""vhost-user back-ends that get shared memory, its log, in-flight or configuration wrong."""

from __future__ import annotations

from typing import Any, cast

from tests.check.mutants import REFERENCES
from tests.check.mutants_vhost_user import DiesOfRefusals, TellsSuccess, catches
from tests.check.reference import Served
from tests.check.reference_vhost_user import BackEnd, Network
from tests.check.reference_vhost_user_channel import CONFIG, NUMBER, Bad
from tests.check.reference_vhost_user_disk import Disk
from virtq._core import Memory

AREA = "vhost_user_memory"
REFERENCES[AREA] = (BackEnd, Network)


@catches(
    AREA,
    "regions_that_overlap",
    "regions_of_no_size",
    "too_many_regions",
    "a_file_that_is_short",
    "an_inflight_buffer_that_cannot_be",
    "as_many_slots_as_there_are",
)
class DiesOfMemory(DiesOfRefusals):
    pass


@catches(AREA, "a_file_that_is_truncated")
class DiesOfTruncation(BackEnd):
    class disk_type(Disk):
        truncated = False

        def serve(self, served: Served) -> None:
            try:
                super().serve(served)
            except Exception:
                self.truncated = True
                raise

    def on_get_features(self, body: bytes, fds: list[int]) -> bytes:
        if getattr(self.disk, "truncated", False):
            self.die()
        return super().on_get_features(body, fds)


@catches(AREA, "a_slot_is_removed")
class KeepsTheDescriptorOfASlot(BackEnd):
    def on_rem_mem_reg(self, body: bytes, fds: list[int]) -> None:
        super().on_rem_mem_reg(body, fds)
        self.kept_fds += fds
        fds.clear()


@catches(AREA, "a_read_only_field", "a_slot_is_removed")
class TellsSuccessOfMemory(TellsSuccess):
    pass


@catches(AREA, "regions")
class TakesUserAddressesForGuestAddresses(BackEnd):
    def guest(self, user: int) -> int:
        return super().guest(user) if user in (r[2] for r in self.table) else user


@catches(AREA, "regions", "a_slot")
class MapsByUserAddress(BackEnd):
    def map(self, memory: Memory, region: tuple[int, ...], fd: int) -> None:
        _, size, user, offset = region
        memory.add_region(fd, user, size, offset, user)


@catches(AREA, "regions")
class MixesFiles(BackEnd):
    def in_order(self, fds: list[int]) -> list[int]:
        return fds[::-1]


@catches(AREA, "regions")
class BeginsAtTheFile(BackEnd):
    def map(self, memory: Memory, region: tuple[int, ...], fd: int) -> None:
        super().map(memory, (*region[:3], 0), fd)


@catches(AREA, "another_table")
class StopsAtANewTable(BackEnd):
    def use(self, memory: Memory) -> None:
        super().use(memory)
        with self.disk.lock:
            self.disk.forget_queues()


@catches(AREA, "another_table")
class OneTableOnly(BackEnd):
    def on_set_mem_table(self, body: bytes, fds: list[int]) -> None:
        if self.table:
            raise Bad("there is a table")
        super().on_set_mem_table(body, fds)


@catches(AREA, "a_slot")
class ForgetsSlots(BackEnd):
    def on_add_mem_reg(self, body: bytes, fds: list[int]) -> None:
        """Some other time."""


@catches(AREA, "as_many_slots_as_there_are")
class PromisesSlots(BackEnd):
    def on_get_max_mem_slots(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(self.slots + 1)


@catches(AREA, "a_slot_is_removed")
class LooksAtTheOffset(BackEnd):
    def find(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        if wanted not in self.table:
            raise Bad("there is no such region")
        return wanted


@catches(AREA, "a_slot_is_removed")
class RemovesNothing(BackEnd):
    def on_rem_mem_reg(self, body: bytes, fds: list[int]) -> None:
        """It may be needed."""


@catches(AREA, "the_dirty_log")
class LogsNothing(BackEnd):
    def on_set_log_base(self, body: bytes, fds: list[int]) -> bytes | None:
        return NUMBER.pack(0)


@catches(AREA, "logging_begins")
class LogsFromTheBeginningOnly(BackEnd):
    def use_log(self) -> None:
        if not self.disk.queues:
            super().use_log()


@catches(AREA, "logging_begins")
class TakesNoLogFlagLater(BackEnd):
    def on_set_vring_addr(self, body: bytes, fds: list[int]) -> None:
        if not self.disk.queues:
            super().on_set_vring_addr(body, fds)


@catches(AREA, "the_dirty_log")
class LogsNoUsedRing(BackEnd):
    class disk_type(Disk):
        def log_used(self, addr: int) -> None:
            """The buffers are enough."""


@catches(AREA, "the_dirty_log")
class LogsInSilence(BackEnd):
    def on_set_log_base(self, body: bytes, fds: list[int]) -> bytes | None:
        super().on_set_log_base(body, fds)
        return None


@catches(AREA, "the_inflight_buffer")
class ShortBuffer(BackEnd):
    def buffer_bytes(self, told: int) -> int:
        return told // 2


@catches(AREA, "the_inflight_buffer")
class WantsNoBuffer(BackEnd):
    def on_set_inflight_fd(self, body: bytes, fds: list[int]) -> None:
        raise Bad("not here")


@catches(AREA, "configuration_in_pieces")
class WholeConfiguration(BackEnd):
    def on_get_config(self, body: bytes, fds: list[int]) -> bytes:
        offset, size, flags = CONFIG.unpack(body[:12])
        return super().on_get_config(CONFIG.pack(offset, max(size, 4), flags), fds)


@catches(AREA, "configuration_at_an_offset")
class IgnoresTheOffset(BackEnd):
    def on_get_config(self, body: bytes, fds: list[int]) -> bytes:
        offset, size, flags = CONFIG.unpack(body[:12])
        reply = super().on_get_config(CONFIG.pack(0, size, flags), fds)
        return CONFIG.pack(offset, size, flags) + reply[12:] if reply else reply


@catches(AREA, "configuration_that_is_not_there")
class AnswersWithZeroes(BackEnd):
    def on_get_config(self, body: bytes, fds: list[int]) -> bytes:
        reply = super().on_get_config(body, fds)
        return reply or body[:12] + bytes(CONFIG.unpack(body[:12])[1])


@catches(AREA, "a_writable_field")
class WritesNoConfiguration(BackEnd):
    def on_set_config(self, body: bytes, fds: list[int]) -> None:
        """It has been read before."""


class Resizable(BackEnd):
    class disk_type(Disk):
        other = b""

        def read_config(self, offset: int, length: int) -> bytes:
            config = self.other + self.config[len(self.other) :]
            return config[offset : offset + length]

    def resize(self, data: bytes) -> None:
        cast(Any, self.disk).other = data


@catches(AREA, "a_read_only_field")
class WritesAnyField(Resizable):
    def may_write(self, offset: int, size: int, flags: int) -> bool:
        return flags in (0, 1)


@catches(AREA, "a_read_only_field")
class AnyFlagIsAMigration(Resizable):
    def may_write(self, offset: int, size: int, flags: int) -> bool:
        return flags != 0 or super().may_write(offset, size, flags)
