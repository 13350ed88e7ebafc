"""Nothing offers the kernel's overlayfs for the layers: it knows neither ``.wh.`` files nor override_stat."""

from __future__ import annotations

import pytest

from tests.conftest import REPOSITORY

TEXTS = [
    *(REPOSITORY / "msb_pull").rglob("*.py"),
    *(REPOSITORY / "docs").glob("*.1"),
    *(REPOSITORY / "completions").iterdir(),
    *(REPOSITORY / "examples").iterdir(),
    *(REPOSITORY / "tests" / "face" / "help").iterdir(),
    REPOSITORY / "README.md",
    *(REPOSITORY / "docs").glob("*.md"),
]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_text_offers_the_kernels_overlayfs(path):
    text = path.read_text(encoding="utf-8").replace("\\-", "-")
    assert "mount -t overlay" not in text and "mount -o lowerdir" not in text
