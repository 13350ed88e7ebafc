"""Short words for the tests of local sources."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from msb_pull.ground.errors import MsbPullError
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.platform import Platform
from msb_pull.image.reference import parse_argument
from msb_pull.source.interface import ResolvedImage, Source
from msb_pull.work.pull.open import open_source
from tests.support.imagebuild import archive_bytes, regular

AMD64 = Platform("linux", "amd64")
ONE = archive_bytes([regular("one", b"1" * 3000)])
TWO = archive_bytes([regular("two", b"2" * 70_000)])


@dataclass
class Local:
    """Opens local sources, and closes them at the end of the test."""

    scratch: Path
    cancel: Cancel = field(default_factory=Cancel)
    warnings: list[str] = field(default_factory=list)
    opened: list[Source] = field(default_factory=list)

    @property
    def job(self) -> Job:
        return Job(lambda event: self.warnings.append(event.text), self.cancel)

    def source(self, text: str, name: str | None = None) -> Source:
        def never():
            raise AssertionError("no registry is needed")

        argument = parse_argument(text)
        source = open_source(argument, never, name=name, scratch=self.scratch, job=self.job)
        self.opened.append(source)
        return source

    def resolve(
        self, text: str, name: str | None = None, *, platform: Platform = AMD64, explicit: bool = False
    ) -> ResolvedImage:
        return self.source(text, name).resolve(platform, explicit=explicit)

    def layers(self, text: str, name: str | None = "made/here:1", **more) -> list[bytes]:
        """All blobs of the layers, as they are stored."""
        resolved = self.resolve(text, name, **more)
        source = self.opened[-1]
        return [read(source, descriptor) for descriptor in resolved.manifest.layers]

    def refused(self, kind: type[MsbPullError], text: str, name: str | None = "made/here:1", **more) -> str:
        """What a person reads when neither resolving nor reading the layers may go well."""
        with pytest.raises(kind) as caught:
            self.layers(text, name, **more)
        error = caught.value
        assert type(error) is kind
        assert len(error.message) < 600
        return f"{error.message} | {error.cause} | {error.hint}"


def read(source: Source, descriptor, offset: int = 0, size: int = 65536) -> bytes:
    with source.open_blob(descriptor, offset) as stream:
        return b"".join(iter(lambda: stream.read(size), b""))
