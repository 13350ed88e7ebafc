"""A container's seccomp policy refuses optional system calls with EPERM: that counts as a kernel without them."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys

import pytest

from msb_pull.layer.unpack import jail, seccomp
from msb_pull.store import publish as exchange
from tests.conftest import REPOSITORY

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the calls are Linux's")

ENTER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from msb_pull.layer.unpack import jail
def refuse():
    raise OSError(int(sys.argv[4]), os.strerror(int(sys.argv[4])))
every = jail.steps
jail.steps = lambda root: {name: refuse if name == sys.argv[3] else lambda: None for name in every(root)}
print(jail.enter(os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECTORY), max_file_size=1 << 20))
"""


def enter(folder, step: str, number: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ENTER, str(REPOSITORY), str(folder), step, str(number)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class Refusing:
    """A C library whose optional calls all end with one error."""

    def __init__(self, number: int) -> None:
        self._number = number

    def renameat2(self, *_: object) -> int:
        ctypes.set_errno(self._number)
        return -1

    syncfs = renameat2


@linux
@pytest.mark.parametrize("step", jail.steps(-1))
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.ENOSPC])
def test_unpacking_goes_on_without_a_wall_that_is_refused(tmp_path, step, number):
    ran = enter(tmp_path, step, number)
    assert ran.returncode == 0, ran.stderr
    others = [name for name in jail.steps(-1) if name != step]
    assert ran.stdout == f"{', '.join([*others, 'resource limits'])}; not {step} ({os.strerror(number)})\n"


@linux
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EINVAL])
def test_a_filter_that_a_system_refuses_is_not_offered(monkeypatch, number):
    def refuse(program: bytes | None) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(seccomp, "_seccomp", refuse)
    assert not seccomp.available()
    assert "filter" not in jail.describe()


@linux
def test_there_is_no_filter_for_processors_that_are_not_known(monkeypatch):
    names = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*names[:4], "riscv64")))
    assert not seccomp.available()
    with pytest.raises(OSError, match=os.strerror(errno.ENOSYS)):
        seccomp.install()


@linux
def test_no_user_namespace_is_made_where_nothing_filters_its_calls(monkeypatch, tmp_path):
    """Whoever makes one may do more in it than before."""
    made = []

    def refuse(path: str) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chroot", refuse)
    monkeypatch.setattr(seccomp, "available", lambda: False)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: made.append(True))
    monkeypatch.setattr(os, "fchdir", lambda descriptor: None)
    with pytest.raises(PermissionError):
        jail._change_root(-1)
    assert made == []


@linux
def test_a_jail_that_fails_for_another_reason_is_an_error(tmp_path):
    ran = enter(tmp_path, "its folder as root", errno.EBADF)
    assert ran.returncode != 0
    assert os.strerror(errno.EBADF) in ran.stderr


@linux
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_folders_are_moved_one_by_one_where_a_swap_is_refused(tmp_path, monkeypatch, number):
    new, old, aside = tmp_path / "new", tmp_path / "old", tmp_path / "aside"
    for folder in (new, old):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Refusing(number))
    exchange.exchange(new, old, aside=aside)
    assert (old / "name").read_text() == "new"
    assert (aside / "name").read_text() == "old"


@linux
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_everything_is_flushed_where_flushing_one_file_system_is_refused(tmp_path, monkeypatch, number):
    synced = []
    monkeypatch.setattr(os, "sync", lambda: synced.append(True))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Refusing(number))
    exchange.flush(tmp_path)
    assert synced == [True]


@linux
def test_data_that_could_not_be_written_is_still_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Refusing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        exchange.flush(tmp_path)
