"""A device in ten lines: every request comes back as it went.

virtq serve examples/echo.py:Echo --socket-path /tmp/echo.sock
python examples/echo.py              # the same, at vhost-user:/tmp/echo.sock

with virtq.connect("vhost-user:/tmp/echo.sock", want="IN_ORDER,RING_PACKED") as driver:
    assert driver.queues["requests"].call(b"hello", reply=5) == b"hello"
"""

import virtq


class Echo(virtq.Device):
    device_id = 63  # one that nobody has
    queues = (virtq.QueueSpec("requests", size=256),)

    def handle(self, request):
        return request.write(request.read()[: request.writable])


if __name__ == "__main__":
    virtq.serve(Echo(), "vhost-user:/tmp/echo.sock")
