"""For people who test devices and drivers: processes, Linux guests, and a pytest plugin.

The plugin (`virtq.testing.plugin`) comes with the package; its fixtures are there in every test:

    def test_shout(virtq_loopback):                       # in all four kinds of ring
        driver = virtq_loopback(Shout())
        assert driver.queues["requests"].call(b"hello", reply=5) == b"HELLO"

    def test_disk(virtq_serve, virtq_guest):              # in a Linux guest
        disk = virtq_serve("blk", "memory:16M")
        assert virtq_guest("blockdev --getsize64 /dev/vda", disk).text == "16777216\\n"
"""
