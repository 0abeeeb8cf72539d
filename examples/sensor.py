"""A thermometer on an I2C bus that takes its time: while it converts, the bus's loop is free.

    virtq serve examples/sensor.py:bus --socket-path /tmp/i2c.sock

In the guest: i2cget -y 0 0x48 0 w
"""

import asyncio

from virtq.devices.i2c import I2cAdapter, I2cTarget

CONVERSION_S = 0.002


class Thermometer(I2cTarget):
    """Like an LM75: register 0 is the temperature, in steps of 1/256 degree, high byte first."""

    def __init__(self, celsius=21.5):
        self.celsius = celsius
        self.register = 0

    def write(self, data):
        if data:
            self.register = data[0]

    async def read(self, length):
        if self.register:
            return bytes(length)
        await asyncio.sleep(CONVERSION_S)
        return round(self.celsius * 256).to_bytes(2, "big", signed=True)[:length].ljust(length)


def bus():
    return I2cAdapter({0x48: Thermometer()})
