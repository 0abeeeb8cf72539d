"""What evdev calls its event types and codes, for people; the wire has numbers only.

The input device speaks the language of Linux's evdev (VIRTIO 1.4, section 5.8): an event is a type,
a code and a value. Codes that have no name here, which are those of rare keys, go by their number.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType


class EventType(IntEnum):
    """Types of events. Each has codes of its own; SYN ends a sequence."""

    SYN = 0x00
    KEY = 0x01
    REL = 0x02
    ABS = 0x03
    MSC = 0x04
    SW = 0x05
    LED = 0x11
    SND = 0x12
    REP = 0x14
    FF = 0x15
    PWR = 0x16
    FF_STATUS = 0x17


SYN_REPORT = 0

# Runs of names for consecutive codes: where a run starts, and the names without their prefix.
_RUNS: Mapping[str, tuple[tuple[int, str, str], ...]] = {
    "KEY": (
        (
            0x001,
            "KEY",
            "ESC 1 2 3 4 5 6 7 8 9 0 MINUS EQUAL BACKSPACE TAB Q W E R T Y U I O P LEFTBRACE "
            "RIGHTBRACE ENTER LEFTCTRL A S D F G H J K L SEMICOLON APOSTROPHE GRAVE LEFTSHIFT "
            "BACKSLASH Z X C V B N M COMMA DOT SLASH RIGHTSHIFT KPASTERISK LEFTALT SPACE "
            "CAPSLOCK F1 F2 F3 F4 F5 F6 F7 F8 F9 F10 NUMLOCK SCROLLLOCK KP7 KP8 KP9 KPMINUS KP4 "
            "KP5 KP6 KPPLUS KP1 KP2 KP3 KP0 KPDOT",
        ),
        (
            0x055,
            "KEY",
            "ZENKAKUHANKAKU 102ND F11 F12 RO KATAKANA HIRAGANA HENKAN KATAKANAHIRAGANA MUHENKAN "
            "KPJPCOMMA KPENTER RIGHTCTRL KPSLASH SYSRQ RIGHTALT LINEFEED HOME UP PAGEUP LEFT "
            "RIGHT END DOWN PAGEDOWN INSERT DELETE MACRO MUTE VOLUMEDOWN VOLUMEUP POWER KPEQUAL "
            "KPPLUSMINUS PAUSE SCALE KPCOMMA HANGEUL HANJA YEN LEFTMETA RIGHTMETA COMPOSE STOP "
            "AGAIN PROPS UNDO FRONT COPY OPEN PASTE FIND CUT HELP MENU CALC SETUP SLEEP WAKEUP "
            "FILE SENDFILE DELETEFILE XFER PROG1 PROG2 WWW MSDOS COFFEE ROTATE_DISPLAY "
            "CYCLEWINDOWS MAIL BOOKMARKS COMPUTER BACK FORWARD CLOSECD EJECTCD EJECTCLOSECD "
            "NEXTSONG PLAYPAUSE PREVIOUSSONG STOPCD RECORD REWIND PHONE ISO CONFIG HOMEPAGE "
            "REFRESH EXIT MOVE EDIT SCROLLUP SCROLLDOWN KPLEFTPAREN KPRIGHTPAREN NEW REDO F13 "
            "F14 F15 F16 F17 F18 F19 F20 F21 F22 F23 F24",
        ),
        (
            0x0c8,
            "KEY",
            "PLAYCD PAUSECD PROG3 PROG4 ALL_APPLICATIONS SUSPEND CLOSE PLAY FASTFORWARD "
            "BASSBOOST PRINT HP CAMERA SOUND QUESTION EMAIL CHAT SEARCH CONNECT FINANCE SPORT "
            "SHOP ALTERASE CANCEL BRIGHTNESSDOWN BRIGHTNESSUP MEDIA SWITCHVIDEOMODE "
            "KBDILLUMTOGGLE KBDILLUMDOWN KBDILLUMUP SEND REPLY FORWARDMAIL SAVE DOCUMENTS "
            "BATTERY BLUETOOTH WLAN UWB UNKNOWN VIDEO_NEXT VIDEO_PREV BRIGHTNESS_CYCLE "
            "BRIGHTNESS_AUTO DISPLAY_OFF WWAN RFKILL MICMUTE",
        ),
        (0x100, "BTN", "0 1 2 3 4 5 6 7 8 9"),
        (0x110, "BTN", "LEFT RIGHT MIDDLE SIDE EXTRA FORWARD BACK TASK"),
        (
            0x120,
            "BTN",
            "TRIGGER THUMB THUMB2 TOP TOP2 PINKIE BASE BASE2 BASE3 BASE4 BASE5 BASE6",
        ),
        (
            0x12f,
            "BTN",
            "DEAD SOUTH EAST C NORTH WEST Z TL TR TL2 TR2 SELECT START MODE THUMBL THUMBR",
        ),
        (
            0x140,
            "BTN",
            "TOOL_PEN TOOL_RUBBER TOOL_BRUSH TOOL_PENCIL TOOL_AIRBRUSH TOOL_FINGER TOOL_MOUSE "
            "TOOL_LENS TOOL_QUINTTAP STYLUS3 TOUCH STYLUS STYLUS2 TOOL_DOUBLETAP TOOL_TRIPLETAP "
            "TOOL_QUADTAP GEAR_DOWN GEAR_UP",
        ),
    ),
    "REL": (
        (
            0x000,
            "REL",
            "X Y Z RX RY RZ HWHEEL DIAL WHEEL MISC RESERVED WHEEL_HI_RES HWHEEL_HI_RES",
        ),
    ),
    "ABS": (
        (0x000, "ABS", "X Y Z RX RY RZ THROTTLE RUDDER WHEEL GAS BRAKE"),
        (
            0x010,
            "ABS",
            "HAT0X HAT0Y HAT1X HAT1Y HAT2X HAT2Y HAT3X HAT3Y PRESSURE DISTANCE TILT_X TILT_Y "
            "TOOL_WIDTH",
        ),
        (0x020, "ABS", "VOLUME PROFILE"),
        (0x028, "ABS", "MISC"),
        (
            0x02e,
            "ABS",
            "RESERVED MT_SLOT MT_TOUCH_MAJOR MT_TOUCH_MINOR MT_WIDTH_MAJOR MT_WIDTH_MINOR "
            "MT_ORIENTATION MT_POSITION_X MT_POSITION_Y MT_TOOL_TYPE MT_BLOB_ID MT_TRACKING_ID "
            "MT_PRESSURE MT_DISTANCE MT_TOOL_X MT_TOOL_Y",
        ),
    ),
    "MSC": (
        (0x000, "MSC", "SERIAL PULSELED GESTURE RAW SCAN TIMESTAMP"),
    ),
    "SW": (
        (
            0x000,
            "SW",
            "LID TABLET_MODE HEADPHONE_INSERT RFKILL_ALL MICROPHONE_INSERT DOCK LINEOUT_INSERT "
            "JACK_PHYSICAL_INSERT VIDEOOUT_INSERT CAMERA_LENS_COVER KEYPAD_SLIDE "
            "FRONT_PROXIMITY ROTATE_LOCK LINEIN_INSERT MUTE_DEVICE PEN_INSERTED MACHINE_COVER",
        ),
    ),
    "LED": (
        (
            0x000,
            "LED",
            "NUML CAPSL SCROLLL COMPOSE KANA SLEEP SUSPEND MUTE MISC MAIL CHARGING",
        ),
    ),
    "SND": (
        (0x000, "SND", "CLICK BELL TONE"),
    ),
    "REP": (
        (0x000, "REP", "DELAY PERIOD"),
    ),
    "PROP": (
        (
            0x000,
            "INPUT_PROP",
            "POINTER DIRECT BUTTONPAD SEMI_MT TOPBUTTONPAD POINTING_STICK ACCELEROMETER",
        ),
    ),
}  # fmt: skip


def _table(group: str) -> Mapping[str, int]:
    table = {}
    for start, prefix, words in _RUNS[group]:
        for code, word in enumerate(words.split(), start):
            table[f"{prefix}_{word}"] = code
    return MappingProxyType(table)


CODES: Mapping[EventType, Mapping[str, int]] = MappingProxyType(
    {EventType[group]: _table(group) for group in _RUNS if group != "PROP"}
    | {EventType.SYN: MappingProxyType({"SYN_REPORT": SYN_REPORT})}
)
"""Codes by name, for each event type that has names."""

PROPERTIES: Mapping[str, int] = _table("PROP")
"""Input properties by name."""

_TYPE_OF: Mapping[str, EventType] = {name: kind for kind, table in CODES.items() for name in table}


def parse_code(name: str) -> tuple[EventType, int]:
    """Type and code from a name such as `KEY_A` or `ABS_X`, or from `KEY:30` (the type's name and a
    number). Raises ValueError for what nothing is called, with the nearest name that something
    is."""
    text = name.strip().upper()
    kind, colon, number = text.partition(":")
    if colon and kind in EventType.__members__ and number.isdecimal() and int(number) < 1 << 16:
        return EventType[kind], int(number)
    if text in _TYPE_OF:
        return _TYPE_OF[text], CODES[_TYPE_OF[text]][text]
    nearest = difflib.get_close_matches(text, _TYPE_OF, 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ValueError(f"no event code is called {name!r}{hint}")


def code_of(kind: int, code: int | str) -> int:
    """The number of a code of one event type. Raises ValueError for a name that it does not
    have."""
    if isinstance(code, int):
        return code
    found, number = parse_code(code)
    if found != kind:
        raise ValueError(f"{code} is an event of type {found.name}, not {type_name(kind)}")
    return number


def property_of(name: int | str) -> int:
    """The number of an input property. Raises ValueError for a name that none has."""
    if isinstance(name, int):
        return name
    if name.upper() in PROPERTIES:
        return PROPERTIES[name.upper()]
    raise ValueError(f"no input property is called {name!r}: there are {', '.join(PROPERTIES)}")


def type_name(kind: int) -> str:
    """An event type for people: its name, or the number where there is none."""
    return EventType(kind).name if kind in set(EventType) else f"type {kind}"


def code_name(kind: int, code: int) -> str:
    """A code for people, in the form that `parse_code` takes where there is one."""
    return _NAME_OF.get((kind, code)) or f"{type_name(kind)}:{code}"


_NAME_OF: Mapping[tuple[int, int], str] = {
    (kind, code): name for kind, table in CODES.items() for name, code in table.items()
}
