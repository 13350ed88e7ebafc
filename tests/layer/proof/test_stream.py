"""From its record and its directory comes the tar stream of a layer again, byte for byte."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msb_pull.ground.errors import ContentError
from msb_pull.layer.proof.prove import prove
from msb_pull.layer.proof.task import ProofTask
from tests.support.archive import END, directory, hardlink, hdr, pax, reg, symlink, xattr
from tests.support.records import Layer


def test_a_layer_of_everything_comes_back_byte_for_byte(make):
    layer, stream = make(
        directory(b"./"),
        directory(b"d", mtime=5),
        reg(b"d/f", b"content" * 300, mode=0o4755, uid=7),
        hardlink(b"d/h", b"d/f"),
        symlink(b"s", b"d"),
        reg(b"s/through", b"a symlink"),
        reg(b"implied/deep/f", b"x"),
        hdr(b"null", typ=b"3", major=1, minor=3),
        xattr(b"user.k", b"v"),
        reg(b"with", b"attribute"),
        pax((b"path", b"long/" * 40 + b"name")),
        reg(b"n", b"y" * 513),
        hdr(b".wh.gone"),
        reg(b"empty"),
        end=END + bytes(8192) + b"garbage",
    )
    assert layer.lost == 0
    assert layer.again() == (stream, [])


def test_a_changed_file_is_named_and_the_rest_goes_on(make):
    layer, stream = make(reg(b"a", b"one"), reg(b"b", b"two"), reg(b"c", b"three"))
    (layer.tree / "b").write_bytes(b"owt")
    (layer.tree / "c").unlink()
    again, damaged = layer.again()
    assert damaged == [b"b", b"c"]
    assert len(again) == len(stream) and again != stream


def test_content_that_a_later_entry_replaced_is_counted_as_lost(make):
    layer, _ = make(reg(b"f", b"first"), reg(b"f", b"second"))
    assert layer.lost == 1
    kept, _ = make(reg(b"f", b"first"), hardlink(b"g", b"f"), reg(b"f", b"second"))
    assert kept.lost == 0
    assert kept.again()[1] == []


def test_a39_what_lies_with_the_hard_links_of_aufs_is_where_they_lead(make):
    """Verify used to call the link a file too many, since it looked for the file at its place in the end only."""
    layer, stream = make(
        *(reg(b".wh..wh.plnk/1.2", b"content"), hardlink(b"f", b".wh..wh.plnk/1.2")),
        *(hardlink(b"g", b".wh..wh.plnk/1.2"), reg(b".wh..wh.plnk/a/b"), reg(b".wh..wh.orph", b"")),
    )
    task = ProofTask(str(layer.tree), str(layer.record), str(layer.tree.parent / "notes"), layer.notes.diff_id, False)
    assert prove(task, lambda done, total, entries: None).damages == []
    assert layer.nodes[b"f"] is layer.nodes[b"g"]
    assert layer.again() == (stream, [])


NAMES = st.sampled_from([b"a", b"b", b"d", b"d/a", b"d/b", b"d/e/f", b"l", b"l/x", b".wh.a", b"d/.wh..wh..opq"])
PARTS = st.lists(
    st.one_of(
        st.builds(reg, NAMES, st.binary(max_size=1500), uid=st.integers(0, 9)),
        st.builds(directory, NAMES, mode=st.sampled_from([0o755, 0o1777, 0o500])),
        st.builds(symlink, NAMES, st.sampled_from([b"d", b"/d/e", b"../..", b"missing", b"l"])),
        st.builds(hardlink, NAMES, NAMES),
        st.builds(hdr, NAMES, typ=st.sampled_from([b"3", b"4", b"6"])),
    ),
    max_size=8,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PARTS)
def test_any_layer_that_unpacks_comes_back(tmp_path_factory, parts):
    stream = b"".join(parts) + END
    try:
        layer = Layer(tmp_path_factory.mktemp("layer"), stream)
    except ContentError:
        return
    try:
        again, damaged = layer.again()
        assert damaged == []
        assert len(again) == len(stream)
        assert again == stream
    finally:
        os.close(layer.root)
