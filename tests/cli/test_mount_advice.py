"""What is said of mounting: only what shows the right tree. The kernel's overlayfs knows no whiteouts of a store."""

from __future__ import annotations

import re

import pytest

from tests.conftest import REPOSITORY

TOLD = sorted(
    path
    for place in ("*.md", "docs/*.md", "docs/*.1", "docs/*.py", "completions/*", "examples/*", "msb_pull/**/*.py")
    for path in REPOSITORY.glob(place)
    if path.is_file()
) + sorted((REPOSITORY / "tests" / "cli" / "help").glob("*.txt"))
KERNEL = re.compile(
    r"mount\s+(\\?-t\s+(?!virtiofs |9p )|\\?-\w*o\s+.*lowerdir)|\b(for|of) mount\b(?! options)"
    r"|overlayfs and fuse-overlayfs",
    re.ASCII,
)


@pytest.mark.parametrize("path", TOLD, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_kernels_overlay_is_never_offered(path):
    text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8").replace("\\-", "-"))
    assert [text[max(0, found.start() - 40) : found.end() + 40] for found in KERNEL.finditer(text)] == []


def test_inspect_shows_the_way_that_is_right():
    text = (REPOSITORY / "tests" / "cli" / "help" / "inspect.txt").read_text(encoding="utf-8")
    assert 'fuse-overlayfs -o "lowerdir=$(msb-pull inspect --lowerdir ubuntu:22.04),xattr_permissions=2" merged' in text
