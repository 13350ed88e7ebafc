"""Who is interrupted while an archive is written leaves no half of it, whatever the signal."""

from __future__ import annotations

import signal
import tarfile

import pytest

from tests.support.archive import END, reg
from tests.support.counting import wait_for
from tests.support.fault_registry import FaultRegistry
from tests.support.home import Home, gz


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An image that is small on its way here and long to write."""
    home = Home(tmp_path_factory.mktemp("large"))
    with FaultRegistry() as registry:
        registry.add_image("acme/app", "1", [gz(reg(b"zeros", bytes(400 << 20)) + END)])
        name = f"{registry.host}/acme/app:1"
        assert home.pull(name).returncode == 0
        yield home, name


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_nothing_half_written_stays(large, tmp_path, number, code):
    home, name = large
    process = home.start("save", name, "-o", str(tmp_path / "image.tar"))
    wait_for(lambda: list(tmp_path.glob(".image.tar.msb-pull-*")))
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.endswith(f"hint: {tmp_path / 'image.tar'} was not written; run the same command again\n")
    assert list(tmp_path.glob("*image.tar*")) == list(tmp_path.glob(".image.tar*")) == []


@pytest.mark.parametrize("command", ["save", "export"])
def test_what_a_killed_save_left_goes_with_the_next_output_into_that_folder(large, tmp_path, command):
    home, name = large
    process = home.start("save", name, "-o", str(tmp_path / "image.tar"))
    wait_for(lambda: list(tmp_path.glob(".image.tar.msb-pull-*[0-9a-f]")))
    process.kill()
    process.communicate(timeout=60)
    assert list(tmp_path.glob(".image.tar.msb-pull-*"))
    others = {".image.tar.msb-pull", ".image.tar.msb-pull-1", ".msb-pull-notes-2024", ".x.msb-pull-1-0123456g"}
    for other in others:
        (tmp_path / other).write_text("of the user")
    assert home.run(command, name, "-o", str(tmp_path / "other.tar")).returncode == 0
    assert {x.name for x in tmp_path.iterdir()} == {"other.tar", *others}
    assert tarfile.is_tarfile(tmp_path / "other.tar")


def test_what_a_living_save_is_writing_stays(large, tmp_path):
    home, name = large
    process = home.start("save", name, "-o", str(tmp_path / "image.tar"))
    # Once it writes it has closed the database, which nobody else could open while it stands still there.
    wait_for(lambda: [x for x in tmp_path.glob(".image.tar.msb-pull-*[0-9a-f]") if x.stat().st_size])
    process.send_signal(signal.SIGSTOP)
    try:
        assert home.run("export", name, "-o", str(tmp_path / "other.tar"), "--path", "zeros").returncode == 0
        assert list(tmp_path.glob(".image.tar.msb-pull-*[0-9a-f]"))
    finally:
        process.send_signal(signal.SIGCONT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert sorted(x.name for x in tmp_path.iterdir()) == ["image.tar", "other.tar"]
