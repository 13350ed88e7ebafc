"""One regular file of an image, without reading what the records of its layers say of all others."""

from __future__ import annotations

import contextlib
import stat
from typing import TYPE_CHECKING

from msb_pull.ground.below import open_directory
from msb_pull.ground.errors import ContentError
from msb_pull.layer.attributes import parse_override_stat
from msb_pull.layer.notes import Notes
from msb_pull.layer.proof.model import Tree, content_paths
from msb_pull.layer.rules import clean, resolve
from msb_pull.layer.settle.lowers import MergedView
from msb_pull.layer.tar.skim import Skimmed, Unclear
from msb_pull.work.export.contents import Contents, Source
from msb_pull.work.export.tree import Inode, looker
from msb_pull.work.merge import look, stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from msb_pull.layer.proof.node import Node
    from msb_pull.layer.rules import Look
    from msb_pull.layer.tar.record import Payload
    from msb_pull.store.index.stored import StoredImage, StoredLayer
    from msb_pull.store.store import Store


@contextlib.contextmanager
def single_file(store: Store, image: StoredImage, path: bytes) -> Iterator[Inode | None]:
    """The regular file that a path leads to, symlinks followed; None where only the whole tree can tell, be it that
    there is none. Its content can be read within the block.

    Raises ContentError, OSError.
    """
    roots: list[tuple[str, int]] = []
    contents = Contents(roots)
    try:
        found = _found(store, image, path)
        if found is None:
            yield None
            return
        place, node, source = found
        if source is not None:
            layer = image.layers[source.layer]
            # Numbered by its place, as every layer is.
            roots += [("", -1)] * source.layer
            roots.append((layer.digest.short, open_directory(store.layer_dir(layer.key))))
        yield Inode(place, node, None, contents, source)
    finally:
        del roots[:-1]
        contents.close()


def _found(store: Store, image: StoredImage, path: bytes) -> tuple[bytes, Node, Source | None] | None:
    try:
        asked = clean(path)
        wanted = _on_disk(store, image, asked)
        while True:
            layers = [_Layer(store, layer, wanted) for layer in image.layers]
            root = stack(layer.nodes for layer in layers)
            real, looked = _resolved(asked, looker(root))
            # A symlink on the way may lead to what has not been read.
            if looked <= wanted:
                break
            wanted |= looked
        name = look(root, real)
    except (Unclear, ValueError, ContentError, FileNotFoundError):
        # Whoever reads all of it says what is wrong.
        return None
    if name is None or stat.S_IFMT(parse_override_stat(name.node.override)[2] or 0) != stat.S_IFREG:
        return None
    return real, name.node, layers[name.layer].source(name.layer, name.node)


def _resolved(path: bytes, at: Look) -> tuple[bytes, set[bytes]]:
    """Where a path leads, and all paths that had to be looked at for it. Raises ValueError."""
    looked = {path}

    def tell(path: bytes) -> bytes | bool | None:
        looked.add(path)
        return at(path)

    real = resolve(path, tell)
    return real, looked | {real}


def _on_disk(store: Store, image: StoredImage, path: bytes) -> set[bytes]:
    """The same as the layers' directories show it: what is right in all likelihood, and only saves a second look."""
    with contextlib.suppress(OSError), MergedView([store.layer_dir(x.key) for x in reversed(image.layers)]) as view:

        def at(path: bytes) -> bytes | bool | None:
            shown = view.look(path)
            if shown is None:
                return None
            return view.read_link(shown) if shown.is_symlink else shown.is_directory

        return _resolved(path, at)[1]
    return {path}


class _Layer:
    """What a layer has of some paths. Raises Unclear, ValueError, ContentError, FileNotFoundError."""

    def __init__(self, store: Store, layer: StoredLayer, paths: set[bytes]) -> None:
        if not store.has_layer(layer.key):
            raise FileNotFoundError
        notes = Notes.load(store.notes_path(layer.key))
        notes.copied = []
        if notes.placed or notes.moved or any(fact["kind"] != "directory" for fact in notes.derived):
            raise Unclear
        wanted = set(paths)
        while True:
            record = Skimmed(store.record_path(layer.key), wanted)
            tree = Tree(record.path, notes)
            for entry in record.entries():
                tree.add(entry)
            tree.finish()
            # The first name of a file may be any other one of the layer.
            more = {clean(target) for _, _, target in tree.missing} - wanted
            if not more:
                break
            wanted |= more
        if tree.missing or tree.placed:
            raise Unclear
        tree.settle(notes.derived)
        self.nodes = tree.nodes
        self._payloads: dict[int, Payload] = {payload[1]: payload for payload in record.payloads}

    def source(self, number: int, node: Node) -> Source | None:
        path = content_paths(self.nodes).get(node.index)
        return None if path is None else Source(number, path, self._payloads[node.index], node)
