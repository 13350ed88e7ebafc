"""The merged tree of an image as those want it who write it elsewhere: facts of the image, and contents."""

from __future__ import annotations

import contextlib
import stat
from typing import TYPE_CHECKING

from msb_pull.ground.below import open_directory
from msb_pull.ground.errors import NotFoundError, UsageError
from msb_pull.ground.text import visible_bytes
from msb_pull.layer.attributes import image_name, parse_override_stat
from msb_pull.layer.proof.model import content_paths
from msb_pull.layer.proof.node import Node
from msb_pull.layer.rules import clean, join, resolve
from msb_pull.work.export.contents import Contents, Source, fresh
from msb_pull.work.merge import Name, look, stack, walk
from msb_pull.work.recorded import recorded_layer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from msb_pull.ground.running import Job
    from msb_pull.layer.rules import Look
    from msb_pull.store.index.stored import StoredImage
    from msb_pull.store.store import Store
    from msb_pull.work.export.contents import Room

_SLASH = ord("/")


class Inode:
    """One name of the merged tree, with all that the image says of it.

    ``path`` is relative and has no leading slash, ``b""`` is the top. ``kind`` is one of the ``stat.S_IF…`` bits and
    ``mode`` the other twelve; ``mtime_ns`` counts from 1970 and may be any number. ``size`` is that of a regular file,
    ``target`` what a symlink names, ``device`` (major, minor). ``xattrs`` have the names that the image gave them.
    ``link_of`` is the first name of the file where this is another one. Of a sparse file ``segments`` are where
    (offset, length) it holds data, in order and apart; None means everywhere.
    """

    __slots__ = (
        *("_contents", "_source", "device", "gid", "kind", "link_of", "mode", "mtime_ns", "path"),
        *("segments", "size", "target", "uid", "xattrs"),
    )

    def __init__(
        self,
        path: bytes,
        node: Node,
        link_of: bytes | None,
        contents: Contents,
        source: Source | None,
        said: tuple[int, int, int, int] | None = None,
    ) -> None:
        """``said`` is what :func:`_said` has found in the node's override_stat, where that has been parsed already."""
        self.path = path
        self.uid, self.gid, self.kind, self.mode = said or _said(node.override)
        self.mtime_ns = node.mtime_ns or 0
        self.size = node.size
        self.target = node.link
        self.device = node.device or (0, 0)
        kept = node.attributes
        self.xattrs = {image_name(name): value for name, value in kept.items()} if kept else kept
        self.link_of = link_of
        self.segments = source.segments if source is not None else () if node.size else None
        self._contents = contents
        self._source = source

    @property
    def has_content(self) -> bool:
        """Whether this is the name under which the content of a regular file is written."""
        return self.kind == stat.S_IFREG and self.link_of is None

    @property
    def stored(self) -> int:
        """How many bytes :meth:`pieces` gives."""
        return self.size if self.segments is None else sum(length for _, length in self.segments)

    def pieces(self, room: Room = fresh) -> Iterator[tuple[int, memoryview]]:
        """What a regular file holds, as (offset, bytes) in order and without holes; each call reads it again.

        ``room`` gives where so many bytes, or fewer, can be put; each piece stays there until it is asked again.

        Raises ContentError, at the latest after the last piece, for a file that is not what the image has.
        """
        return self._contents.pieces(self._source, room) if self._source is not None else iter(())

    def open(self) -> int | None:
        """A descriptor to read the file itself in its layer, None where it holds nothing; raises ContentError.

        Whoever reads it this way has to compare what was read: :meth:`pieces` does.
        """
        if self._source is None:
            return None
        try:
            return self._contents.open(self._source)
        except OSError as error:
            raise self._contents.trouble(self._source, error) from error


def _said(override: bytes) -> tuple[int, int, int, int]:
    """Owner, group, kind and mode."""
    uid, gid, mode = parse_override_stat(override)
    return uid or 0, gid or 0, stat.S_IFMT(mode or 0), stat.S_IMODE(mode or 0)


class MergedTree:
    """The merged tree of an image. Contents can be read until :meth:`close`, by one thread."""

    def __init__(self, reference: str, root: Name, sources: dict[int, Source], contents: Contents) -> None:
        self._reference = reference
        self._root = root
        self._sources = sources
        self._contents = contents

    def inodes(self, paths: Sequence[bytes] = ()) -> list[Inode]:
        """All names, sorted component for component, so that parents come first; the top is the first.

        With ``paths`` (as :meth:`real_path` gives them) only what stands there and below, and the directories on the
        way.
        """
        names = walk(self._root)
        if paths:
            ways = {b"", *paths, *(path[:at] for path in paths for at, byte in enumerate(path) if byte == _SLASH)}
            inside = tuple(path and path + b"/" for path in paths)
            names = (name for name in names if name.path in ways or name.path.startswith(inside))
        first: dict[int, bytes] = {}
        inodes = []
        # There are few of them, and many who have one.
        said: dict[bytes, tuple[int, int, int, int]] = {}
        for name in names:
            node, path = name.node, name.path
            if (known := said.get(node.override)) is None:
                known = said[node.override] = _said(node.override)
            shared = first.setdefault(id(node), path)
            link_of = shared if shared is not path else None
            inodes.append(Inode(path, node, link_of, self._contents, self._sources.get(id(node)), known))
        return inodes

    def forget(self) -> None:
        """Lets go of all names, for the sake of memory: inodes that were given can be read as before."""
        self._root = Name(b"", Node.of_nothing(), 0, b"")
        for source in self._sources.values():
            source.node = None
        self._sources.clear()

    def real_path(self, path: bytes, *, followed: bool = False) -> bytes:
        """Where a path leads: symlinks on the way to its last name are followed, and with ``followed`` that one, too.

        Raises NotFoundError where nothing stands there, UsageError for what is no path of an image.
        """
        try:
            asked = clean(path) if path.strip(b"/") else b""
            parent, _, last = asked.rpartition(b"/")
            at = looker(self._root)
            real = resolve(asked, at) if followed else join(resolve(parent, at), last)
        except ValueError as error:
            raise UsageError(f"--path {visible_bytes(path)}: {error}") from None
        if look(self._root, real) is None:
            what = f"{self._reference}: nothing at {visible_bytes(path)}"
            raise NotFoundError(what, hint=f"`msb-pull inspect --files {self._reference}` lists all")
        return real


def looker(root: Name) -> Look:
    """How :func:`msb_pull.layer.rules.resolve` looks at a merged tree."""

    def at(path: bytes) -> bytes | bool | None:
        name = look(root, path)
        if name is None:
            return None
        return name.node.link if name.node.kind == stat.S_IFLNK else name.children is not None

    return at


@contextlib.contextmanager
def merged_tree(store: Store, image: StoredImage, job: Job) -> Iterator[MergedTree]:
    """The merged tree of an image, from the records of its layers; no directory of a layer has been looked into yet.

    Raises NotFoundError for a layer that is not complete, ContentError, Cancelled, OSError.
    """
    sources: dict[int, Source] = {}
    roots: list[tuple[str, int]] = []
    contents = Contents(roots)

    def layers() -> Iterator[dict[bytes, Node]]:
        # One at a time: what a layer holds that others hide need not be kept.
        for number, layer in enumerate(image.layers):
            job.cancel.check()
            record, nodes = recorded_layer(store, layer, job, whole_links=True)
            roots.append((layer.digest.short, open_directory(store.layer_dir(layer.key))))
            payloads = {payload[1]: payload for payload in record.payloads}
            for index, path in content_paths(nodes).items():
                sources[id(nodes[path])] = Source(number, path, payloads[index], nodes[path])
            del record, payloads
            yield nodes
            del nodes

    try:
        yield MergedTree(image.reference, stack(layers()), sources, contents)
    finally:
        contents.close()
