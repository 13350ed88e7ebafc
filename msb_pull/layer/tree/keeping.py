"""What a file system can store: some lack nanoseconds or end in 2038, most have little room for attributes."""

from __future__ import annotations

import os

from msb_pull.layer.attributes import OVERRIDE_STAT, set_attribute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_SECOND = 1_000_000_000
# Where ext4 ends.
_FAR = 15_032_385_535 * _SECOND


class Keeping:
    """Asks the file system of an open directory, in a file without a name that leaves no trace."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._known: dict[int, int | None] = {}

    def is_kept(self, wanted: int, found: int) -> bool:
        """Whether ``found`` is what the file system makes of ``wanted`` (both in nanoseconds since 1970)."""
        if found == wanted:
            return True
        if wanted not in self._known:
            self._known[wanted] = self._ask(wanted)
        kept = self._known[wanted]
        if kept is not None:
            return found == kept
        return wanted > _FAR or found == wanted // _SECOND * _SECOND

    def refuses(self, name: bytes, value: bytes, others: Mapping[bytes, bytes], override: bytes) -> bool:
        """Whether an attribute cannot be kept beside others; True also where that cannot be tested."""
        handle = self._file()
        if handle is None:
            return True
        try:
            for other, kept in ((OVERRIDE_STAT, override), *others.items()):
                set_attribute(handle, other, kept)
            set_attribute(handle, name, value)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False

    def _file(self) -> int | None:
        """None where nothing may be written, or the system has no such files."""
        try:
            return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        except (OSError, AttributeError):
            return None

    def _ask(self, wanted: int) -> int | None:
        handle = self._file()
        if handle is None:
            return None
        try:
            os.utime(handle, ns=(wanted, wanted))
            return os.fstat(handle).st_mtime_ns
        except OSError:
            return None
        finally:
            os.close(handle)
