"""`virtq serve i2c`, `gpio` and `input`: devices that options describe and standard input moves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.cli.support import loaded, printed, served
from virtq import connect
from virtq.cli import run
from virtq.cli.serve_input import take_update
from virtq.devices.input import InputDevice
from virtq.drivers.gpio import GpioDriver, IrqType
from virtq.drivers.i2c import I2cDriver
from virtq.drivers.input import InputDriver
from virtq.errors import UriError
from virtq.wire.input import Event, InputDescription

PATIENCE_S = 10.0


def test_serve_i2c(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, eeprom, registers = (tmp_path / name for name in ("s", "eeprom", "registers"))
    eeprom.write_bytes(bytes(256))
    registers.write_bytes(b"chip")
    targets = [f"0x50:eeprom={eeprom}", f"81:eeprom-ro={eeprom}"]
    targets += [f"0x48:registers={registers}", "0x3ff:registers"]
    words = [word for target in targets for word in ("--target", target)]
    with served("i2c", *words, "--socket-path", path, "--json") as service:
        with connect(f"vhost-user:{path}?device=i2c") as bus:
            assert isinstance(bus, I2cDriver)
            assert bus.scan() == [0x48, 0x50, 0x51]
            bus.write(0x50, b"\x08stored")
            assert bus.read(0x48, 4) == b"chip"
            assert bus.is_there(0x3FF)
        probe = loaded(capsys, "probe", f"vhost-user:{path}", "--type", "i2c")
        assert "ZERO_LENGTH_REQUEST" in probe["features"]["names"]
        report = service.report()
    assert eeprom.read_bytes()[8:14] == b"stored"
    assert report["device"].startswith("i2c, 0x50:eeprom=")
    assert report["total"]["buffers"] == 112 + 3


def test_serve_gpio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    words = ["--lines", "4", "--names", "button, led,,3"]
    with served("gpio", *words, "--socket-path", path) as service:
        probe = loaded(capsys, "probe", f"vhost-user:{path}", "--type", "gpio")
        assert probe["config"]["fields"] == {"ngpio": 4, "gpio_names_size": 14}
        with connect(f"vhost-user:{path}", driver=GpioDriver) as gpio:
            assert gpio.names == ("button", "led", "", "3")
            gpio.set_output("led", 1)
            service.wait_for("virtq: led 1\n")
            gpio.set_output(2, 0)
            service.wait_for("virtq: 2 0\n")
            gpio.set_input("button")
            gpio.enable_interrupt("button", IrqType.EDGE_RISING)
            service.feed("# a remark\n\nbutton 7\nlamp 1\nbutton\n")
            service.wait_for("'button 7': say NAME 0 or NAME 1")
            service.wait_for("'lamp 1': there is no GPIO line 'lamp'")
            service.wait_for("'button': say NAME 0 or NAME 1")
            service.feed("button 1\n0 0\n3 1\n")
            assert gpio.interrupts(PATIENCE_S) == [0]
            gpio.unmask(0)
            service.feed("button 1\n")
            assert gpio.interrupts(PATIENCE_S) == [0]
            assert [gpio.get_value(line) for line in range(4)] == [1, 1, 0, 1]
        service.wait_for("virtq: led released\n")
        assert "gpio, 4 lines" in service.end()


def test_serve_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    words = ["--keyboard", "--name", "my keyboard", "--serial", "7"]
    with served("input", *words, "--socket-path", path) as service:
        probe = loaded(capsys, "probe", f"vhost-user:{path}", "--type", "input")
        assert probe["config"]["fields"]["select"] == 0
        said = printed(capsys, "probe", f"vhost-user:{path}", "--type", "input")
        assert re.search("answer +none", said)
        with connect(f"vhost-user:{path}", driver=InputDriver) as keyboard:
            assert keyboard.description == InputDescription.keyboard("my keyboard", "7")
            service.feed("KEY_A\nKEY_B 1, KEY_C 1\nKEY_WRONG\n")
            assert keyboard.sequence(PATIENCE_S) == [Event(1, 30, 1)]
            assert keyboard.sequence(PATIENCE_S) == [Event(1, 30, 0)]
            assert keyboard.sequence(PATIENCE_S) == [Event(1, 48, 1), Event(1, 46, 1)]
            service.wait_for("'KEY_WRONG': no event code is called")
            keyboard.set_led("LED_NUML", True)
            service.wait_for("virtq: LED_NUML 1\n")
        assert "input 'my keyboard'" in service.end()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ABS_X", "ABS_X is an event of type ABS, not KEY"),
        ("BTN_LEFT 1, ABS_X 5", "'ABS_X 5': ABS_X is not among"),
        ("BTN_LEFT down", "'BTN_LEFT down': say CODE VALUE"),
        ("BTN_LEFT 1,", "'': say CODE VALUE"),
        ("REL_X 99999999999", "do not fit"),
    ],
)
def test_an_update_that_makes_no_sense_sends_nothing(text: str, reason: str) -> None:
    mouse = InputDevice(InputDescription.mouse())
    with pytest.raises(ValueError, match=reason):
        take_update(mouse, text)
    mouse.sync()
    assert mouse.dropped == 0  # there was nothing to drop


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("i2c", "the bus is empty"),
        ("i2c --target x:registers", "'x:registers' does not begin with an address"),
        ("i2c --target 0x48", "'0x48': a target is registers"),
        ("i2c --target 0x48:eeprom", "'0x48:eeprom': a target is registers"),
        ("i2c --target 0x48:eeprom=nothing", "nothing: No such file"),
        ("i2c --target 0x400:registers", "an I2C address is 0 to 0x3ff"),
        ("i2c --target 1:registers --target 0x1:registers", "something else is at 0x1"),
        ("gpio", "say how many lines"),
        ("gpio --lines 0", "1 to 65535 lines"),
        ("gpio --names a,a", "two lines are called 'a'"),
        ("input", "say one of --keyboard"),
        ("input --mouse --evdev x", "say one of --keyboard"),
        ("input --evdev x --name y", "--evdev: the device has its own"),
        ("input --evdev nothing", "nothing: No such file"),
        ("input --evdev file", "no evdev device"),
        (f"input --mouse --name {'x' * 129}", "more than 128 bytes"),
        ("input --mouse --offer +IRQ", "no feature is called"),
    ],
)
def test_what_cannot_be_served(
    words: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert run(["serve", *words.split(), "--socket-path", "s"]) == 2
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("device", ["i2c", "gpio", "input"])
def test_capabilities(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f'"type": "{device}"' in printed(capsys, "serve", device, "--print-capabilities")


def test_devices_by_uri() -> None:
    with connect("loopback:i2c?eeprom=0x52&size=1K") as bus:
        assert isinstance(bus, I2cDriver)
        assert bus.scan() == [0x48, 0x52]
        assert bus.write_read(0x52, b"\3\xff", 2) == b"\xff\xff"
    with connect("loopback:gpio?names=a,b") as gpio:
        assert isinstance(gpio, GpioDriver)
        assert gpio.names == ("a", "b")
    with connect("loopback:input?kind=mouse") as mouse:
        assert isinstance(mouse, InputDriver)
        assert mouse.description == InputDescription.mouse()
    with pytest.raises(UriError, match="keyboard, mouse, tablet, not 'joystick'"):
        connect("loopback:input?kind=joystick")
