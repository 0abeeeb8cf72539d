"""A device that no driver can do anything with is judged for that, and for nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.check.mutants_mmio import NoMagic, OfTheNextVersion
from tests.check.mutants_pci_capabilities import CommonInNoBar, NoCommonStructure
from tests.check.reference_mmio import MmioReference, MmioWindow
from tests.check.reference_pci import PciFunction, PciReference
from virtq.cli import run as cli
from virtq.cli.failures import EXIT_FAILED, EXIT_UNUSABLE
from virtq.connecting import TRANSPORTS
from virtq.transports.base import DriverTransport

PCI, MMIO = "qtest:virtio-blk-pci", "qtest:virtio-blk-device"


class LegacyAlone(PciReference):
    """Of 0.9.5: no device that anything here is asked of."""

    class function(PciFunction):
        def structures(self) -> Iterator[tuple[int, int, int, int, bytes]]:
            return iter(())

        def lay_out(self) -> None:
            super().lay_out()
            self.space[2:4] = (0x1001).to_bytes(2, "little")


class OfVersion1(MmioReference):
    class window(MmioWindow):
        def get(self, name: str) -> int:
            return 1 if name == "Version" else super().get(name)


def check(
    monkeypatch: pytest.MonkeyPatch, device: type[DriverTransport], uri: str, *words: str
) -> int:
    """`virtq check` on a device of the tests, as if QEMU had it."""
    monkeypatch.setitem(TRANSPORTS, "qtest", lambda _: device())
    return cli(["check", uri, *words])


@pytest.mark.parametrize(
    ("device", "uri", "case", "id"),
    [
        (NoCommonStructure, PCI, "pci_capabilities.a_common_structure", "pci.common.dev.present"),
        (CommonInNoBar, PCI, "pci_capabilities.a_common_structure", "pci.common.dev.present"),
        (NoMagic, MMIO, "mmio.magic_value", "mmio.reg.dev.magic"),
        (OfTheNextVersion, MMIO, "mmio.version", "mmio.reg.dev.version"),
    ],
)
def test_one_case_fails(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: type[DriverTransport],
    uri: str,
    case: str,
    id: str,
) -> None:
    assert check(monkeypatch, device, uri, "--json") == EXIT_FAILED
    results = json.loads(capsys.readouterr().out)["results"]
    assert [one["case"] for one in results if one["verdict"] == "fail"] == [case]
    assert {one["verdict"] for one in results} == {"fail", "skipped"}
    assert all(id in one["came"] + one["reason"] for one in results)


@pytest.mark.parametrize(
    ("device", "uri", "words", "said"),
    [
        # Nobody asked about what it breaks.
        (NoCommonStructure, PCI, ("--only", "split"), "no COMMON structure"),
        (LegacyAlone, PCI, (), "only the legacy interface"),
        (OfVersion1, MMIO, (), "registers of version 1"),
    ],
)
def test_what_cannot_be_judged(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: type[DriverTransport],
    uri: str,
    words: tuple[str, ...],
    said: str,
) -> None:
    assert check(monkeypatch, device, uri, *words) == EXIT_UNUSABLE
    assert said in capsys.readouterr().err
