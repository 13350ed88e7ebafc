"""What podman makes archives of layers again from."""

from __future__ import annotations

import hashlib
import os

import pytest

from msb_pull.layer.tar import split
from msb_pull.work.podman.splits import SplitWriter
from tests.support.archive import directory, reg, symlink
from tests.support.exports import BOTTOM, LATIN, TOP, layout, sparse
from tests.support.podman import A, B, archive_of, export, hearing, layer_ids, pull, remove, split_of

NAME = "localhost/more:1"


def digests(folder, layers) -> list[str]:
    return [hashlib.sha256(archive_of(folder, layer)).hexdigest() for layer in layers]


def said(folder) -> list[str]:
    """The diff_ids of the layers, as podman is told of them."""
    return [layer["diff-digest"].removeprefix("sha256:") for layer in layer_ids(folder)]


def splits(folder) -> list[str]:
    return sorted(path.name for path in (folder / "overlay-layers").glob("*.tar-split.gz"))


@pytest.mark.parametrize(
    "layers",
    [
        (BOTTOM, TOP),
        # Overwritten later, elsewhere through a symlink, sparse, under a whiteout's name, and nothing at all.
        ([reg(b"twice", b"first"), reg(b"twice", b"second" * 200_000), reg(b"twice", b"third")],),
        ([directory(b"a"), symlink(b"b", b"a"), reg(b"b/f", b"through"), symlink(b"c", b"/a"), reg(b"c/g", b"g")],),
        ([sparse(b"holes", 1 << 20, (4096, b"x" * 4096), ((1 << 20) - 512, b"y" * 512)), reg(b"after", b"a")],),
        ([reg(b".wh.gone", b"not empty"), reg(b"f", b"f")],),
        ([],),
    ],
)
def test_the_stream_of_each_layer(home, tmp_path, layers):
    folder = home / "podman"
    pull(home, NAME, layout(tmp_path / "more", *layers))
    export(home, NAME)
    stack = [layer["id"] for layer in layer_ids(folder)]
    assert splits(folder) == sorted(f"{layer}.tar-split.gz" for layer in stack)
    assert digests(folder, stack) == said(folder)


def test_contents_stay_in_the_layer(home, tmp_path):
    pull(home, NAME, layout(tmp_path / "more", [reg(b"large", os.urandom(3_000_000)), reg(LATIN, b"latin")]))
    export(home, NAME)
    (layer,) = layer_ids(home / "podman")
    lines = split_of(home / "podman", layer["id"])
    assert [line["size"] for line in lines if line["type"] == 1] == [3_000_000, 5]
    assert [line["position"] for line in lines] == list(range(len(lines)))
    assert (home / "podman/overlay-layers" / f"{layer['id']}.tar-split.gz").stat().st_size < 2000


def test_each_is_written_once_and_goes_with_its_layer(home, monkeypatch):
    folder = home / "podman"
    export(home, A)
    before = splits(folder)
    assert len(before) == 2
    written = []
    write = SplitWriter.write
    monkeypatch.setattr(SplitWriter, "write", lambda self, layer, out: written.append(layer) or write(self, layer, out))
    export(home, A, B)
    assert len(written) == 1
    assert len(splits(folder)) == 3
    remove(home, B)
    assert splits(folder) == before
    # A view of an older version has none.
    (folder / "overlay-layers" / before[0]).unlink()
    export(home, A)
    assert splits(folder) == before


def test_what_is_damaged_has_none_and_is_named(home):
    heard, job = hearing()
    (place,) = (home / "layers").glob("sha256:*/etc/base")
    place.write_bytes(b"else")
    export(home, A, job=job)
    (warning,) = heard
    assert "cannot save or push layer" in warning
    assert '"etc/base" is damaged' in warning
    assert len(splits(home / "podman")) == 1
    # Once it is mended the next export writes it.
    place.write_bytes(b"base")
    export(home, A)
    assert len(splits(home / "podman")) == 2


def test_too_much_that_lies_in_no_file_is_left_out(home, tmp_path, monkeypatch):
    monkeypatch.setattr(split, "CARRIED_LIMIT", 1000)
    pull(home, NAME, layout(tmp_path / "more", [reg(b"f", b"x" * 1001), reg(b"f", b"y" * 5000)]))
    heard, job = hearing()
    export(home, NAME, job=job)
    assert len(heard) == 1
    assert "overwritten later" in heard[0]
    assert splits(home / "podman") == []
