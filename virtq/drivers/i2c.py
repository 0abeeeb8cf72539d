"""Driving an I2C adapter (VIRTIO 1.4, section 5.16).

    with virtq.connect("vhost-user:/run/i2c.sock", driver=I2cDriver) as bus:
        bus.write(0x50, b"\\0\\x10hello")
        bus.transfer(0x50, [b"\\0\\x10", 5])          # write, then read 5 bytes: [b"hello"]
        bus.transfer_many([(0x48, [b"\\0", 2])] * 100)

A transaction is a list of messages to one target: bytes to write, or how many bytes to read. Its
requests are tied together with FAIL_NEXT: after one that fails nothing more of it is tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from virtq.device import QueueSpec
from virtq.driver import Driver
from virtq.errors import FeatureError, QueueFull, RequestError
from virtq.memory import Buffer
from virtq.queue import DriverQueue
from virtq.wire.i2c import (
    ADDRESS_7_BIT_MAX,
    DEVICE_ID,
    HEADER_BYTES,
    MESSAGE_BYTES_MAX,
    STATUS_BYTES,
    UNWRITTEN_STATUS,
    Flags,
    Header,
    I2cFeature,
    Status,
    encode_address,
)

Message = bytes | int
"""Bytes to write, or how many bytes to read."""

FIRST_TARGET, LAST_TARGET = 0x08, 0x77
"""The addresses of 7 bits that the I2C specification leaves to targets."""
_DATA_OFFSET = HEADER_BYTES + STATUS_BYTES


class I2cError(RequestError):
    """A message of a transaction failed: nobody is at the address, or the target refused it."""

    def __init__(self, address: int, position: int, message: Message, status: int) -> None:
        what = f"a read of {message}" if isinstance(message, int) else f"a write of {len(message)}"
        how = "no status written" if status == UNWRITTEN_STATUS else f"status {status}"
        super().__init__(f"I2C target {address:#x}, message {position}: {what} bytes: {how}")
        self.address = address
        self.position = position
        """Which message of the transaction it was, from 0."""
        self.status = status


@dataclass(slots=True)
class _Transaction:
    address: int
    messages: Sequence[Message]
    results: list[bytes] = field(default_factory=list)
    failure: I2cError | None = None


@dataclass(slots=True)
class _Request:
    """One message under way: `buffer` holds header, status byte, data."""

    transaction: _Transaction
    position: int
    buffer: Buffer

    @property
    def message(self) -> Message:
        return self.transaction.messages[self.position]


class I2cDriver(Driver):
    """Drives an I2C adapter."""

    device_id = DEVICE_ID
    features = I2cFeature.ZERO_LENGTH_REQUEST
    queue_size = 64

    def choose(self, acceptable: int) -> int:
        """Raises FeatureError if the device does not offer ZERO_LENGTH_REQUEST (5.16.6.3)."""
        if not acceptable & I2cFeature.ZERO_LENGTH_REQUEST:
            raise FeatureError("an I2C adapter has to offer ZERO_LENGTH_REQUEST (5.16.6.3)")
        return acceptable

    def plan(self) -> Mapping[int, QueueSpec]:
        return {0: QueueSpec("requestq", self.queue_size)}

    # Transactions. All raise I2cError for a message that fails, ValueError for an address or a
    # length that there is not, PeerGone and RingFault.

    def write(self, address: int, data: bytes) -> None:
        """Write one message."""
        self.transfer(address, [data])

    def read(self, address: int, length: int) -> bytes:
        """Read one message of `length` bytes."""
        return self.transfer(address, [length])[0]

    def write_read(self, address: int, data: bytes, length: int) -> bytes:
        """Write, typically the number of a register, and read, in one transaction."""
        return self.transfer(address, [data, length])[0]

    def transfer(self, address: int, messages: Sequence[Message]) -> list[bytes]:
        """One transaction; returns what was read, an entry for each read."""
        return self.transfer_many([(address, messages)])[0]

    def transfer_many(
        self, transactions: Iterable[tuple[int, Sequence[Message]]]
    ) -> list[list[bytes]]:
        """Several transactions, in this order, with as many requests under way as the queue holds.
        All are carried out; the first failure is raised afterwards."""
        done = self._run(transactions)
        for transaction in done:
            if transaction.failure is not None:
                raise transaction.failure
        return [transaction.results for transaction in done]

    def is_there(self, address: int) -> bool:
        """Whether somebody answers at an address, to a message of no bytes (SMBus "Quick")."""
        (transaction,) = self._run([(address, [b""])])
        return transaction.failure is None

    def scan(self) -> list[int]:
        """The addresses of 7 bits at which somebody answers, of those that targets may have."""
        addresses = range(FIRST_TARGET, LAST_TARGET + 1)
        done = self._run((address, [b""]) for address in addresses)
        return [transaction.address for transaction in done if transaction.failure is None]

    # How requests are made

    def _run(self, transactions: Iterable[tuple[int, Sequence[Message]]]) -> list[_Transaction]:
        todo = [_Transaction(address, messages) for address, messages in transactions]
        for transaction in todo:
            _check(transaction)
        queue = self.queues["requestq"]
        waiting = self._requests(todo)
        next_one = next(waiting, None)
        while next_one is not None or queue.outstanding:
            while next_one is not None and self._submit(queue, next_one):
                next_one = next(waiting, None)
            if not queue.outstanding:
                raise QueueFull(f"{queue!r} has no room for one request")
            queue.kick()
            queue.wait()
            for used in queue.reap():
                self._finish(used.cookie)
        return todo

    def _requests(self, todo: Sequence[_Transaction]) -> Iterator[_Request]:
        for transaction in todo:
            for position, message in enumerate(transaction.messages):
                length = message if isinstance(message, int) else len(message)
                buffer = self.arena.alloc(_DATA_OFFSET + length)
                yield _Request(transaction, position, buffer)

    def _submit(self, queue: DriverQueue, request: _Request) -> bool:
        """False if there is no room now."""
        buffer, message = request.buffer, request.message
        flags = Flags(0)
        if request.position + 1 < len(request.transaction.messages):
            flags |= Flags.FAIL_NEXT
        readable = [buffer.part(0, HEADER_BYTES)]
        writable = [buffer.part(HEADER_BYTES, STATUS_BYTES)]
        data = buffer.part(_DATA_OFFSET, buffer.size - _DATA_OFFSET)
        if isinstance(message, int):
            flags |= Flags.M_RD
            writable = [data] * bool(data.size) + writable
        elif data.size:
            data.write(message)
            readable.append(data)
        buffer.write(Header(encode_address(request.transaction.address), flags).pack())
        buffer.write(bytes([UNWRITTEN_STATUS]), HEADER_BYTES)
        try:
            queue.add_buffers(readable, writable, request)
        except QueueFull:
            return False
        return True

    def _finish(self, request: _Request) -> None:
        """After the first failure of a transaction whatever comes back of it has failed as well
        (5.16.6.3)."""
        transaction, buffer = request.transaction, request.buffer
        (status,) = buffer.read(STATUS_BYTES, HEADER_BYTES)
        if transaction.failure is None:
            if status != Status.OK:
                transaction.failure = I2cError(
                    transaction.address, request.position, request.message, status
                )
            elif isinstance(request.message, int):
                transaction.results.append(buffer.read(offset=_DATA_OFFSET))
        self.arena.free(buffer)


def _check(transaction: _Transaction) -> None:
    encode_address(transaction.address)
    if not transaction.messages:
        raise ValueError("a transaction has at least one message")
    for message in transaction.messages:
        length = message if isinstance(message, int) else len(message)
        if not 0 <= length <= MESSAGE_BYTES_MAX:
            raise ValueError(f"a message has 0 to {MESSAGE_BYTES_MAX} bytes, not {length}")


__all__ = ["ADDRESS_7_BIT_MAX", "I2cDriver", "I2cError", "Message"]
