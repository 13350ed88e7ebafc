"""Every input that fuzzing kept goes through its target again; what was found once stays mended. Needs no fuzzer."""

from __future__ import annotations

import tracemalloc

import pytest

from tests.fuzz.run import CORPUS
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import DEFAULT_LENGTH, LENGTHS, TARGETS
from tests.fuzz.tars import Pieces, arrange

_ALL = 1 << 20
# The reader's own buffers, whatever the archive says of itself.
_READER = 4 << 20


def inputs(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_still_passes(target):
    kept = inputs(target)
    assert kept
    for data in (*kept, *seeds(target), b""):
        TARGETS[target](data)


def test_the_corpus_is_small():
    sizes = {path: path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < _ALL
    assert {path.parent.name for path in sizes} == set(TARGETS)
    for path, size in sizes.items():
        assert size <= LENGTHS.get(path.parent.name, DEFAULT_LENGTH)


def test_the_tar_reader_needs_little_memory():
    from msb_pull.ground.limits import Limits
    from msb_pull.layer.limits import LayerError
    from msb_pull.layer.tar.tar import TarReader

    for data in inputs("tar"):
        stream = arrange(data)[1]
        tracemalloc.start()
        try:
            reader = TarReader(Pieces(stream, whole=False), limits=Limits())
            while reader.next() is not None:
                pass
            reader.drain()
        except LayerError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < _READER, f"{peak} bytes for {len(stream)}"
