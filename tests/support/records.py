"""A layer unpacked with its record and notes, to be made again from them."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

from msb_pull.layer.notes import Notes
from msb_pull.layer.proof.model import content_paths, expected_tree
from msb_pull.layer.proof.stream import Listener, stream
from msb_pull.layer.report import UnpackOptions
from msb_pull.layer.settle.settle import settle
from msb_pull.layer.tar.record import Record
from msb_pull.layer.tree.kept import Kept, keep_aside
from msb_pull.layer.unpack.unpack import unpack


class Layer:
    """An archive unpacked with its record and notes."""

    def __init__(self, folder: Path, stream: bytes) -> None:
        self.tree, self.record = folder / "tree", folder / "record.tar"
        self.tree.mkdir(parents=True, mode=0o700)
        self.root = os.open(self.tree, os.O_RDONLY | os.O_DIRECTORY)
        with self.record.open("wb") as record:
            report = unpack(io.BytesIO(stream), self.root, record.fileno(), UnpackOptions())
        diff_id = "sha256:" + hashlib.sha256(stream).hexdigest()
        settled = settle(self.tree, report, [])
        self.kept = folder / "kept"
        keep_aside(self.tree, self.kept)
        Notes.of(report, settled.derived, diff_id=diff_id, tar_bytes=len(stream), chain="").save(folder / "notes")
        self.notes = Notes.load(folder / "notes")
        self.read = Record(self.record)
        self.nodes = expected_tree(self.read, self.notes)
        self.lost = len(self.read.payloads) - len(content_paths(self.nodes))

    def again(self) -> tuple[bytes, list[bytes]]:
        damaged: list[bytes] = []
        kept = Kept(str(self.kept))
        paths = content_paths(self.nodes)
        try:
            told = lambda path, expected, found: damaged.append(path)  # noqa: E731
            pieces = stream(self.read, self.root, paths, Listener(told), kept=kept)
            return b"".join(map(bytes, pieces)), damaged
        finally:
            kept.close()
