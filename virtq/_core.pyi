"""What the Rust core shows to Python: guest memory, both halves of a virtqueue, data paths.

Addresses are guest addresses in bytes unless a name says `user`; lengths are bytes.
Sections are those of VIRTIO 1.4.
"""

from collections.abc import Callable, Coroutine, Iterator, Sequence
from os import PathLike
from typing import Any, Literal, NamedTuple, final

from numpy import uint8
from numpy.typing import NDArray
from typing_extensions import Buffer

class VirtqError(Exception):
    """Base of every error that the core raises; `virtq.errors` re-exports the family."""

class MemoryError_(VirtqError):
    """A region, mapping or range of guest memory is not as asked; the text names the range."""

class TranslationMiss(MemoryError_):
    """A guest range has no mapping (yet): `args == (text, address, length, writable)`."""

class RingFault(VirtqError):
    """The other side broke the ring. `args == (text, requirement id or "")`. The queue stays
    broken."""

class QueueFull(VirtqError):
    """The ring has no room for what was to be added; nothing was added."""

class StaleBuffer(VirtqError):
    """The request was taken before the queue was stopped, reset or put it back; its outcome is
    void."""

class RegionInfo(NamedTuple):
    guest_addr: int
    size: int
    user_addr: int
    offset: int

class Position(NamedTuple):
    """Where a queue half stands. Split: free-running 16-bit indices, wraps are 0.
    Packed: slot numbers, wraps are the wrap counters (0 or 1). `descriptor` is the split
    driver's next descriptor slot under IN_ORDER, else 0."""

    available: int
    available_wrap: int
    used: int
    used_wrap: int
    descriptor: int

@final
class Memory:
    """A table of mapped regions of guest memory. Queues hold a snapshot of the table; a mapping
    lives as long as any queue, request or view that uses it."""

    def __init__(self) -> None: ...
    @staticmethod
    def allocate(size: int, guest_addr: int = 0) -> Memory:
        """A memory of one region backed by a new memfd of `size` bytes (rounded up to pages)."""
    def add_region(
        self, fd: int, guest_addr: int, size: int, offset: int = 0, user_addr: int | None = None
    ) -> None:
        """Map `size` bytes of `fd` at file offset `offset`. Raises MemoryError_ on overlap (of
        guest or user range), size 0, overflow, a file that is too short. `fd` stays the
        caller's."""
    def remove_region(self, guest_addr: int, size: int, user_addr: int | None = None) -> None: ...
    def clear(self) -> None: ...
    @property
    def regions(self) -> list[RegionInfo]: ...
    def fd_of(self, guest_addr: int) -> int:
        """The file descriptor of the region at `guest_addr`; owned by the memory."""
    def read(self, addr: int, length: int) -> bytes: ...
    def write(self, addr: int, data: Buffer) -> None: ...
    def view(self, addr: int, length: int) -> memoryview:
        """A writable view without a copy; it keeps the mapping alive. One region only."""
    def guest_from_user(self, user_addr: int, length: int = 1) -> int: ...
    def set_log(self, fd: int | None, size: int = 0, offset: int = 0) -> None:
        """Use `size` bytes at `offset` of `fd` as the dirty log: a bit per 4096-byte page."""
    def mark_dirty(self, addr: int, length: int) -> None: ...
    def iotlb_enable(self, on: bool) -> None:
        """With it on, every address in rings and descriptors goes through the IOTLB first."""
    def iotlb_update(
        self, iova: int, size: int, user_addr: int, readable: bool, writable: bool
    ) -> None: ...
    def iotlb_invalidate(self, iova: int, size: int) -> None: ...

@final
class Request:
    """One buffer as the device sees it. Reading and writing advance separate cursors."""

    @property
    def readable(self) -> int:
        """Bytes of the device-readable part."""
    @property
    def writable(self) -> int:
        """Bytes of the device-writable part."""
    @property
    def written(self) -> int:
        """Bytes written so far."""
    @property
    def queue_index(self) -> int: ...
    @property
    def outstanding(self) -> bool:
        """Whether it is still to be completed."""
    def read(self, length: int = -1) -> bytes:
        """The next `length` device-readable bytes (-1: all that are left); fewer at the end."""
    def peek(self, length: int) -> bytes:
        """What `read` would return, without advancing. The driver may change it before `read`."""
    def write(self, data: Buffer) -> int:
        """Append to the device-writable part; returns all bytes written so far. Raises ValueError
        if `data` does not fit (nothing is written then)."""
    def write_at(self, offset: int, data: Buffer) -> None:
        """Write at an offset of the device-writable part; the cursor moves to its end if that is
        further."""
    def segments(self) -> list[tuple[int, int, bool]]:
        """(address, length, writable) of each piece."""
    def complete(self, written: int | None = None) -> None:
        """Hand the buffer back (`written` defaults to `self.written`); DeviceQueue.flush
        publishes."""

@final
class Batch:
    """Buffers taken together, oldest first."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Request: ...
    def __iter__(self) -> Iterator[Request]: ...
    def readable(self) -> memoryview:
        """Device-readable bytes per buffer, as uint64."""
    def writable(self) -> memoryview:
        """Device-writable bytes per buffer, as uint64."""
    def addresses(self) -> memoryview:
        """The guest address of each buffer's first piece, as uint64."""
    def read_all(self) -> list[bytes]: ...
    def read_array(self) -> NDArray[uint8]:
        """The device-readable bytes as an array of shape (buffers, bytes), copied once. Raises
        ValueError if the buffers are not of one length."""
    def write_array(self, rows: NDArray[uint8]) -> int:
        """Write an array of shape (buffers, bytes), a row to the device-writable part of each
        buffer; returns the bytes in a row, which is what `handle_batch` returns and `complete`
        takes. Raises ValueError for another shape or where a row does not fit (nothing is written
        then), TypeError or BufferError for what is no array of bytes."""
    def complete(self, written: int | Sequence[int] = 0) -> None:
        """Hand back every buffer of the batch with the same or its own written length."""

@final
class Userfault:
    """A userfaultfd: who touches a page of registered memory that its file does not have yet sleeps
    until the memory's owner has put it there."""

    def __init__(self) -> None:
        """Raises OSError where the process may not have one."""
    def fileno(self) -> int:
        """The descriptor, which stays owned here; the memory's owner needs a duplicate."""
    @staticmethod
    def bases(memory: Memory) -> list[tuple[int, int]]:
        """For each region its guest address, and the address of its first byte in this process."""
    def register(self, memory: Memory) -> None:
        """Wait for the pages of all its regions. Raises OSError for memory of another kind than a
        memfd, tmpfs or hugetlbfs file."""
    def watch(self, socket: int) -> None:
        """Once the other end of this socket closes, nothing is waited for any more; a thread of the
        core sees to that. `socket` stays the caller's."""
    def release(self) -> None:
        """Nothing is waited for any more; who sleeps goes on with what is there."""

class DeviceQueue:
    """The device half of a virtqueue (split: 2.7, packed: 2.8, IN_ORDER: 2.7.9 / 2.8.8)."""

    def __init__(
        self,
        memory: Memory,
        features: int,
        size: int,
        desc: int,
        driver: int,
        device: int,
        *,
        index: int = 0,
        position: Position | None = None,
        one_used_entry_per_buffer: bool = False,
        inflight: Inflight | None = None,
    ) -> None:
        """`features` are the negotiated ones: RING_PACKED, IN_ORDER, INDIRECT_DESC and EVENT_IDX
        count. `desc`, `driver`, `device`: guest addresses of the three areas (2.6).

        With `inflight` what is taken is written down there, and what a queue before this one had
        taken and not used is taken first, oldest first; where the queue stands follows from that,
        and `position` counts only if there was none before.

        Raises ValueError on a bad size or alignment and for a region that is not for such a queue,
        RingFault on an unmapped area (behind an IOMMU TranslationMiss) and for a region whose
        contents cannot be."""
    @property
    def index(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def features(self) -> int: ...
    def set_kick(self, fd: int | None) -> None:
        """The eventfd that the driver writes; duplicated."""
    def set_call(self, fd: int | None) -> None:
        """The eventfd that we write; duplicated."""
    def set_err(self, fd: int | None) -> None: ...
    @property
    def kick_fd(self) -> int | None:
        """Our duplicate, to poll; owned by the queue."""
    def drain_kick(self) -> None: ...
    def set_used_log(self, addr: int | None) -> None:
        """Mark writes to a split ring's used ring in the dirty log as if it were at this address
        (None: where it is)."""
    def set_memory(self, memory: Memory) -> None:
        """Use a new snapshot of `memory` from now on. Raises TranslationMiss if the rings are
        gone."""
    def take(self, max: int = 65535) -> Batch:
        """Up to `max` buffers. Raises RingFault (the queue is broken from then on) or
        TranslationMiss (resolve it and call again: nothing is lost)."""
    def put_back(self, batch: Batch, start: int = 0) -> int:
        """Untake the buffers from `start` on; they must be the newest taken and not completed."""
    def serve(
        self,
        handler: Callable[[Request], Any],
        finish: Callable[[Request, Any], object],
        failed: Callable[[Request, Exception], object],
        max: int,
        waits: Callable[[Request, Coroutine[Any, Any, Any], Any], object] | None = None,
    ) -> int:
        """Take up to `max` buffers and call `handler` with each; returns how many there were. An
        int or None as the result completes the request (None: with `request.written`). What else
        it returns, or what `complete` refuses, `finish` is called with; `failed`, with what it
        raised. A request that the handler does not keep is the next one's object as well.

        With `waits`, which takes a task to call from: coroutines that the handler returns take
        their first step at once, up to the first that waits. With that one and what it waits for
        `waits` is called; those behind it go to `finish` without having begun. `failed` is called
        with a CancelledError, too.

        Raises what `take` and the callbacks raise."""
    def linger(self, microseconds: int) -> bool:
        """Look for available buffers for so long (at most 1000) without sleeping, and without the
        interpreter lock; True if there are some."""
    def flush(self) -> int:
        """Publish what is complete (under IN_ORDER: the finished prefix); returns buffers
        published."""
    def notify(self) -> bool:
        """flush, then send a used buffer notification if the driver wants one. True if sent."""
    def enable_kicks(self) -> bool:
        """Ask for available buffer notifications; True if buffers are available already."""
    def disable_kicks(self) -> None: ...
    @property
    def has_available(self) -> bool: ...
    @property
    def outstanding(self) -> int:
        """Buffers taken and not yet published."""
    @property
    def position(self) -> Position: ...
    @property
    def broken(self) -> str | None:
        """Why the queue is broken, or None."""
    def spoil_next_used(self, id: int = 0, written: int = 0) -> None:
        """For fault injection: write the next used entry with its identifier (16 bits) and length
        (32 bits) exclusive-ored with these."""
    def lose_call(self) -> bool:
        """For fault injection: flush, and lose the notification that is due. True if the driver
        wanted one."""
    def give_up(self, reason: str) -> None:
        """Break the queue for a reason of the device's own, which `broken` then tells, and signal
        the error descriptor. What is complete and not published stays so: `notify` before."""
    def stop(self) -> Position:
        """Publish the finished prefix, forget the rest, and return where the next owner resumes.
        The queue takes nothing more; requests still held become stale."""
    def release_inflight(self) -> bool:
        """Of a stopped queue: the next owner begins at the position and needs nothing of what was
        written down. False, and nothing happens, if the position does not say it all, since some of
        what is held was overtaken; True also without a region."""
    @property
    def stats(self) -> dict[str, int]:
        """buffers, batches, bytes_read, bytes_written, kicks_received, calls_sent, calls_saved,
        used_entries."""

@final
class Inflight:
    """A region in which device queues write down what they hold, for those that come after them
    (vhost-user, "Inflight I/O tracking"): shared memory that outlives the process."""

    def __init__(self, fd: int, size: int, offset: int, queues: int, queue_size: int) -> None:
        """`size` bytes at `offset` of `fd`, which stays the caller's: for virtqueues 0 to `queues`
        - 1 of up to `queue_size` slots each. Raises MemoryError_ if it cannot be mapped."""
    @staticmethod
    def bytes(queues: int, queue_size: int, packed: bool) -> int:
        """How large the region has to be."""

@final
class DriverQueue:
    """The driver half of a virtqueue."""

    def __init__(
        self,
        memory: Memory,
        features: int,
        size: int,
        desc: int,
        driver: int,
        device: int,
        *,
        index: int = 0,
        indirect_table: int = 0,
        indirect_length: int = 0,
        position: Position | None = None,
    ) -> None:
        """Initializes the three areas. `indirect_table`: guest address of size * indirect_length *
        16 bytes for indirect tables; 0 means that every chain is direct."""
    @property
    def index(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def features(self) -> int: ...
    @property
    def free(self) -> int:
        """Free descriptor slots."""
    @property
    def outstanding(self) -> int:
        """Buffers added and not yet reaped."""
    def set_kick(self, fd: int | None) -> None: ...
    def set_call(self, fd: int | None) -> None: ...
    @property
    def kick_fd(self) -> int | None: ...
    @property
    def call_fd(self) -> int | None: ...
    def add(
        self,
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]],
        cookie: int = 0,
    ) -> None:
        """Add one buffer of (address, length) pieces; invisible until `publish`. Raises QueueFull,
        ValueError (no piece at all)."""
    def add_batch(
        self,
        addresses: Buffer,
        lengths: Buffer,
        writable: bool,
        first_cookie: int = 0,
        all_or_nothing: bool = False,
    ) -> int:
        """Add one-piece buffers from uint64 addresses and uint32 lengths, cookies counting up from
        `first_cookie`; returns how many fitted. With `all_or_nothing` raises QueueFull instead."""
    def publish(self) -> int:
        """Make what was added available to the device; returns the number of buffers."""
    def kick(self) -> bool:
        """publish, then notify the device if it wants it. True if sent."""
    def reap(self, max: int = 65535) -> list[tuple[int, int]]:
        """(cookie, written) of used buffers, in the order of use. Raises RingFault."""
    def reap_into(self, cookies: Buffer, written: Buffer) -> int:
        """The same into uint64 and uint32 arrays; returns how many."""
    def enable_calls(self) -> bool:
        """Ask for used buffer notifications; True if used buffers wait already."""
    def disable_calls(self) -> None: ...
    @property
    def has_used(self) -> bool: ...
    def wait(self, timeout_s: float | None = None, alarm_fd: int | None = None) -> bool:
        """Block (without the interpreter lock) until used buffers wait; False on time-out, or when
        the other end of `alarm_fd` hangs up (POLLRDHUP)."""
    def take_back(self) -> list[int]:
        """After a queue or device reset: cookies of all buffers not reaped, oldest first; empties
        the ring."""
    @property
    def position(self) -> Position: ...
    @property
    def torn(self) -> bool:
        """Whether a device that is gone died while it published several used descriptors, the first
        of them last: those that it did write are in the way of the next one."""
    @property
    def device_position(self) -> Position:
        """Where the device stands by what it has used so far, reaped here or not. Only for a device
        that is gone: one at work moves on meanwhile."""
    @property
    def broken(self) -> str | None: ...
    @property
    def stats(self) -> dict[str, int]:
        """buffers, batches, bytes_written, kicks_sent, kicks_saved, calls_received,
        used_entries."""

@final
class Load:
    """A driver half that keeps a device busy, without the interpreter: buffers of one shape.

    Every device-readable part is written before its buffer is added, every device-writable part is
    copied out when it comes back."""

    def __init__(
        self,
        queue: DriverQueue,
        memory: Memory,
        address: int,
        *,
        readable: int = 64,
        writable: int = 0,
        depth: int = 128,
        batch: int = 1,
        wait: str = "poll",
        echo: bool = False,
    ) -> None:
        """Buffers of `readable` and `writable` bytes in `Load.bytes` of `memory` from `address` on,
        up to `depth` in flight, made available `batch` at a time. `wait`: "poll", "adaptive" or
        "event" (by the queue's call eventfd). `echo`: each reply is to begin with the bytes of its
        request; every 61st is compared. Raises ValueError, and MemoryError_ for memory that is not
        mapped."""
    @staticmethod
    def bytes(*, readable: int = 64, writable: int = 0, depth: int = 128) -> int:
        """Of memory that such buffers take."""
    def run(self, seconds: float) -> dict[str, Any]:
        """Keep the device busy for so long (at most 60 s), then wait for what it holds: buffers,
        bytes_written, verified, seconds, batches, kicks_sent, calls_received, used_entries.

        The queue is the load's meanwhile; other Python threads run. Raises RingFault, VirtqError
        for a wrong echo, TimeoutError if the device keeps buffers for 5 s."""

@final
class BlkDisk:
    """The sectors behind a block device (5.2), for any number of pumps at the same time. The
    methods that move bytes are for a device in Python: they raise OSError as the storage gives it,
    with EIO (reading), ENOSPC or EROFS (changing) for what the disk does not have or allow."""

    @staticmethod
    def file(
        path: str | PathLike[str],
        *,
        read_only: bool = False,
        direct: bool = False,
        io_uring: bool = True,
    ) -> BlkDisk:
        """A raw image or a block device; `direct` goes past the page cache (O_DIRECT), by way of an
        aligned buffer where a request is not aligned. `io_uring`: use it where it is to be had, for
        transfers that wait for the storage; else each is a system call of its own. Raises OSError,
        or ValueError if it is neither, smaller than a sector, or (direct) no multiple of the block
        size."""
    @staticmethod
    def memory(size: int) -> BlkDisk:
        """`size` bytes of zeroes that vanish with the disk. Raises ValueError below a sector."""
    @staticmethod
    def null(size: int) -> BlkDisk:
        """Reads zeroes, forgets what is written. Raises ValueError below a sector."""
    @property
    def capacity(self) -> int:
        """Whole sectors of 512 bytes, as when the disk was opened or last refreshed."""
    def refresh(self) -> int:
        """Look at the file's size again; returns the capacity."""
    @property
    def read_only(self) -> bool: ...
    @property
    def block_size(self) -> int:
        """The logical block size in bytes: transfers of whole blocks are the quick ones."""
    @property
    def writeback(self) -> bool:
        """Whether changes may stay in a cache until a flush (the default). If not, the pumps flush
        before they report a write, a discard or write zeroes."""
    @writeback.setter
    def writeback(self, on: bool) -> None: ...
    @property
    def serial(self) -> bytes:
        """What GET_ID answers, without padding. Setting more than 20 bytes raises ValueError."""
    @serial.setter
    def serial(self, serial: Buffer) -> None: ...
    @property
    def limits(self) -> dict[str, int]:
        """What discard and write zeroes requests may hold, named as in the configuration space."""
    def set_limits(
        self,
        *,
        max_discard_sectors: int | None = None,
        max_discard_seg: int | None = None,
        discard_sector_alignment: int | None = None,
        max_write_zeroes_sectors: int | None = None,
        max_write_zeroes_seg: int | None = None,
        write_zeroes_may_unmap: bool | None = None,
    ) -> None:
        """Change some of `limits`. No segments or no sectors: pumps answer UNSUPP. The alignment is
        advice for the driver. Raises ValueError for more than 65536 segments."""
    @property
    def stats(self) -> dict[str, int]:
        """What the requests of all pumps came to; names as of `BlkPump.stats`."""
    def failure(self) -> OSError | None:
        """The first failure of the storage since the last question that a pump answered with
        IOERR; taken once."""
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: Buffer) -> None: ...
    def flush(self) -> None:
        """Commit what was written to the storage below."""
    def discard(self, offset: int, length: int) -> None:
        """The range's content is no longer needed; does nothing where the storage cannot use it."""
    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Make the range read as zeroes; with `unmap` it may be deallocated."""

@final
class BlkPump:
    """Serves one queue of a disk on a thread of its own, without the interpreter. Whatever the file
    or the driver does wrong ends as the status of that request; a ring that the driver broke, or
    memory without a translation, is `trouble`. A pump that is dropped ends its thread."""

    def __init__(
        self, disk: BlkDisk, queue: DeviceQueue, *, wait: str = "event", enabled: bool = True
    ) -> None:
        """Starts at once. `wait`: how it waits when there is nothing to do: "poll" (look again),
        "adaptive" (look again for a while, then sleep) or "event" (sleep until notified). Raises
        ValueError for another word, OSError if the queue has a pump already."""
    def enable(self, on: bool) -> None:
        """A disabled ring is left alone: nothing is taken from it."""
    def wake(self) -> None:
        """Look again: a translation that was missing may be there."""
    @property
    def attention_fd(self) -> int:
        """Readable when `trouble` has something; owned by the pump."""
    def trouble(self) -> Exception | None:
        """Why the pump does not go on, a RingFault or a TranslationMiss; taken once."""
    def stop(self) -> Position:
        """Finish what was taken, end the thread, stop the queue and return where the next owner
        resumes. A second time: the same position."""
    @property
    def stats(self) -> dict[str, int]:
        """batches; reads, writes, flushes, discards, write_zeroes, get_ids (whatever became of
        them); errors (IOERR), unsupported (UNSUPP); queued (transfers that went through io_uring),
        submissions (calls that told it of them); bytes_read, bytes_written (what ended well)."""

@final
class BlkLoad:
    """A block device (5.2) under load: keeps requests in flight on some virtqueues, each looked at
    when it comes back, without the interpreter. `BlkDriver.load` makes one."""

    def __init__(
        self,
        memory: Memory,
        address: int,
        queues: list[DriverQueue],
        *,
        capacity_sectors: int,
        block_bytes: int = 4096,
        depth: int = 32,
        batch: int = 8,
        write_percent: int = 0,
        random: bool = True,
        wait: Literal["poll", "event"] = "poll",
        seed: int = 0,
        verify: Literal["pattern", "zeroes"] | None = None,
        verify_every: int = 16,
    ) -> None:
        """`address`: guest address of `memory_bytes` that nobody else uses, in one region.
        `capacity_sectors`: sectors of 512 bytes to work on, from the first one. `block_bytes`: data
        in each request. `depth`: requests in flight on each queue. `batch`: requests made available
        at once, at most. `write_percent`: of 100 requests, how many write. `random`: blocks in
        random order, which follows from `seed`. `wait`: look for answers again and again, or sleep
        until notified.

        What is written follows from the number of the sector and `seed`, so that blocks can be
        read, and written again, in any order. `verify`: whether reads should find that pattern (see
        `fill`) or zeroes; every `verify_every`-th read is checked, whole.

        Raises ValueError for options that make no sense, a queue that has buffers outstanding or
        too few slots, or none to be notified by; MemoryError_ if the memory is not there."""
    @staticmethod
    def memory_bytes(*, block_bytes: int = 4096, depth: int = 32, queues: int = 1) -> int:
        """Guest memory that such a load needs."""
    def run(self, seconds: float) -> dict[str, Any]:
        """Begin requests for so long (up to 3600), wait for the last answer, and return what was
        seen: requests (reads + writes), bytes (of data, of requests that ended well), errors (with
        another status than OK), verified, mismatches; batches (publications), kicks (available
        buffer notifications sent), calls (used buffer notifications that came), used_entries;
        seconds (to the last answer), cpu_seconds (of this thread); the latency from publication to
        reaping in nanoseconds, to 1 %, as p50_ns, p99_ns, p999_ns, min_ns, max_ns, mean_ns;
        first_failure (what first went wrong, in words, or None).

        Raises RingFault, TimeoutError if nothing comes back for 10 seconds, ValueError while it
        runs in another thread, and what a signal handler raises; requests may then be outstanding,
        and the next run waits for them, too."""
    def fill(self) -> dict[str, Any]:
        """Write the pattern to each block once, in order; returns and raises as `run`."""
    @property
    def outstanding(self) -> int:
        """Requests in flight."""

@final
class NetHub:
    """What network devices of this process meet at: what one sends, the others receive. Once a
    device has used an address as a source, frames to that address go to this device only."""

    def __init__(self) -> None: ...
    @property
    def members(self) -> int:
        """Ports at the hub. A port leaves when it and its pumps are gone."""

@final
class NetPort:
    """What the packets of one network device go to and come from; `NetPump` moves them. A port
    outlives its pumps, so that a device that is reset finds it as it was."""

    @staticmethod
    def sink(keep: int = 0) -> NetPort:
        """Takes every frame and gives none. With `keep` it keeps the last so many frames, and a
        `checksum` of all."""
    @staticmethod
    def source(size: int = 64, count: int | None = None) -> NetPort:
        """Gives `count` frames (None: without end) of `size` bytes, as fast as there are buffers;
        what is sent to it is forgotten. A frame is a broadcast of type 0x88b5, a sequence number
        from 0 in 8 big-endian bytes, then bytes that count up from its lowest one, cut to the
        size. Raises ValueError for a size outside 14..=65589."""
    @staticmethod
    def hub(hub: NetHub) -> NetPort:
        """A place at a hub. Up to 4096 packets or 8 MiB wait for each receive queue; more are
        dropped, and so is what comes while the device has no receive pump. With several queue
        pairs a flow arrives on the pair that last sent on it."""
    @staticmethod
    def tap(name: str, pairs: int = 1) -> NetPort:
        """The tap interface `name`, which may have a `%d` in it for the first free number; it is
        made if there is none, and then goes with the port. Bringing it up is the caller's. The
        kernel sends to pair 0 and to those others whose receive pump is enabled. Raises OSError,
        and ValueError for a name that no interface can have."""
    @staticmethod
    def pcap(
        read: str | PathLike[str] | None = None, write: str | PathLike[str] | None = None
    ) -> NetPort:
        """Gives the frames of a capture file, once and on queue pair 0, as fast as there are
        buffers, and writes what is sent to another (nanoseconds; whole packets after each batch).
        Raises OSError, and ValueError for a file that is cut or no classic capture of Ethernet
        frames."""
    @property
    def name(self) -> str | None:
        """What the interface of a tap is called; None for other ports."""
    @property
    def offers_offloads(self) -> bool:
        """Whether packets may carry unfinished checksums and segments. If not, the device must not
        offer features for them: header fields are ignored on transmit and zero on receive."""
    def set_offloads(self, features: int) -> None:
        """Which offloads the driver accepts in received packets: its negotiated features, of which
        GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN and GUEST_UFO count. At first none. Raises
        OSError for a combination that the kernel does not have, such as TSO without CSUM."""
    @property
    def kept(self) -> list[bytes]:
        """The last frames of a sink that keeps them, oldest first; else empty."""
    @property
    def stats(self) -> dict[str, int]:
        """The counters of `NetPump.stats` for all pumps that the port has had, `tx_` for what came
        from the driver and `rx_` for what went to it. A sink that keeps frames has `checksum`
        also: the CRC-32 of each, added up modulo 2**64."""

@final
class NetPump:
    """Moves packets between one queue and a port on a thread of its own, without the interpreter.
    What the driver puts into a packet can only get it dropped; a ring that the driver broke, or
    memory without a translation, is `trouble`. A pump that is dropped ends its thread."""

    def __init__(
        self,
        port: NetPort,
        queue: DeviceQueue,
        *,
        receive: bool,
        pair: int = 0,
        mergeable: bool = False,
        mtu: int | None = None,
        wait: str = "event",
        enabled: bool = True,
    ) -> None:
        """Starts at once. `receive`: whether it fills the buffers of a receive queue or empties
        those of a transmit queue. For a receive queue, `mergeable`: MRG_RXBUF is negotiated;
        `mtu`: the negotiated MTU, above which packets that are not to be segmented are dropped
        (5.1.4). `wait` as for `BlkPump`.

        A receive queue gets one used entry per buffer, also IN_ORDER, as drivers (DPDK) need it.
        The pumps of a queue pair that poll share one thread.

        Raises ValueError for a pair that the port does not have and for another word than those of
        `wait`, OSError if the queue has a pump already."""
    def enable(self, on: bool) -> None:
        """A disabled transmit queue discards its packets; a disabled receive queue is left alone,
        and so are the packets that wait for it."""
    def wake(self) -> None:
        """Look again: a translation that was missing may be there."""
    @property
    def attention_fd(self) -> int:
        """Readable when `trouble` has something; owned by the pump."""
    def trouble(self) -> Exception | None:
        """Why the pump does not go on, a RingFault or a TranslationMiss; taken once."""
    def stop(self) -> Position:
        """Finish the round, end the thread, stop the queue and return where the next owner
        resumes. A second time: the same position."""
    @property
    def stats(self) -> dict[str, int]:
        """packets, bytes (of frames, without headers), dropped_malformed (transmit: buffers without
        a packet in them; receive: buffers without room for a header, packets that the driver must
        not see), dropped_no_room (larger than a buffer or, mergeable, than the whole ring),
        dropped_inbox_full (at a hub), dropped_port_error, dropped_mtu, dropped_disabled."""

def line_round_trip(one: int, other: int) -> float | None:
    """The seconds that a cache line takes from processor `one` to `other` and back, as things are
    now; a millisecond's work for both. None if they are the same, or busy. Raises ValueError for
    one that this process may not use."""

@final
class RingLoop:
    """Both halves of a virtqueue at work against each other, on two threads: what a kind of ring is
    worth, with nothing around it. The sender writes every payload, the receiver copies it out,
    whatever the other half wrote is checked, and one payload in 32 is compared."""

    def __init__(
        self,
        features: int,
        size: int,
        *,
        direction: str = "send",
        batch: int = 32,
        chain: int = 1,
        length: int = 64,
        indirect: bool = False,
        event: bool = False,
        regions: int = 1,
        depth: int | None = None,
        spread: bool = False,
        pin: tuple[int, int] | None = None,
    ) -> None:
        """`features` and `size` as for the queues. `direction`: "send" (from the driver to the
        device), "receive", or "both" (a queue each). `batch`: buffers that are published and taken
        at once. `chain`: pieces of each buffer, in indirect tables with `indirect`. `length`: bytes
        of each buffer, all pieces together. `event`: sleep until notified, instead of polling.
        `regions`: of memory, which the buffers are spread over evenly. `depth`: buffers outstanding
        at the most (None: as many as fit). `spread`: each on a page of its own, at offsets in it
        that do not depend on the regions; else they are neighbours. `pin`: processors of driver
        and device. Raises ValueError, naming what is wrong, and why the memory cannot be had."""
    def run(self, seconds: float) -> dict[str, int | float]:
        """Run both halves for so long (60 at most), without the interpreter lock. Returns of this
        run: buffers (that went all the way), seconds, batches (that the device took), kicks_sent,
        calls_sent, used_entries (written), bytes (of payloads), verified (payloads that were
        compared). Raises VirtqError for a payload that is not what was sent, ValueError, OSError if
        it runs already."""

@final
class NetLoad:
    """The driver's end of a network device under load, without the interpreter: it fills frames,
    keeps receive buffers posted, copies received frames out, and checks one in 32. Frames are those
    of `NetPort.source`; of received ones of other kinds, IPv4 ones are checked by their header."""

    def __init__(
        self,
        transmit: DriverQueue | None,
        receive: DriverQueue | None,
        *,
        transmit_memory: int = 0,
        receive_memory: int = 0,
        length: int = 64,
        batch: int = 32,
        mergeable: bool = False,
        header_bytes: int = 12,
        buffer_bytes: int = 1536,
        pin: int | None = None,
    ) -> None:
        """The queues must be empty, and stay the load's. `transmit_memory`, `receive_memory`: guest
        addresses of memory for their packet buffers, in one region each: `memory_bytes` of it.
        `length`: bytes of each frame sent. `buffer_bytes`: of each receive buffer, header included.
        `mergeable`: MRG_RXBUF is negotiated. `pin`: the processor to run on. Raises ValueError,
        and RingFault for memory that is not mapped."""
    @staticmethod
    def memory_bytes(size: int, buffer_bytes: int) -> int:
        """Bytes of guest memory for the packet buffers of a queue of `size` slots; `buffer_bytes`
        with the header: when sending `header_bytes + length`."""
    def run(self, seconds: float) -> dict[str, int | float]:
        """Send and receive for so long (60 at most), polling, without the interpreter lock. Returns
        of this run: seconds, transmitted (frames that the device has used), received, buffers
        (the sum of both), bytes (of frames), batches, kicks_sent, used_entries (read), verified,
        malformed (too short for a header). Raises VirtqError for a received frame that is not what
        was sent, RingFault, OSError if it runs already."""
