"""Every target by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz import streams, tars, texts

if TYPE_CHECKING:
    from collections.abc import Callable

TARGETS: dict[str, Callable[[bytes], None]] = {
    "tar": tars.tar,
    "layer": tars.layer,
    "gzip": streams.gzips,
    "zstd": streams.zstds,
    "plain": streams.plains,
    "documents": texts.documents,
    "references": texts.references,
    "challenges": texts.challenges,
}
# Longer inputs find nothing that shorter ones do not, and take longer (bytes).
LENGTHS = {"tar": 1 + 16 * 512, "layer": 1 + 12 * 512, "documents": 4096, "references": 400, "challenges": 2048}
DEFAULT_LENGTH = 2048
