"""What a view shows of an image, and how containers-storage names it.

The names of layers are those that podman itself would give them, so that an image which it pulls finds the layers that
it shares with the view, and fetches only the others.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from msb_pull.ground.errors import MsbPullError
from msb_pull.image.digest import Digest
from msb_pull.image.reference import Reference
from msb_pull.store.index.keys import LayerKey

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


# containers-storage, drivers/overlay: the length of a short link's name, in digits of base 32.
_SHORT = 26
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_TYPED = {"key": str, "diff_id": str, "tar_bytes": int, "bytes": int, "media_type": str}


@dataclass(frozen=True, slots=True)
class ShownLayer:
    """One layer: its name in our store, and what podman is told of it. ``size`` is compressed bytes."""

    key: LayerKey
    diff_id: Digest
    tar_bytes: int
    size: int
    media_type: str


@dataclass(frozen=True, slots=True)
class ShownImage:
    """One reference of a view, with the digests and sizes of its documents, layers bottom first; ``created`` is UTC."""

    reference: str
    digest: Digest
    config: Digest
    manifest_bytes: int
    config_bytes: int
    created: str | None
    layers: tuple[ShownLayer, ...]

    @property
    def layer_ids(self) -> list[str]:
        """The names of the layers in containers-storage, bottom first."""
        return layer_ids([layer.diff_id for layer in self.layers])

    @property
    def name(self) -> str:
        """The reference as podman has it, where a digest takes the place of a tag."""
        parsed = Reference.parse(self.reference)
        return str(Reference(parsed.registry, parsed.repository, None if parsed.digest else parsed.tag, parsed.digest))

    def document(self) -> dict[str, Any]:
        """The image as JSON has it; :meth:`parse` makes it again."""
        return {
            "reference": self.reference,
            "digest": str(self.digest),
            "config": str(self.config),
            "manifest_bytes": self.manifest_bytes,
            "config_bytes": self.config_bytes,
            "created": self.created,
            "layers": [
                {
                    "key": str(layer.key),
                    "diff_id": str(layer.diff_id),
                    "tar_bytes": layer.tar_bytes,
                    "bytes": layer.size,
                    "media_type": layer.media_type,
                }
                for layer in self.layers
            ],
        }

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> ShownImage:
        """Reads what :meth:`document` wrote; raises ValueError, TypeError, KeyError for anything else."""
        created = document["created"]
        if created is not None and not _TIME.fullmatch(created):
            raise ValueError("a time that is none")
        return cls(
            _reference(document["reference"]),
            Digest.parse(document["digest"]),
            Digest.parse(document["config"]),
            _count(document["manifest_bytes"]),
            _count(document["config_bytes"]),
            created,
            tuple(map(_layer, document["layers"])),
        )


def layer_ids(diff_ids: list[Digest]) -> list[str]:
    """What podman calls the layers of a stack, bottom first (containers/image, storage: computeID of a layer)."""

    def above(below: str, diff_id: str) -> str:
        return hashlib.sha256(f"{below}+{diff_id}".encode()).hexdigest()

    return list(accumulate((diff_id.hex for diff_id in diff_ids), above))


def short_name(layer_id: str) -> str:
    """The name of a layer's short link: as containers-storage draws them at random, but the same each time."""
    return base64.b32encode(hashlib.sha256(layer_id.encode()).digest()).decode("ascii")[:_SHORT]


def _layer(document: Mapping[str, Any]) -> ShownLayer:
    for field, kind in _TYPED.items():
        if not isinstance(document[field], kind):
            raise TypeError(f"{field} is no {kind.__name__}")
    return ShownLayer(
        LayerKey.parse(document["key"]),
        Digest.parse(document["diff_id"]),
        _count(document["tar_bytes"]),
        _count(document["bytes"]),
        document["media_type"],
    )


def _reference(text: Any) -> str:
    try:
        parsed = str(Reference.parse(text))
    except MsbPullError as error:
        raise ValueError(error.message) from None
    if parsed != text:
        raise ValueError("a reference that is not written out")
    return parsed


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("a size that nothing has")
    return value
