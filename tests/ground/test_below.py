"""Opening and looking below a descriptor: by one name, through no symlink, and waiting for nobody."""

from __future__ import annotations

import errno
import os

import pytest

from msb_pull.ground import below


@pytest.fixture
def top(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"content")
    os.mkfifo(tmp_path / "fifo")
    for name in ("folder", "file", "nothing"):
        (tmp_path / f"to-{name}").symlink_to(name)
    descriptor = below.open_directory(tmp_path)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("name", ["to-folder", "to-file", "to-nothing"])
@pytest.mark.parametrize("way", [below.open_directory, below.open_file, below.create_file])
def test_no_symlink_is_followed(top, way, name):
    with pytest.raises(OSError) as caught:
        way(name, top)
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST)


def test_nobody_waits_for_the_writer_of_a_fifo(top, tmp_path):
    os.close(below.open_file("fifo", top))
    with open(tmp_path / "fifo", "rb", opener=below.opener) as file:
        assert file.read() == b""


def test_no_child_process_inherits_a_descriptor(top):
    opened = [below.open_directory("folder", top), below.open_file("file", top), below.create_file("new", top)]
    assert not any(map(os.get_inheritable, opened))
    for descriptor in opened:
        os.close(descriptor)
    assert os.stat("new", dir_fd=top).st_mode & 0o777 == 0o600


def test_a_look_tells_a_symlink_from_nothing(top):
    assert below.look("nothing", top) is None
    found = below.look("to-nothing", top)
    assert found is not None and found.st_size == len("nothing")


def test_a_name_that_no_directory_can_hold(top):
    with pytest.raises(OSError) as caught:
        below.look("x" * 300, top)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert below.look("x" * 300, top, below.ABSENT_OR_TOO_LONG) is None
