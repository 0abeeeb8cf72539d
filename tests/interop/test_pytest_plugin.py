"""The pytest plugin, as a project of somebody else's uses it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from virtq.testing.parts import LinuxKernel, MissingPart, find_parts

from .peers.availability import guest_parts

pytest_plugins = ["pytester"]

DEVICE = """
import virtq

class Shout(virtq.Device):
    device_id = 63
    queues = (virtq.QueueSpec("requests", 64),)

    def handle(self, request):
        return request.write(request.read().upper())
"""


IN_PROCESS = ("-p", "no:cacheprovider", "-p", "no:faulthandler")
"""An inner faulthandler would stay in front of the core's handler of SIGBUS when it is gone."""


PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(shout=DEVICE)
    pytester.makeini("[pytest]\naddopts = -p virtq.testing.plugin\npythonpath = .\n")
    return pytester


def test_it_is_an_entry_point() -> None:
    (name,) = PYPROJECT["project"]["entry-points"]["pytest11"].values()
    assert __import__(name, fromlist=["x"]).pytest_addoption


def test_only_a_guest_that_stalls_is_run_once_more(pytester: pytest.Pytester) -> None:
    options = PYPROJECT["tool"]["pytest"]["ini_options"]["addopts"]
    pytester.makeini(f"[pytest]\naddopts = {options}\n")
    pytester.makepyfile(
        """
        import pytest
        from virtq.testing.guest import GuestError, GuestStalled

        tried = []

        @pytest.mark.parametrize("error", [GuestError, GuestStalled])
        def test_guest(error):
            tried.append(error)
            if tried.count(error) == 1:
                raise error("it stands still")

        def test_that_it_stalls():
            with pytest.raises(GuestStalled):
                pass
        """
    )
    result = pytester.runpytest(*IN_PROCESS)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["RERUN *::test_guest[[]GuestStalled]", "*, 1 rerun in *"])


def test_a_device_under_a_loopback_driver(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest
        from shout import Shout
        from virtq import F, RingKind
        from virtq.devices.blk import BlkDevice
        from virtq.devices.disk import Disk
        from virtq.drivers.blk import BlkDriver
        from virtq.wrap import Faulty

        def test_shout(virtq_loopback, ring_kind):
            driver = virtq_loopback(Shout(), offer="-EVENT_IDX")
            assert driver.kind is ring_kind
            assert not driver.has(F.EVENT_IDX)
            assert driver.queues["requests"].call(b"hello", reply=5) == b"HELLO"

        def test_a_driver_of_ones_own(virtq_loopback):
            disk = virtq_loopback(Faulty(BlkDevice(Disk.memory(1 << 20))), BlkDriver)
            assert disk.read(0, 512) == bytes(512)

        @pytest.mark.parametrize("ring_kind", [RingKind.PACKED])
        def test_one_kind(virtq_loopback):
            assert virtq_loopback(Shout()).kind is RingKind.PACKED
        """
    )
    result = project.runpytest("-v", *IN_PROCESS)
    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines(["*test_shout?packed-in-order?*"])


def test_a_back_end_process(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest, virtq

        def test_own(virtq_serve):
            service = virtq_serve("shout.py:Shout", "--offer", "-RING_PACKED")
            with virtq.connect(service.uri) as driver:
                assert driver.queues["requests"].call(b"hello", reply=5) == b"HELLO"
            assert service.end().queues["requests"]["buffers"] == 1

        def test_two(virtq_serve):
            one, two = virtq_serve("blk", "memory:1M"), virtq_serve("blk", "memory:2M")
            assert one.uri != two.uri

        def test_that_does_not_start(virtq_serve):
            with pytest.raises(Exception, match="raed"):
                virtq_serve("blk", "memory:1M", "--fault", "raed:1:EIO")
        """
    )
    project.runpytest(*IN_PROCESS).assert_outcomes(passed=3)


@pytest.mark.interop
def test_a_guest(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = guest_parts()
    monkeypatch.setattr("virtq.testing.parts._find", lambda: parts)
    project.makepyfile(
        """
        import pytest
        from virtq import RingKind

        @pytest.mark.parametrize("ring_kind", [RingKind.PACKED_IN_ORDER])
        def test_disk(virtq_serve, virtq_guest):
            disk = virtq_serve("blk", "memory:16M", "--fault", "read:20:EIO")
            result = virtq_guest("blockdev --getsize64 /dev/vda", disk)
            assert result.text.split() == ["16777216"]
            assert disk.end().negotiated & RingKind.PACKED_IN_ORDER.features
        """
    )
    project.runpytest_inprocess(*IN_PROCESS).assert_outcomes(passed=1)


def test_without_a_guest(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    project.makepyfile(
        """
        def test_guest(virtq_guest):
            virtq_guest("true")
        """
    )
    monkeypatch.setenv("VIRTQ_QEMU", "no-such-qemu")
    result = project.runpytest_subprocess("-rs", "-p", "no:cacheprovider")
    result.assert_outcomes(skipped=4)
    result.stdout.fnmatch_lines(["*there is no no-such-qemu to run a guest*set VIRTQ_QEMU*"])
    result = project.runpytest_subprocess("-p", "no:cacheprovider", "-o", "virtq_guest_required=1")
    result.assert_outcomes(failed=4)


# What a guest is made of


def test_an_installed_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip
    import lzma

    (tmp_path / "kernel").mkdir()
    (tmp_path / "modules.dep").write_text(
        "kernel/virtio_pci.ko: kernel/virtio_pci_modern_dev.ko kernel/virtio.ko\n"
        "kernel/virtio_pci_modern_dev.ko:\n"
        "kernel/virtio.ko.gz:\n"
        "kernel/net-failover.ko.xz: kernel/failover.ko\n"
        "kernel/failover.ko:\n"
    )
    (tmp_path / "modules.builtin").write_text("kernel/virtio_blk.ko\n")
    (tmp_path / "kernel/net-failover.ko.xz").write_bytes(lzma.compress(b"net_failover"))
    (tmp_path / "kernel/virtio.ko.gz").write_bytes(gzip.compress(b"virtio"))
    kernel = LinuxKernel.installed(tmp_path / "vmlinuz", tmp_path)
    assert kernel.chain("virtio_blk") == []
    first = ["virtio", "virtio_pci_modern_dev", "virtio_pci"]
    assert kernel.chain("net_failover", "virtio_blk") == [*first, "failover", "net_failover"]
    assert kernel.chain("net-failover") == kernel.chain("net_failover")
    assert kernel.module("net_failover") == b"net_failover"
    assert kernel.module("virtio") == b"virtio"
    with pytest.raises(MissingPart, match="has no module wifi"):
        kernel.chain("wifi")
    with pytest.raises(MissingPart, match=r"failover.ko: .*No such file"):
        kernel.module("failover")
    with pytest.raises(MissingPart, match=r"modules.dep: No such file"):
        LinuxKernel.installed(tmp_path / "vmlinuz", tmp_path / "kernel")


def test_parts_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtq.testing.parts._find", None)
    from virtq.testing import parts

    parts.use(None)
    (tmp_path / "modules.dep").write_text("")
    (tmp_path / "modules.builtin").write_text("")
    for variable in ("VIRTQ_QEMU", "VIRTQ_BUSYBOX"):
        monkeypatch.setenv(variable, "/bin/true")
    monkeypatch.setenv("VIRTQ_KERNEL", str(tmp_path / "image"))
    with pytest.raises(MissingPart, match="go together"):
        find_parts()
    monkeypatch.setenv("VIRTQ_MODULES", str(tmp_path))
    found = find_parts()
    assert (found.qemu, found.kernel.image) == (Path("/bin/true"), tmp_path / "image")
    monkeypatch.setenv("VIRTQ_BUSYBOX", "/nowhere")
    with pytest.raises(MissingPart, match="no /nowhere for the guest's commands: install it, or"):
        find_parts()
