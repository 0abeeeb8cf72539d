"""Memory whose pages are still on their way from another machine (postcopy migration, PAGEFAULT).

    POSTCOPY_ADVISE   it may come to that: the back-end opens a userfaultfd, and shares it
    POSTCOPY_LISTEN   it has come to that; memory is shared only after this
    SET_MEM_TABLE     is answered with where each region lies here, for the front-end to understand
    or ADD_MEM_REG    the faults; once it confirms that it does, the regions are registered
    POSTCOPY_END      every page is there

In between, who touches a page that is not there sleeps until the front-end has put it there. A
front-end that is gone wakes everybody: they find zeros, and then the end of the session.
"""

from __future__ import annotations

import functools

from virtq._core import Memory, Userfault
from virtq.errors import TransportError
from virtq.transports.vhost_user.wire import Region


@functools.cache
def is_possible() -> bool:
    """Whether this process may have a userfaultfd."""
    try:
        Userfault()
    except OSError:
        return False
    return True


class Postcopy:
    """How far a connection's postcopy migration has come."""

    def __init__(self) -> None:
        self._userfault: Userfault | None = None
        self.listening = False
        """Whether memory that is shared now may lack pages."""

    def advise(self, socket: int) -> int:
        """Get ready; returns the userfaultfd, which stays ours. All waiting ends with the
        connection behind `socket`. Raises OSError, TransportError while listening."""
        if self.listening:
            raise TransportError("postcopy has begun already")
        userfault = Userfault()
        userfault.watch(socket)
        self._userfault = userfault
        return userfault.fileno()

    def listen(self, memory: Memory) -> None:
        """Raises TransportError unless advised, and with no memory shared yet."""
        if self._userfault is None:
            raise TransportError("postcopy was not advised")
        if memory.regions:
            raise TransportError(f"{len(memory.regions)} regions are shared already")
        self.listening = True

    def locate(self, region: Region, memory: Memory) -> Region:
        """The region with its address in this process."""
        bases = dict(Userfault.bases(memory))
        return region._replace(user_addr=bases[region.guest_addr])

    def register(self, memory: Memory) -> None:
        """The front-end understands faults of all that is shared. Raises OSError for memory that
        cannot be waited for."""
        assert self._userfault is not None
        self._userfault.register(memory)

    def end(self) -> None:
        """Every page is there. Raises TransportError if postcopy was not even advised."""
        if self._userfault is None:
            raise TransportError("postcopy was not advised")
        self.close()

    def close(self) -> None:
        """Nobody waits any more. Harmless at any time."""
        if self._userfault is not None:
            self._userfault.release()
            self._userfault = None
        self.listening = False
