"""What the parent tells the child that unpacks a layer, and what it hears back."""

from __future__ import annotations

from msb_pull.ground.limits import Limits
from msb_pull.layer.limits import NOTE
from msb_pull.layer.rules import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any


class UnpackOptions(Limits):
    """How to unpack: within which limits, whether owners are kept in attributes, whether to jail the child.

    ``filler``: whether a second process may help the child. ``behind``: whether it is to leave the processors to others
    that have work.
    """

    __slots__ = ("behind", "filler", "jail", "xattrs")

    def __init__(
        self, *, xattrs: bool = True, jail: bool = True, filler: bool = True, behind: bool = False, **limits: int
    ) -> None:
        super().__init__(**limits)
        self.xattrs = xattrs
        self.jail = jail
        self.filler = filler
        self.behind = behind

    def as_arguments(self) -> list[str]:
        """Words for a command line."""
        limits = (self.max_entries, self.max_bytes, self.max_extension)
        return [str(int(value)) for value in (*limits, self.xattrs, self.jail, self.filler, self.behind)]

    @classmethod
    def from_arguments(cls, words: Sequence[str]) -> UnpackOptions:
        """The inverse of :meth:`as_arguments`."""
        entries, size, extension = map(int, words[:3])
        xattrs, jail, filler, behind = (word == "1" for word in words[3:])
        limits = {"max_entries": entries, "max_bytes": size, "max_extension": extension}
        return cls(**limits, xattrs=xattrs, jail=jail, filler=filler, behind=behind)


class UnpackReport:
    """What was unpacked, and what is left to do once the layers below are known. Paths are bytes.

    ``placed``: by entry index, paths of what does not lie where its name says (a symlink led there). ``implied``:
    directories without an entry, parents first, ``b""`` the top. ``hollow``: those of them that only whiteouts imply.
    ``missing_links``: (entry index, path, target) of hard links to lower layers. ``turned``: whiteouts that stand
    elsewhere now, or nowhere (``b""``), because what they name came in the same layer. ``copied``: entry indexes of
    hard links that became copies. ``unkept``: those of entries with attributes that the file system did not take.
    ``jailed``: what held the child, for a debug line.
    """

    __slots__ = (
        *("content_bytes", "copied", "entries", "hollow", "implied", "jailed"),
        *("missing_links", "placed", "tar_bytes", "turned", "unkept", "warnings"),
    )

    def __init__(self) -> None:
        self.entries = 0
        self.tar_bytes = 0
        self.content_bytes = 0
        self.jailed = ""
        self.placed: dict[int, bytes] = {}
        self.implied: list[bytes] = []
        self.hollow: list[bytes] = []
        self.missing_links: list[tuple[int, bytes, bytes]] = []
        self.turned: list[tuple[bytes, bytes]] = []
        self.copied: list[int] = []
        self.unkept: list[int] = []
        self.warnings: list[str] = []

    @property
    def needs_lowers(self) -> bool:
        """Whether some facts of the layer stand only in the layers below."""
        return bool(self.implied or self.missing_links)

    @property
    def noted(self) -> int:
        """About how many bytes the paths in it take."""
        paths = [*self.placed.values(), *self.implied, *self.hollow]
        for _, path, target in self.missing_links:
            paths += path, target
        for pair in self.turned:
            paths += pair
        return sum(map(len, paths)) + NOTE * len(paths)

    def as_plain(self) -> dict[str, Any]:
        """Plain values for :func:`encode`."""
        return {name: getattr(self, name) for name in self.__slots__} | {"placed": list(self.placed.items())}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> UnpackReport:
        """A report as the parent reads it, which trusts a child with nothing.

        Raises ValueError, KeyError or TypeError for what :meth:`as_plain` does not make; a path that is not clean
        could lead out of the layer.
        """
        report = cls()
        report.entries, report.tar_bytes = int(values["entries"]), int(values["tar_bytes"])
        report.content_bytes = int(values["content_bytes"])
        report.jailed = as_text(values["jailed"])
        report.placed = {int(index): _path(path) for index, path in values["placed"]}
        report.implied = [_path(path) for path in values["implied"]]
        report.hollow = [_path(path) for path in values["hollow"]]
        report.missing_links = [(int(index), _path(a), _path(b)) for index, a, b in values["missing_links"]]
        report.turned = [(_path(a), _path(b)) for a, b in values["turned"]]
        report.copied = [int(index) for index in values["copied"]]
        report.unkept = [int(index) for index in values["unkept"]]
        report.warnings = [as_text(text) for text in values["warnings"]]
        return report


def as_bytes(text: str) -> bytes:
    """A name from a document of :func:`encode`."""
    return text.encode("latin-1")


def as_text(text: str) -> str:
    """A text from a document of :func:`encode`."""
    return text.encode("latin-1").decode("utf-8", "backslashreplace")


def _path(text: str) -> bytes:
    path = as_bytes(text)
    if path and clean(path) != path:
        raise ValueError(f"not a clean path: {path!r}")
    return path


def encode(value: object) -> Iterator[bytes]:
    """JSON of plain values in ASCII, in small pieces; bytes and the UTF-8 of texts become Latin-1 strings.

    A child does without the json module: importing it takes longer than unpacking a small layer.
    """
    if isinstance(value, dict):
        yield b"{"
        comma = b""
        for key, item in value.items():
            yield comma + _scalar(key) + b":"
            yield from encode(item)
            comma = b","
        yield b"}"
    elif isinstance(value, (list, tuple)):
        yield b"["
        comma = b""
        for item in value:
            if isinstance(item, (list, tuple, dict)):
                yield comma
                yield from encode(item)
            else:
                yield comma + _scalar(item)
            comma = b","
        yield b"]"
    else:
        yield _scalar(value)


def _scalar(value: object) -> bytes:
    if isinstance(value, str):
        value = value.encode("utf-8", "backslashreplace")
    if isinstance(value, bytes):
        if value.isascii() and b'"' not in value and b"\\" not in value and value.decode("ascii").isprintable():
            return b'"' + value + b'"'
        return b'"' + b"".join(b"\\u%04x" % byte for byte in value) + b'"'
    if value is None:
        return b"null"
    assert isinstance(value, int)
    return b"%d" % value
