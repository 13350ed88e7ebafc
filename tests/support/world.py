"""An image whose every file and row a test may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from msb_pull.ground import events
from msb_pull.ground.running import Job
from msb_pull.image.reference import parse_argument
from msb_pull.store.store import Store
from msb_pull.work.pull.plan import PullOptions
from msb_pull.work.pull.pull import pull_image
from msb_pull.work.verify.layers import Verdict
from msb_pull.work.verify.verify import verify_images
from tests.support.archive import pax, reg
from tests.support.imagebuild import simple_layout

NAME = "localhost/image:1"


SPARSE = (b"GNU.sparse.map", b"0,512,1048576,512"), (b"GNU.sparse.size", b"2097152")


def sparse(name: bytes, letter: bytes = b"s") -> bytes:
    return pax(*SPARSE) + reg(name, letter * 1024)


class World:
    """A store with one image of these layers."""

    def __init__(self, folder: Path, layers: list[bytes]) -> None:
        simple_layout(folder / "layout", layers)
        self.folder = folder
        self.told: list[str] = []
        self.store = Store.open(folder / "home", warn=self.told.append)
        self.result = self.pull()
        self.trees = [Path(layer.path) for layer in self.result.layers]

    def pull(self, **options):
        return pull_image(
            parse_argument(f"oci:{self.folder / 'layout'}"),
            self.store,
            lambda: pytest.fail("a layout needs no registry"),
            PullOptions(name=NAME, **options),
            Job(self.observe),
        )

    def observe(self, event) -> None:
        if isinstance(event, events.Warned):
            self.told.append(event.text)

    def verify(self, *, quick: bool = False):
        return verify_images(self.store, [], Job(self.observe, jobs=1), quick=quick)

    def verdicts(self, **options) -> list[Verdict]:
        return [layer.verdict for layer in self.verify(**options).layers]

    def kinds(self, **options) -> set[tuple[bytes, str]]:
        return {(damage.path, damage.kind) for layer in self.verify(**options).layers for damage in layer.damages}

    def record_of(self, number: int, suffix: str) -> Path:
        return self.store.own / "records" / f"{self.result.layers[number].digest}.{suffix}"
