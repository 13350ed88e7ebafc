"""Small valid documents of an image, and variations of them."""

from __future__ import annotations

import json

from msb_pull.image.digest import Digest
from msb_pull.image.manifest import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    parse_document,
)

WHAT = "example.com/app:1"


def digest(number: int = 0) -> str:
    return str(Digest.of(str(number).encode()))


def layer(number: int = 0, **more) -> dict:
    return {"mediaType": f"{OCI_LAYER}+gzip", "digest": digest(number), "size": 10 + number} | more


CONFIG = {"mediaType": OCI_CONFIG, "digest": digest(99), "size": 2}


MANIFEST = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [layer(1), layer(2)]}


ENTRY = {
    "mediaType": OCI_MANIFEST,
    "digest": digest(7),
    "size": 7,
    "platform": {"os": "linux", "architecture": "arm", "variant": "v6"},
}


INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [ENTRY]}


def without(document: dict, *keys: str) -> dict:
    return {key: value for key, value in document.items() if key not in keys}


def parse(document, content_type: str | None = None, **more):
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_document(data, content_type, WHAT, **more)
