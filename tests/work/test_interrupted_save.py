"""Who is interrupted while an archive is written leaves no half of it, whatever the signal."""

from __future__ import annotations

import signal

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
    wait_for(lambda: list(tmp_path.glob(".image.tar.*.part")))
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.endswith(f"hint: {tmp_path / 'image.tar'} was not written; run the same command again\n")
    assert list(tmp_path.glob("*image.tar*")) == list(tmp_path.glob(".image.tar*")) == []
