"""Compares what the files of a layer hold with what it must be, by making the layer's tar stream again."""

from __future__ import annotations

import os
import stat

from msb_pull.ground.below import Trail, open_file
from msb_pull.ground.text import visible_bytes
from msb_pull.layer.proof.model import content_paths
from msb_pull.layer.proof.stream import Listener, stream
from msb_pull.layer.proof.task import DERIVED, Damage
from msb_pull.layer.tree.holes import crc_of, first_data, sha256_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from msb_pull.layer.proof.compare import Check
    from msb_pull.layer.proof.node import Node
    from msb_pull.layer.tar.record import Payload, Record
    from msb_pull.layer.tree.kept import Kept

# What the stream has no bytes of: the whole file is one hole.
_NOTHING: Payload = (0, -1, 0, 0, ())


class Contents:
    """The comparison of all files of a layer whose tree ``check`` has compared, its record read.

    Files that ``leave`` is true for are not read. What is overwritten is looked for in ``kept``, and ``is_original``
    compares an open file with that of a path in the layers below.
    """

    def __init__(
        self,
        check: Check,
        record: Record,
        kept: Kept,
        *,
        leave: Callable[[bytes], bool],
        is_original: Callable[[bytes, int], bool],
    ) -> None:
        self._check = check
        self._record = record
        self._kept = kept
        self._leave = leave
        self._is_original = is_original

    def damages(self, take: Callable[[memoryview], None]) -> Iterator[Damage]:
        """Makes the layer's stream again into ``take`` and yields every file whose content is not what it was."""
        yield from self._in_stream(take)
        yield from self._beside_stream()

    def _in_stream(self, take: Callable[[memoryview], None]) -> Iterator[Damage]:
        check, leave = self._check, self._leave
        found: list[Damage] = []
        listener = Listener(
            lambda path, expected, what: found.append(Damage(path, "content", expected, what)),
            # Each file is opened once, for its attributes and its content.
            opened=lambda path, handle: found.extend(check.attributes_left(path, handle)),
            closed=lambda path, stored, error: found.extend(check.trouble(path, error)),
            # Part of the stream, but not of the tree.
            lost=lambda path, what: found.append(
                Damage(path, "overwritten", "the content that a later entry replaced", what)
            ),
        )
        paths = {index: None if leave(path) else path for index, path in content_paths(check.nodes).items()}
        for piece in stream(self._record, check.root, paths, listener, kept=self._kept):
            take(piece)
            yield from found
            found.clear()

    def _beside_stream(self) -> Iterator[Damage]:
        """The files whose content the stream does not have from them: copies, and those that are one hole."""
        payloads: dict[int, Payload] = {}
        compared: set[int] = set()
        for path, node in self._check.nodes.items():
            if node.index >= 0 or node.kind != stat.S_IFREG or self._leave(path):
                continue
            if node.origin is not None:
                # Hard links to one lower file are one copy.
                if id(node) not in compared:
                    compared.add(id(node))
                    yield from self._copy(path, node)
            elif node.copy >= 0:
                payloads = payloads or {payload[1]: payload for payload in self._record.payloads}
                yield from self._second(path, payloads[node.copy])
            elif node.size:
                yield from self._second(path, _NOTHING)

    def _copy(self, path: bytes, node: Node) -> Iterator[Damage]:
        """A file that settling copied from a lower layer."""
        try:
            handle = _open_below(self._check.root, path)
            try:
                found = sha256_of(handle)
                same = self._is_original(node.origin or b"", handle)
            finally:
                os.close(handle)
        except OSError as error:
            yield from self._check.trouble(path, error)
            return
        # A copy that has changed is damage of this layer; one that is as noted and unlike its original may be that of
        # the layer below.
        if node.sha256 and found != node.sha256:
            yield Damage(path, "content", f"sha256 {node.sha256}", f"sha256 {found}")
        elif not same:
            origin = visible_bytes(node.origin or b"")
            yield Damage(path, DERIVED, f"the content of {origin} in a layer below", "another")

    def _second(self, path: bytes, payload: Payload) -> Iterator[Damage]:
        """A hard link that is a copy, or one hole."""
        _, _, expected, stored, sparse = payload
        try:
            handle = _open_below(self._check.root, path)
            try:
                segments = sparse if sparse is not None else ((0, stored),)
                crc = crc_of(handle, segments)
                stray = first_data(handle, segments, os.fstat(handle).st_size)
            finally:
                os.close(handle)
        except OSError as error:
            yield from self._check.trouble(path, error)
            return
        if crc != expected:
            yield Damage(path, "content", f"crc32 {expected:08x}", f"crc32 {crc:08x}")
        elif stray is not None:
            yield Damage(path, "content", "a hole", f"data at byte {stray}")


def _open_below(root: int, path: bytes) -> int:
    parent, _, name = path.rpartition(b"/")
    trail = Trail(root)
    try:
        return open_file(name, trail.reach(parent))
    finally:
        trail.close()
