"""What a pull says of a full disk, without one: tests/whole/test_disk_full.py has real ones."""

from __future__ import annotations

import errno

import pytest

from msb_pull.ground import errors
from msb_pull.ground.errors import LocalError
from msb_pull.ground.running import Job
from msb_pull.image.reference import parse_argument
from msb_pull.store.store import Store
from msb_pull.work.pull import bases, fetch
from msb_pull.work.pull.plan import PullOptions
from msb_pull.work.pull.pull import pull_image
from tests.support.archive import END, reg
from tests.support.imagebuild import simple_layout


@pytest.mark.parametrize("step", [(fetch, "_pump"), (bases, "keep_aside")])
def test_a77_what_is_free_is_asked_before_staging_goes(tmp_path, monkeypatch, step):
    """Afterwards it is much again, and says nothing of why the disk was full."""
    store = Store.open(tmp_path / "home")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(store.own / "partial"))

    there = []
    monkeypatch.setattr(errors, "_facts_of", lambda path: there.append(list(store.places.folder.glob("*/tree"))))
    monkeypatch.setattr(*step, full)
    layout = simple_layout(tmp_path / "layout", [reg(b"f", b"x") + END])
    options = PullOptions(name="localhost/a:1")
    with pytest.raises(LocalError, match="no space left"):
        pull_image(parse_argument(f"oci:{layout}"), store, lambda: pytest.fail("a layout"), options, Job())
    assert there and all(there)
    assert not list(store.places.folder.iterdir())
