"""The device's configuration space (VIRTIO 1.4, section 2.5): a dataclass made of
`virtq.wire.layout` fields, which the driver reads and partly writes.

The device changes it in one go, so that a driver never reads half of a change:

    with self.changing_config() as config:
        config.width, config.height = 800, 600

    self.update_config(capacity=1 << 20)

Both tell the driver once, if anything changed. They may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

from virtq.errors import ConfigError
from virtq.wire import layout


class ConfigSpace:
    """What `virtq.Device` knows of configuration."""

    config: Any = None
    """A dataclass made of `virtq.wire.layout` fields, of which every device gets its own copy."""

    config_generation: int
    """Counts the changes that the driver was told of (4.1.4.3.1, 4.2.2.1)."""

    _config_lock: threading.RLock
    _notify_config: Callable[[], None] | None
    _loop: asyncio.AbstractEventLoop | None

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        # Made here, so that an author's __init__ need not call this class's.
        self = super().__new__(cls)
        self.config = copy.deepcopy(cls.config)
        self.config_generation = 0
        self._config_lock = threading.RLock()
        self._notify_config = None
        self._loop = None
        return self

    # What an author overrides

    def config_written(self, field: str, value: Any) -> None:
        """The driver writes a configuration field (`field` is dotted where structures nest); it
        changes after this returns. Raise ConfigError if the value is out of range."""

    # What an author calls

    @contextlib.contextmanager
    def changing_config(self) -> Iterator[Any]:
        """Change several fields at once: the driver sees all of the changes or none, and is told
        once, at the end of the `with` block, if there are any. If the block raises, or a value
        does not fit its field (ConfigError), nothing changes. The driver's own writes wait
        meanwhile, so keep it short."""
        with self._config_lock:
            if self.config is None:
                raise ConfigError(f"{type(self).__name__} has no configuration space")
            wanted = copy.deepcopy(self.config)
            yield wanted
            before = layout.pack(self.config)
            try:
                after = layout.pack(wanted)
            except (struct.error, TypeError, AttributeError) as error:
                raise ConfigError(f"the configuration does not fit its layout: {error}") from None
            self.config = wanted
            if after != before:
                self.config_changed()

    def update_config(self, **values: int | bytes) -> None:
        """Set fields by name and tell the driver once. Raises ConfigError for a field that there is
        not (nothing changes then), and as `changing_config` does."""
        names = {leaf.name for leaf in layout.fields_of(type(self.config))} if self.config else ()
        for name in values:
            if name not in names:
                raise ConfigError(
                    f"{type(self).__name__} has no configuration field {name}; "
                    f"there are: {', '.join(sorted(names)) or 'none'}"
                )
        with self.changing_config() as config:
            for name, value in values.items():
                layout.put(config, name, value)

    def config_changed(self) -> None:
        """Tell the driver that the configuration space changed (3.2.1). From any thread."""
        with self._config_lock:
            self.config_generation += 1
        notify, loop = self._notify_config, self._loop
        if notify is None or loop is None:
            return
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is loop:
            notify()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(notify)

    # What a transport calls

    @property
    def config_size(self) -> int:
        return 0 if self.config is None else layout.size_of(type(self.config))

    def read_config(self, offset: int, length: int) -> bytes:
        """Raises ConfigError beyond the end of the configuration space."""
        self._check_config_range(offset, length)
        return layout.pack(self.config)[offset : offset + length] if length else b""

    def write_config(self, offset: int, data: bytes) -> None:
        """Raises ConfigError for a field that is not writable or a value out of range; nothing
        changes then."""
        self._check_config_range(offset, len(data))
        if not data:
            return
        touched = layout.fields_in(type(self.config), offset, len(data))
        for leaf in touched:
            if not leaf.writable:
                raise ConfigError(f"configuration field {leaf.name} is not writable")
        with self._config_lock:
            image = bytearray(layout.pack(self.config))
            image[offset : offset + len(data)] = data
            wanted = layout.unpack(type(self.config), bytes(image))
            values = {leaf.name: layout.get(wanted, leaf.name) for leaf in touched}
            for name, value in values.items():
                self.config_written(name, value)
            for name, value in values.items():
                layout.put(self.config, name, value)

    def _check_config_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.config_size:
            end = offset + length
            raise ConfigError(
                f"bytes {offset} to {end} of a configuration space of {self.config_size}"
            )

    def on_config_change(self, notify: Callable[[], None] | None) -> None:
        self._notify_config = notify
        self._loop = asyncio.get_running_loop() if notify is not None else None
