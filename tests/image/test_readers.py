"""The one reader that counts, keeps and verifies a blob."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msb_pull.ground.errors import Cancelled
from msb_pull.ground.running import Cancel
from msb_pull.image.digest import Digest
from msb_pull.image.readers import CHUNK, BlobReader, DigestMismatch

BLOB = random.Random(7).randbytes(3 * CHUNK + 17)


def reader(blob: bytes, *, keep: int | None = None, claimed: bytes | None = None, **options) -> BlobReader:
    expected = blob if claimed is None else claimed
    return BlobReader(
        Digest.of(expected),
        len(expected),
        lambda offset: io.BytesIO(blob[offset:]),
        keep=keep,
        progress=options.get("progress", lambda done: None),
        cancel=options.get("cancel") or Cancel(),
    )


def open_keep(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def test_all_bytes_pass_in_order_and_are_counted() -> None:
    seen: list[int] = []
    blob = reader(BLOB, progress=seen.append)
    assert b"".join(blob.chunks()) == BLOB
    blob.verify()
    assert seen[-1] == len(BLOB) == blob.fetched
    assert seen == sorted(seen)


@given(st.integers(0, len(BLOB)))
def test_what_an_earlier_run_kept_is_not_fetched_again(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("kept") / "part"
    path.write_bytes(BLOB[:cut])
    keep = open_keep(path)
    blob = reader(BLOB, keep=keep)
    assert b"".join(blob.chunks()) == BLOB
    blob.verify()
    os.close(keep)
    assert blob.fetched == len(BLOB) - cut
    assert path.read_bytes() == BLOB


def test_d12_a_kept_file_longer_than_the_blob_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(BLOB + b"x")
    keep = open_keep(path)
    blob = reader(BLOB, keep=keep)
    assert b"".join(blob.chunks()) == BLOB
    os.close(keep)
    assert blob.fetched == len(BLOB)
    assert path.read_bytes() == BLOB


@pytest.mark.parametrize("damage", ["flip", "short", "long"])
def test_a_wrong_blob_is_told_at_the_end(damage: str) -> None:
    wrong = {"flip": b"\x00" + BLOB[1:], "short": BLOB[:-1], "long": BLOB + b"x"}[damage]
    blob = reader(wrong, claimed=BLOB)
    list(blob.chunks())
    with pytest.raises(DigestMismatch):
        blob.verify()


def test_a_stop_flag_ends_the_stream_at_the_next_chunk() -> None:
    cancel = Cancel()
    cancel.set()
    blob = reader(BLOB, cancel=cancel)
    with pytest.raises(Cancelled):
        next(blob.chunks())


def test_the_source_is_closed_when_the_consumer_leaves_early() -> None:
    source = io.BytesIO(BLOB)
    blob = BlobReader(
        Digest.of(BLOB), len(BLOB), lambda offset: source, keep=None, progress=lambda done: None, cancel=Cancel()
    )
    chunks = blob.chunks()
    next(chunks)
    chunks.close()
    assert source.closed
