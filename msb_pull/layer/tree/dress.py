"""What the writer of a layer puts on files and directories beside their content, and what it has to warn of."""

from __future__ import annotations

import errno
import os

from msb_pull.ground.text import visible_bytes
from msb_pull.layer.attributes import (
    IMPLIED,
    MAX_ID,
    OVERRIDE_STAT,
    disk_name,
    list_attributes,
    override_stat,
    remove_attribute,
    set_attribute,
)
from msb_pull.layer.limits import LayerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from msb_pull.layer.tar.entry import Entry

_MAX_VALUES = 4096
_MAX_WARNINGS = 50
_TOO_LARGE = frozenset((errno.ENOSPC, errno.E2BIG, errno.ERANGE))
_DEFAULT_ACL = b"system.posix_acl_default"


class Warnings:
    """The first warnings of a layer, and how ``many_more`` there were: a hostile layer could cause millions."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.many_more = 0
        self._said: set[str] = set()

    def add(self, text: str) -> None:
        """Adds a warning."""
        if len(self.texts) < _MAX_WARNINGS:
            self.texts.append(text)
        else:
            self.many_more += 1

    def once(self, text: str) -> None:
        """Adds a warning that any number of entries may cause, the first time only."""
        if text not in self._said:
            self._said.add(text)
            self.add(text)


class Dress:
    """Values of override_stat and an image's own attributes; ``unkept`` are entries whose attributes did not fit.

    ``values`` holds what has been made, by (type bits, mode, owner, group): layers have few of them and many files.
    """

    def __init__(self, warnings: Warnings) -> None:
        self.values: dict[tuple[int, int, int, int], bytes] = {}
        self.unkept: list[int] = []
        self._warnings = warnings

    def value(self, key: tuple[int, int, int, int], entry: Entry) -> bytes:
        """The override_stat for a key that ``values`` does not have; raises LayerError for ids out of range."""
        try:
            value = override_stat(*key)
        except ValueError as error:
            raise LayerError(entry.index, entry.name, str(error)) from None
        if MAX_ID in key[2:]:
            self._warnings.once(f"an owner or group is {MAX_ID}, which some readers take to mean no owner")
        if len(self.values) < _MAX_VALUES:
            self.values[key] = value
        return value

    def keep(self, target: int, entry: Entry) -> None:
        """Sets the attributes of an entry on an open file, as far as the file system takes them."""
        for name, value in sorted((entry.xattrs or {}).items()):
            kept = disk_name(name)
            if kept is None:
                continue
            try:
                set_attribute(target, kept, value)
            except OSError as error:
                # File systems have room for about one block of attributes; our own is in already.
                why = "too large" if error.errno in _TOO_LARGE else os.strerror(error.errno or 0)
                where = f'entry {entry.index} "{visible_bytes(entry.name)}"'
                self._warnings.add(f'{where}: attribute "{visible_bytes(name)}" cannot be kept ({why})')
                if self.unkept[-1:] != [entry.index]:
                    self.unkept.append(entry.index)


def prepare_top(root: int) -> None:
    """Gives an open top directory the attribute of an implied one, and removes what children would inherit."""
    set_attribute(root, OVERRIDE_STAT, IMPLIED)
    if _DEFAULT_ACL in list_attributes(root):
        remove_attribute(root, _DEFAULT_ACL)


def clear_attributes(target: int) -> None:
    """Removes an image's own attributes from an open directory that a later entry describes again."""
    for name in list_attributes(target):
        if name.startswith(b"user.") and name != OVERRIDE_STAT:
            remove_attribute(target, name)
