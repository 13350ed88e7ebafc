"""How much one layer may ask for: the bounds and their defaults, which options, pulls and readers hand on unchanged."""

from __future__ import annotations


class Limits:
    """Bounds against decompression bombs; sizes in bytes.

    ``max_bytes`` bounds a layer once it is unpacked, ``max_entries`` its files, ``max_window`` the window of zstd, and
    ``max_extension`` the pax records or the long name of one entry.
    """

    # Modules of the children build it, where a dataclass would take longer to load than all else.
    __slots__ = ("max_bytes", "max_entries", "max_extension", "max_window")

    def __init__(
        self,
        *,
        max_entries: int = 5_000_000,
        max_bytes: int = 64 << 30,
        max_window: int = 128 << 20,
        max_extension: int = 1 << 20,
    ) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.max_window = max_window
        self.max_extension = max_extension
