"""As `load`, with a driver that is wrong: its areas are not aligned. `python -m
tests.check.drivers.spoilt rng SOCKET`."""

from __future__ import annotations

import sys
import time

from tests.check.drivers.reference_types import EntropyReference


class Shifted(EntropyReference):
    shifts = (0, 0, 2)


def main(path: str) -> None:
    driver = Shifted(path)
    driver.thread.start()
    while driver.thread.is_alive():
        time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[2])
