"""Devices: their type as a word, for readers that need it."""

from __future__ import annotations

import os
from pathlib import Path

from msb_pull.ground.running import Job
from msb_pull.store.store import Store
from msb_pull.work.verify.verify import verify_images
from tests.support.archive import hardlink, hdr, reg
from tests.support.exports import layout
from tests.support.podman import export, pull

DEVICES = [hdr(b"null", typ=b"3", mode=0o666, major=1, minor=3), hdr(b"pipe", typ=b"6", mode=0o622), reg(b"f", b"f")]


def test_e20_devices_get_their_type_as_a_word(home, tmp_path):
    far = [hdr(b"far", typ=b"4", mode=0o660, uid=4_000_000_000, gid=4_000_000_000, major=200, minor=300)]
    pull(home, "localhost/dev:1", layout(tmp_path / "dev", DEVICES + far))
    export(home, "localhost/dev:1")
    (layer,) = (path.parent for path in (home / "layers").glob("sha256:*/null"))
    said = {name: os.getxattr(layer / name, "user.containers.override_stat") for name in ("null", "pipe", "f", "far")}
    assert said == {
        "null": b"0:0:020666:char-1-3",
        "pipe": b"0:0:010622:pipe",
        "f": b"0:0:0100644",
        # libkrun would not read it whole.
        "far": b"4000000000:4000000000:060660",
    }
    assert damages(home) == []


def damages(home: Path) -> list[object]:
    return [damage for layer in verify_images(Store.open(home), [], Job()).layers for damage in layer.damages]


def test_a_word_that_is_not_the_images_is_damage(home, tmp_path):
    pull(home, "localhost/dev:1", layout(tmp_path / "dev", DEVICES))
    (layer,) = (path.parent for path in (home / "layers").glob("sha256:*/null"))
    os.setxattr(layer / "null", "user.containers.override_stat", b"0:0:020666:char-1-4")
    assert [(damage.path, damage.kind) for damage in damages(home)] == [(b"null", "owner")]
    # What is damaged is left for verify to say.
    export(home, "localhost/dev:1")
    assert os.getxattr(layer / "null", "user.containers.override_stat") == b"0:0:020666:char-1-4"


def test_a_layer_that_links_to_a_device_below_is_the_same_with_the_word(home, tmp_path):
    top = [hardlink(b"again", b"null"), reg(b"new", b"new")]
    pull(home, "localhost/dev:1", layout(tmp_path / "dev", DEVICES))
    export(home, "localhost/dev:1")
    pull(home, "localhost/both:1", layout(tmp_path / "both", DEVICES, top))
    export(home, "localhost/both:1")
    assert damages(home) == []
    (layer,) = (path.parent for path in (home / "layers").glob("sha256:*/again"))
    assert os.getxattr(layer / "again", "user.containers.override_stat") == b"0:0:020666"
