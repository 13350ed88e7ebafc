"""One entry of a tar archive, as the reader hands it on."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from msb_pull.ground.pax import Pax

REG, LNK, SYM, CHR, BLK, DIR, FIFO = b"0123456"


class Entry:
    """One entry with its extension headers merged in. ``name`` is not cleaned; ``mode`` has its lower twelve bits."""

    __slots__ = (
        *("crc", "devmajor", "devminor", "gid", "index", "linkname", "mode", "mtime_ns"),
        *("name", "size", "sparse", "stored", "type", "uid", "xattrs"),
    )

    def __init__(self, index: int, name: bytes, kind: int, mode: int, uid: int, gid: int, mtime_ns: int) -> None:
        self.index = index
        self.name = name
        self.type = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.size = 0
        self.stored = 0
        self.linkname = b""
        self.devmajor = 0
        self.devminor = 0
        self.xattrs: dict[bytes, bytes] | None = None
        self.sparse: tuple[tuple[int, int], ...] | None = None
        self.crc: int | None = None


class Extensions:
    """What the headers before an entry say of it."""

    __slots__ = ("link", "name", "pax")

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.link: bytes | None = None
        self.pax: Pax | None = None
