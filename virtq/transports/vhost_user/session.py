"""One front-end, from its connection to its end, as the back-end serves it.

The protocol says what may come, `requests` what each request does; this file reads and answers.
Everything runs in callbacks of the event loop, one message at a time and never waiting, so a
front-end that sends half a message, or does not read its replies, holds up nobody but itself.

A request that fails is refused in whatever form it has for that; one without such a form ends the
session. So does any exception that nobody expected: the front-end is let go, the process stays.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable

from virtq.errors import TransportError, VirtqError
from virtq.transports.base import DeviceSide
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.inflight import Answer
from virtq.transports.vhost_user.messages import Front
from virtq.transports.vhost_user.offer import (
    AS_USUAL,
    ProtocolChange,
    offered_features,
    offered_protocol_features,
)
from virtq.transports.vhost_user.outbox import Outbox
from virtq.transports.vhost_user.protocol import BackendProtocol, Outgoing, Refusal, Request
from virtq.transports.vhost_user.requests import Echo, Requests
from virtq.transports.vhost_user.rings import MAX_QUEUES
from virtq.transports.vhost_user.vrings import RingError, reason

log = logging.getLogger("virtq.vhost_user")

_DRAIN_S = 2.0
"""How long a ring that is to be stopped may take to finish what the device holds of it."""


class Session:
    """Serves one connected front-end. The socket stays the caller's to close."""

    def __init__(
        self,
        device: DeviceSide,
        sock: socket.socket,
        name: str,
        protocol: ProtocolChange = AS_USUAL,
    ) -> None:
        self._sock = sock
        self._name = name
        self._protocol = BackendProtocol(
            offered_features(device),
            offered_protocol_features(device, protocol),
            device.queue_sizes[:MAX_QUEUES],
        )
        self._requests = Requests(device, self._protocol, sock.fileno(), name)
        self._outbox = Outbox(sock)
        self._later: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Serve until the front-end leaves. Raises TransportError (ProtocolError for a violation of
        the protocol) if it does not leave in good order."""
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._sock.setblocking(False)
        try:
            self._requests.begin()
            self._loop.add_reader(self._sock, self._readable)
            await self._done
        finally:
            self._close()
            if self._later is not None:
                await asyncio.wait([self._later])

    def _close(self) -> None:
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if self._later is not None:
            self._later.cancel()
        self._requests.close()
        self._protocol.close()

    def _finish(self, error: Exception | None = None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
            return
        if not isinstance(error, TransportError):
            log.error("%s: not expected", self._name, exc_info=error)
            error = TransportError(f"{self._name}: {type(error).__name__}: {error}")
        # Where it was raised would keep the front-end's memory alive as long as the error.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self._done.set_exception(error)

    # ------------------------------------------------------------ the main channel

    def _readable(self) -> None:
        main = self._protocol.main
        try:
            data, fds = channel.receive(self._sock, main.wanted)
            if not data:
                main.end_of_stream()
                self._finish()
                return
            main.receive(data, fds)
            while (event := main.next_request()) is not None:
                held = self._requests.must_finish(event) if isinstance(event, Request) else None
                if held is not None:
                    self._loop.remove_reader(self._sock)
                    self._later = asyncio.ensure_future(self._answer_later(event, held))
                    return
                self._send(self._answer(event))
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError:
            self._finish()
        except Exception as error:
            self._finish(error)

    async def _answer_later(self, event: Request | Refusal, held: Awaitable[object]) -> None:
        """Nothing more is read from the front-end meanwhile; who leaves is noticed afterwards."""
        try:
            await asyncio.wait_for(held, _DRAIN_S)
        except TimeoutError:
            log.warning("%s: a ring is stopped with requests unfinished", self._name)
        except Exception as error:
            self._finish(error)
            return
        if self._done.done():
            return
        self._loop.add_reader(self._sock, self._readable)
        try:
            self._send(self._answer(event))
        except ConnectionError:
            self._finish()
        except Exception as error:
            self._finish(error)

    def _send(self, outgoing: Outgoing) -> None:
        self._outbox.put(outgoing)
        if not self._outbox.flush():
            # A front-end that does not read its replies is not listened to either.
            self._loop.remove_reader(self._sock)
            self._loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        try:
            if self._outbox.flush():
                self._loop.remove_writer(self._sock)
                self._loop.add_reader(self._sock, self._readable)
        except OSError:
            self._finish()

    def _answer(self, event: Request | Refusal) -> Outgoing:
        if isinstance(event, Refusal):
            level = _level(event.error.message)
            log.log(level, "%s: refused: %s", self._name, str(event.error))
            return event.answer
        log.debug("%s: %s %s", self._name, event.message.name, event.payload)
        main = self._protocol.main
        with event.fds:
            try:
                reply = self._requests.carry_out(event)
            except RingError as error:
                log.warning("%s: %s: %s", self._name, event.message.name, str(error))
                return main.ignore(event)
            except (VirtqError, ValueError, OSError) as error:
                level = _level(event.message.name)
                log.log(level, "%s: %s failed: %s", self._name, event.message.name, reason(error))
                return main.refuse(event, error)
            except Exception as error:
                log.exception("%s: %s failed", self._name, event.message.name)
                return main.refuse(event, error)
        if isinstance(reply, Echo):
            return main.echo(event, reply.payload)
        if isinstance(reply, Answer):
            return main.accept(event, reply.payload, reply.fds)
        return main.accept(event, reply)


def _level(message: str) -> int:
    """How loud a refusal is: front-ends find sizes by asking for too much."""
    probing = (Front.GET_CONFIG.name, Front.SET_VRING_NUM.name)
    return logging.INFO if message in probing else logging.WARNING
