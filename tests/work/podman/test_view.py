"""Views for podman as they lie on the disk: what podman would see."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from msb_pull.ground.errors import ContentError, NotFoundError
from tests.support.archive import END, reg
from tests.support.exports import layout
from tests.support.imagebuild import LayoutBuilder
from tests.support.podman import BASE, A, B, everything, export, pull, remove, shown

# What it shows


def test_an_export_adds_to_what_is_shown(home):
    first = export(home, A)
    assert (first.folder, first.images, first.first) == (home / "podman", (A,), True)
    assert shown(home / "podman") == [A]
    second = export(home, B)
    assert (second.images, second.first) == ((A, B), False)
    assert shown(home / "podman") == [A, B]


def test_it_is_links_alone(home):
    export(home, A, B)
    layers = {path.resolve() for path in (home / "podman" / "overlay").glob("*/diff")}
    assert layers == set((home / "layers").glob("sha256:*.extracted"))
    assert all(os.path.isabs(os.readlink(path)) for path in (home / "podman" / "overlay").glob("*/diff"))


def test_layers_have_the_names_that_podman_gives_them(home):
    export(home, A)
    config = json.loads(next((home / "podman" / "overlay-images").glob("*/=c2hhMjU2*")).read_bytes())
    below, above = (digest.partition(":")[2] for digest in config["rootfs"]["diff_ids"])
    assert [layer["id"] for layer in json.loads((home / "podman/overlay-layers/layers.json").read_bytes())] == [
        below,
        hashlib.sha256(f"{below}+{above}".encode()).hexdigest(),
    ]


def test_what_is_shown_already_is_not_written_again(home):
    export(home, A, B)
    before = {path: path.stat().st_mtime_ns for path in (home / "podman").rglob("*") if path.is_file()}
    export(home, A)
    after = {path: path.stat().st_mtime_ns for path in (home / "podman").rglob("*") if path.is_file()}
    del before[home / "podman" / "msb-pull.lock"], after[home / "podman" / "msb-pull.lock"]
    assert after == before


def test_a_change_gives_the_locks_another_ticket(home):
    export(home, A)
    locks = [home / "podman" / name for name in ("overlay-layers/layers.lock", "overlay-images/images.lock")]
    before = [lock.read_bytes() for lock in locks]
    assert [len(ticket) for ticket in before] == [64, 64]
    export(home, B)
    assert all(lock.read_bytes() != ticket for lock, ticket in zip(locks, before, strict=True))


def test_one_config_under_two_names_is_one_image(home, made, tmp_path):
    pull(home, "localhost/other:2", made / "a")
    export(home, A, "localhost/other:2")
    assert shown(home / "podman") == [A, "localhost/other:2"]
    assert len(json.loads((home / "podman/overlay-images/images.json").read_bytes())) == 1


def test_a_name_is_given_once(home, made, tmp_path):
    """podman refuses the whole store otherwise."""
    digest = json.loads((made / "a" / "index.json").read_bytes())["manifests"][0]["digest"]
    pull(home, f"localhost/a:1@{digest}", made / "a")
    pull(home, f"localhost/a@{digest}", made / "a")
    export(home, f"localhost/a:1@{digest}", f"localhost/a@{digest}")
    assert shown(home / "podman") == [f"localhost/a@{digest}"]


def test_the_same_layers_in_another_compression_are_shown_once(home, tmp_path):
    made = LayoutBuilder(tmp_path / "zstd")
    made.add(made.image([b"".join(x) + END for x in (BASE, [reg(b"etc/own", b"a")])], "zstd"), "1")
    pull(home, "localhost/zstd:1", made.write())
    export(home, A, "localhost/zstd:1")
    assert shown(home / "podman") == [A, "localhost/zstd:1"]
    assert len(json.loads((home / "podman/overlay-layers/layers.json").read_bytes())) == 2
    remove(home, A)
    assert shown(home / "podman") == ["localhost/zstd:1"]


def test_an_image_without_layers(home, tmp_path):
    pull(home, "localhost/none:1", empty(tmp_path / "empty"))
    export(home, "localhost/none:1")
    assert shown(home / "podman") == ["localhost/none:1"]


def empty(folder: Path) -> Path:
    made = LayoutBuilder(folder)
    made.add(made.image([]), "1")
    return made.write()


def test_a_moved_tag_is_brought_up_to_date_by_any_export(home, tmp_path):
    export(home, A)
    pull(home, A, layout(tmp_path / "new", BASE, [reg(b"etc/own", b"newer")]), force=True)
    assert shown(home / "podman") == [A]
    export(home, B)
    assert shown(home / "podman") == [A, B]
    assert {path.read_bytes() for path in (home / "podman/overlay").glob("*/diff/etc/own")} == {b"newer", b"b"}


# What cannot be shown


def test_unknown_and_incomplete_images_change_nothing(home):
    export(home, A)
    before = everything(home / "podman")
    with pytest.raises(NotFoundError, match="not in the store"):
        export(home, B, "localhost/none:1")
    notes = next((home / "layers/.msb-pull/records").glob("*.json"))
    notes.rename(notes.with_suffix(".aside"))
    with pytest.raises(NotFoundError, match="is not complete"):
        export(home, A, B)
    assert everything(home / "podman") == before


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        ({"created": "yesterday"}, "config.created is not a time of RFC 3339"),
        ({"CREATED": 5}, "config.CREATED is not a time of RFC 3339"),
        ({"config": {"Env": "A=b"}}, "config.config.Env is not a list"),
        ({"config": {"Labels": {"a": 1}}}, "config.config.Labels.a is not a text"),
        ({"config": {"Volumes": {"/x": 1}}}, "config.config.Volumes./x is not an object"),
        ({"config": {"Healthcheck": {"Retries": True}}}, "config.config.Healthcheck.Retries is not a whole number"),
        ({"history": [{}, {"empty_layer": "yes"}]}, "config.history[1].empty_layer is not true or false"),
        ({"author": ["x"]}, "config.author is not a text"),
    ],
)
def test_an_image_that_podman_cannot_read_would_hide_all_others(home, tmp_path, config, cause):
    made = LayoutBuilder(tmp_path / "odd")
    made.add(made.image([reg(b"x", b"x") + END], config=config), "1")
    pull(home, "localhost/odd:1", made.write())
    with pytest.raises(ContentError, match="podman cannot read its config") as caught:
        export(home, A, "localhost/odd:1")
    assert caught.value.cause == cause
    assert not (home / "podman" / "overlay").exists()
