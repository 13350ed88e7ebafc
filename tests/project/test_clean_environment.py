"""The tests' own fence: what tests/conftest.py promises."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.conftest import OutsideLoopback


def test_home_is_a_temporary_folder(clean_environment):
    assert Path.home() == clean_environment
    assert Path(os.environ["MICROSANDBOX_HOME"]).is_relative_to(clean_environment)
    assert not [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("MSB_")]


def test_no_other_machine_is_reached():
    with socket.socket() as outside, pytest.raises(OutsideLoopback):
        outside.connect(("192.0.2.1", 80))
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("registry-1.docker.io", 443)


def test_loopback_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()[:2]).close()
