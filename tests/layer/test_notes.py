"""The notes: what is said of damaged ones, and of a disk that does not take them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from msb_pull.ground.errors import ContentError
from msb_pull.layer.notes import Notes


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_told_with_the_place():
    notes = Notes(diff_id="", tar_bytes=0, entries=0, content_bytes=0, chain="")
    with pytest.raises(OSError, match="No space left") as raised:
        notes.save(Path("/dev/full"))
    assert raised.value.filename == "/dev/full"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2}', "\xff", '{"version": 1, "diff_id": 5}'])
def test_damaged_notes_are_told(tmp_path, text):
    (tmp_path / "notes").write_text(text, encoding="latin-1")
    with pytest.raises(ContentError, match="notes of a layer are damaged"):
        Notes.load(tmp_path / "notes")
