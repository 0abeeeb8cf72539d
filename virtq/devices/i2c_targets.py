"""What can sit at an address of an I2C bus: the interface, and two simulated chips.

A target is anything with `read` and `write`. Either may be `async`: the bus waits, as a real one
does while a target holds the clock. To refuse a message, as a chip does that does not acknowledge,
raise `Nak`.

    class Thermometer(I2cTarget):
        async def read(self, length):
            return struct.pack(">h", round(await measure() * 256))[:length]
"""

from __future__ import annotations

import os
from collections.abc import Awaitable
from pathlib import Path

ONE_BYTE_ADDRESSED = 256
"""The largest EEPROM that has addresses of one byte."""


class Nak(Exception):
    """The target does not acknowledge: the message fails, and the rest of its transaction."""


class I2cTarget:
    """Answers at one address. A message of no bytes only asks whether somebody is there."""

    def write(self, data: bytes) -> Awaitable[None] | None:
        """The controller sends a message."""
        raise Nak

    def read(self, length: int) -> bytes | Awaitable[bytes]:
        """The controller wants a message of `length` bytes: that many, no more and no fewer."""
        raise Nak

    def stop(self) -> Awaitable[None] | None:
        """The transaction is over that the last messages belonged to."""
        return None

    def close(self) -> None:
        """Give up what the target holds outside of it."""


class Registers(I2cTarget):
    """A chip with registers of one byte. The first byte of a message that is written chooses the
    register; what follows is stored there and in the next ones, and reading goes on from there.
    After the last register comes the first."""

    def __init__(self, content: bytes = bytes(256)) -> None:
        """`content`: what the registers hold, up to 256 of them."""
        if not 1 <= len(content) <= 256:
            raise ValueError(f"there are 1 to 256 registers, not {len(content)}")
        self.content = bytearray(content)
        self.pointer = 0

    def write(self, data: bytes) -> None:
        if not data:
            return
        if data[0] >= len(self.content):
            raise Nak(f"no register {data[0]:#x}")
        self.pointer = data[0]
        for value in data[1:]:
            self.content[self.pointer] = value
            self._advance()

    def read(self, length: int) -> bytes:
        data = bytearray()
        for _ in range(length):
            data.append(self.content[self.pointer])
            self._advance()
        return bytes(data)

    def _advance(self) -> None:
        self.pointer = (self.pointer + 1) % len(self.content)


class Eeprom(I2cTarget):
    """A serial EEPROM of the 24Cxx kind. A message that is written begins with an address (one byte
    up to 256 bytes of memory, else two, the high one first); what follows is stored from there on
    within one page, and wraps at its end. Reading goes on from the address, over the whole memory.
    """

    def __init__(
        self,
        content: bytes | str | os.PathLike[str],
        *,
        page_bytes: int = 32,
        read_only: bool = False,
    ) -> None:
        """`content`: the memory, or the file that holds it; what is written then goes to the file.

        Raises OSError for the file, and ValueError unless there are 1 to 65536 bytes and a page is
        a power of two."""
        self._fd: int | None = None
        if page_bytes < 1 or page_bytes & (page_bytes - 1):
            raise ValueError(f"a page is a power of two, not {page_bytes} bytes")
        if isinstance(content, bytes):
            self._content = bytearray(content)
        else:
            self._content = self._open(Path(content), read_only)
        if not 1 <= len(self._content) <= 1 << 16:
            self.close()
            raise ValueError(f"an EEPROM has 1 to 65536 bytes, not {len(self._content)}")
        self.read_only = read_only
        self.page_bytes = min(page_bytes, len(self._content))
        self.address_bytes = 1 if len(self._content) <= ONE_BYTE_ADDRESSED else 2
        self.pointer = 0

    def _open(self, path: Path, read_only: bool) -> bytearray:
        content = path.read_bytes() if path.stat().st_size <= 1 << 16 else bytes((1 << 16) + 1)
        if not read_only:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        return bytearray(content)

    @property
    def content(self) -> bytes:
        """What the memory holds."""
        return bytes(self._content)

    def write(self, data: bytes) -> None:
        address, rest = data[: self.address_bytes], data[self.address_bytes :]
        if not data:
            return
        if len(address) < self.address_bytes:
            raise Nak(f"{len(address)} bytes of an address of {self.address_bytes}")
        self.pointer = int.from_bytes(address) % len(self._content)
        if rest and self.read_only:
            raise Nak("write protected")
        page = self.pointer - self.pointer % self.page_bytes
        for value in rest:
            self._content[self.pointer] = value
            self.pointer += 1
            if self.pointer == min(page + self.page_bytes, len(self._content)):
                self.pointer = page
        if rest and self._fd is not None:
            os.pwrite(self._fd, self._content[page : page + self.page_bytes], page)

    def read(self, length: int) -> bytes:
        data = bytearray()
        for _ in range(length):
            data.append(self._content[self.pointer])
            self.pointer = (self.pointer + 1) % len(self._content)
        return bytes(data)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
