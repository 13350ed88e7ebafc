"""Reading files of the user: never waiting, never more than asked for."""

from __future__ import annotations

import os
import socket

import pytest

from msb_pull.ground.places import read_regular


def test_a_file_a_link_to_one_and_dev_null(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "null").symlink_to(os.devnull)
    assert [read_regular(tmp_path / name, 5) for name in ("file", "link", "null")] == [b"12345", b"12345", b""]
    assert read_regular(tmp_path / "file", 3) == b"1234"


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    before = os.listdir("/dev/fd")
    for name in ("fifo", "link", "zero"):
        with pytest.raises(OSError, match="not a regular file"):
            read_regular(tmp_path / name, 5)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path, 5)
    assert len(os.listdir("/dev/fd")) == len(before)


def test_a_socket_is_refused(tmp_path, monkeypatch):
    # A path of a socket may have some hundred bytes alone.
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with pytest.raises(OSError, match=r"No such device|not supported"):
            read_regular(tmp_path / "socket", 5)
