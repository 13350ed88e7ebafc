"""The files of a containers-storage that tell podman which images and layers there are.

containers/storage, images.go and layers.go; what they leave out is as Go reads it when it is missing.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING

from msb_pull.store.podman.shown import layer_ids

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from msb_pull.store.podman.shown import ShownImage, ShownLayer

# archive.Compression of containers/storage.
_GZIP, _ZSTD = 2, 4
_PLAIN_NAME = re.compile(r"[.0-9a-z]*", re.ASCII)


def layers_json(images: Iterable[ShownImage]) -> bytes:
    """``overlay-layers/layers.json``: each layer once, below what stands on it."""
    listed: dict[str, dict[str, Any]] = {}
    for image in images:
        below = ""
        for layer_id, layer in zip(image.layer_ids, image.layers, strict=True):
            if layer_id not in listed:
                listed[layer_id] = _layer(layer_id, below, layer)
            below = layer_id
    return _json(list(listed.values()))


def images_json(images: Iterable[ShownImage]) -> bytes:
    """``overlay-images/images.json``: each config once, with all references that have it.

    A name is given once. podman would refuse a whole store that says it twice, and two references become one name where
    they differ in a tag beside the same digest.
    """
    listed: dict[str, dict[str, Any]] = {}
    taken: set[str] = set()
    for image in images:
        entry = listed.setdefault(image.config.hex, _image(image))
        if (name := image.name) not in taken:
            taken.add(name)
            entry["names"].append(name)
        for key, size, digest in _data(image):
            if key not in entry["big-data-sizes"]:
                entry["big-data-names"].append(key)
                entry["big-data-sizes"][key] = size
                entry["big-data-digests"][key] = digest
    return _json(list(listed.values()))


def data_files(images: Iterable[ShownImage]) -> dict[str, dict[str, str]]:
    """By image and file name in ``overlay-images/<image>/``: which document lies there, by its digest."""
    files: dict[str, dict[str, str]] = {}
    for image in images:
        for key, _, digest in _data(image):
            files.setdefault(image.config.hex, {}).setdefault(_file_name(key), digest)
    return files


def layer_stacks(images: Iterable[ShownImage]) -> dict[str, tuple[ShownLayer, list[str]]]:
    """By layer: what it is, and the layers below it, the nearest first."""
    stacks: dict[str, tuple[ShownLayer, list[str]]] = {}
    for image in images:
        ids = layer_ids([layer.diff_id for layer in image.layers])
        for position, layer in enumerate(image.layers):
            stacks.setdefault(ids[position], (layer, ids[:position][::-1]))
    return stacks


def _layer(layer_id: str, below: str, layer: ShownLayer) -> dict[str, Any]:
    kind = _GZIP if layer.media_type.endswith("gzip") else _ZSTD if layer.media_type.endswith("zstd") else 0
    return {
        "id": layer_id,
        **({"parent": below} if below else {}),
        "compressed-diff-digest": str(layer.key.digest),
        "compressed-size": layer.size,
        "diff-digest": str(layer.diff_id),
        "diff-size": layer.tar_bytes,
        **({"compression": kind} if kind else {}),
    }


def _image(image: ShownImage) -> dict[str, Any]:
    top = image.layer_ids[-1:]
    return {
        "id": image.config.hex,
        "digest": str(image.digest),
        "names": [],
        **({"layer": top[0]} if top else {}),
        "metadata": "{}",
        "big-data-names": [],
        "big-data-sizes": {},
        "big-data-digests": {},
        **({"created": image.created} if image.created else {}),
    }


def _data(image: ShownImage) -> tuple[tuple[str, int, str], ...]:
    """The documents of an image: key, size, digest."""
    manifest = (image.manifest_bytes, str(image.digest))
    return (
        (str(image.config), image.config_bytes, str(image.config)),
        (f"manifest-{image.digest}", *manifest),
        ("manifest", *manifest),
    )


def _file_name(key: str) -> str:
    if _PLAIN_NAME.fullmatch(key):
        return key
    return "=" + base64.b64encode(key.encode()).decode("ascii")


def _json(document: list[dict[str, Any]]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
