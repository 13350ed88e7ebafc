"""Removing and measuring trees that an image made: any depth, any mode, any name, and nothing outside."""

from __future__ import annotations

import itertools
import os
import resource
import time

import pytest

from msb_pull.ground.remove import disk_usage, remove_tree

DEPTH = 5000


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "tree"
    folder.mkdir()
    return folder


def deep(folder, levels: int) -> None:
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


@pytest.mark.timeout(60)
def test_d30_a78_five_thousand_levels_with_few_descriptors(tree):
    deep(tree, DEPTH)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The limit is on numbers, and some of those below it may be in use: 40 are to be free.
    taken = {int(number) for number in os.listdir("/dev/fd")}
    limit = next(number for number in itertools.count() if number - sum(x < number for x in taken) == 40)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        assert remove_tree(tree)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not tree.exists()


def test_d30_long_and_odd_names(tree):
    for name in (b"n" * 255, b"\xff\xfe", b"a\nb", b".removed-0", b".removed-1"):
        (tree / os.fsdecode(name)).mkdir()
        (tree / os.fsdecode(name) / os.fsdecode(name)).mkdir()
        (tree / os.fsdecode(name) / "f").touch()
    assert remove_tree(tree)
    assert not tree.exists()


def test_names_that_stand_in_the_way_of_moving_up(tree):
    for number in range(5):
        (tree / f".removed-{number}" / f".removed-{number + 1}" / "x").mkdir(parents=True)
        (tree / f".removed-{number}" / f".removed-{number + 1}" / "f").touch()
    assert remove_tree(tree)
    assert not tree.exists()


def test_symlinks_are_removed_and_not_followed(tree, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "f").touch()
    (tree / "deep").mkdir()
    (tree / "deep" / "link").symlink_to(victim)
    (tree / "link").symlink_to(victim)
    assert remove_tree(tree)
    assert (victim / "f").exists()
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(OSError):
        remove_tree(tmp_path / "link")
    assert (victim / "f").exists()


def test_past_the_deadline_the_rest_stays(tree):
    for number in range(50):
        (tree / str(number)).mkdir()
    assert not remove_tree(tree, deadline=time.monotonic() - 1)
    assert tree.exists()
    assert remove_tree(tree, deadline=time.monotonic() + 60)


def test_disk_usage_counts_hard_links_once_and_follows_nothing(tree, tmp_path):
    (tmp_path / "big").write_bytes(b"x" * 1_000_000)
    empty = disk_usage(tree)
    (tree / "f").write_bytes(os.urandom(100_000))
    os.sync()
    once = disk_usage(tree)
    assert 100_000 <= once - empty < 200_000
    os.link(tree / "f", tree / "g")
    (tree / "link").symlink_to(tmp_path / "big")
    assert disk_usage(tree) - once < 50_000
    with pytest.raises(FileNotFoundError):
        disk_usage(tree / "nothing")


def test_disk_usage_of_a_very_deep_tree_ends(tree):
    deep(tree, DEPTH)
    assert disk_usage(tree) >= 0
    remove_tree(tree)
