"""The channel on which a back-end asks and the front-end answers, served by a thread of its own."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from virtq.errors import PeerGone, TransportError
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.messages import Back
from virtq.transports.vhost_user.protocol import Outgoing, Refusal, Request, Responder
from virtq.transports.vhost_user.wire import Payload, ProtocolError

log = logging.getLogger("virtq.vhost_user")

_JOIN_S = 1.0

Handler = Callable[[Back, Payload | None], bool]


class OtherChannel:
    """Answers the requests that arrive on `sock`, which is owned here, until `close`.

    `handle` is called in the thread; False says no. A violation ends this channel alone.
    """

    def __init__(
        self, sock: socket.socket, responder: Responder, name: str, handle: Handler
    ) -> None:
        self._sock = sock
        self._responder = responder
        self._name = name
        self._handle = handle
        self._thread = threading.Thread(target=self._run, name="virtq-vhost-user", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        try:
            while self._receive():
                while (event := self._responder.next_request()) is not None:
                    self._sock.sendall(self._answer(event).data)
        except ConnectionError as gone:
            # One of the two ends was closed while an answer was on its way, which harms nobody.
            log.info("%s: the back-end's channel is closed: %s", self._name, str(gone))
        except (TransportError, OSError) as error:
            log.warning("%s: the back-end's channel is closed: %s", self._name, str(error))
        finally:
            self._responder.close()
            self._sock.close()

    def _receive(self) -> bool:
        data, fds = channel.receive(self._sock, self._responder.wanted)
        if data:
            self._responder.receive(data, fds)
        return bool(data)

    def _answer(self, event: Request | Refusal) -> Outgoing:
        if isinstance(event, Refusal):
            log.warning("%s: refused: %s", self._name, str(event.error))
            return event.answer
        code, name = event.message.code, event.message.name
        assert isinstance(code, Back)
        with event.fds:
            try:
                if self._handle(code, event.payload):
                    return self._responder.accept(event)
                error: Exception = ProtocolError(name, "request", int(code), "not possible here")
            except PeerGone as gone:
                # It left while it was being answered; a driver is told by what it waits for.
                log.info("%s: %s is not answered: %s", self._name, name, str(gone))
                error = gone
            except Exception as raised:
                log.exception("%s: %s", self._name, name)
                error = raised
            return self._responder.refuse(event, error)
