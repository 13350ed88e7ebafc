"""The small image that lies in the repository."""

from __future__ import annotations

import json

from tests.conftest import REPOSITORY

SAMPLE = REPOSITORY / "tests" / "sample"


NAME = "docker.io/library/sample:1"


MANIFEST = json.loads((SAMPLE / "index.json").read_text())["manifests"][0]["digest"]


LAYERS = [
    layer["digest"]
    for layer in json.loads((SAMPLE / "blobs" / MANIFEST.replace(":", "/")).read_text())["layers"]
]  # fmt: skip
