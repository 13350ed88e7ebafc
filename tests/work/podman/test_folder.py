"""Whose folder a view is, and what is done to it by others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest

from msb_pull.ground.errors import ContentError, LocalError, MsbPullError, UsageError
from msb_pull.store.podman.shown import ShownImage
from msb_pull.store.store import Store
from msb_pull.work.prune.plan import plan_prune
from msb_pull.work.select import Selection
from tests.support.podman import A, B, everything, export, hearing, remove, shown


def test_a_storage_of_podmans_own_is_refused_untouched(home, tmp_path):
    own = tmp_path / "storage"
    for name in ("overlay", "overlay-layers", "overlay-images", "overlay-containers"):
        (own / name).mkdir(parents=True)
    (own / "overlay-layers" / "layers.json").write_text("[]")
    before = everything(own)
    with pytest.raises(UsageError, match="a storage of podman's own"):
        export(home, A, folder=own)
    # Also one that podman was told to write to after it was ours.
    export(home, A)
    (home / "podman" / "overlay-containers").mkdir()
    with pytest.raises(UsageError, match="a storage of podman's own"):
        export(home, B)
    assert everything(own) == before
    assert list((home / "layers/.msb-pull/podman").iterdir()) == [
        home / "layers/.msb-pull/podman" / hashlib.sha256(os.fsencode(home / "podman")).hexdigest()[:16]
    ]


@pytest.mark.parametrize(
    "place", ["full", "file", "layers", "layers/x", ".", "..", "a:b", "a,b", 'a"b', "no/where", "link"]
)
def test_folders_that_cannot_be_a_view(home, tmp_path, place):
    (home / "full").mkdir()
    (home / "full" / "letter").write_text("dear")
    (home / "file").touch()
    (home / "link").symlink_to(home / "full")
    with pytest.raises(MsbPullError, match=": ") as caught:
        export(home, A, folder=home / place)
    assert "--to podman:FOLDER" in (caught.value.hint or "")
    assert (home / "full" / "letter").read_text() == "dear"
    assert os.listdir(home / "full") == ["letter"]


@pytest.mark.parametrize("name", ["overlay", "overlay-layers", "overlay-images", "msb-pull.json"])
def test_a_symlink_in_it_leads_nowhere(home, tmp_path, name):
    export(home, A)
    aside = tmp_path / "aside"
    (home / "podman" / name).rename(aside)
    (home / "podman" / name).symlink_to(aside)
    before = everything(tmp_path / "aside") if aside.is_dir() else aside.read_bytes()
    with pytest.raises(UsageError, match="symlinks in it lead elsewhere"):
        export(home, B)
    if name != "msb-pull.json":
        with pytest.raises(LocalError, match="podman's view"):
            remove(home, A)
    assert (everything(tmp_path / "aside") if aside.is_dir() else aside.read_bytes()) == before


def test_what_was_not_made_here_stays(home):
    export(home, A)
    view = home / "podman"
    foreign = [
        *("letter", f"overlay/{'a' * 64}/diff/data", f"overlay/{'a' * 64}/link", f"overlay/{'a' * 64}/lower"),
        *("overlay/notes/x", "overlay/l/mine", f"overlay-images/{'b' * 64}/own", "overlay-layers/x.tar-split.gz"),
    ]
    for name in foreign:
        (view / name).parent.mkdir(parents=True, exist_ok=True)
        (view / name).write_text("mine")
    ours = next(path for path in (view / "overlay").glob("*/diff") if path.is_symlink()).parent
    (ours / "merged").mkdir()
    (ours / "merged" / "file").write_text("mine")
    export(home, B)
    heard, job = hearing()
    remove(home, A, B, job=job)
    assert all((view / name).read_text() == "mine" for name in foreign)
    assert (ours / "merged" / "file").read_text() == "mine"
    assert any("podman has layers mounted" in text for text in heard)
    assert shown(view) == []


def test_a_directory_in_place_of_a_link_is_not_replaced(home):
    export(home, A)
    diff = next((home / "podman" / "overlay").glob("*/diff"))
    diff.unlink()
    diff.mkdir()
    (diff / "file").write_text("mine")
    with pytest.raises(LocalError):
        export(home, B)
    assert (diff / "file").read_text() == "mine"


def test_damage_is_mended_by_the_next_export(home):
    export(home, A, B)
    before = everything(home / "podman")
    view = home / "podman"
    for path in [*view.glob("overlay/*/link"), *view.glob("overlay/*/lower"), *view.glob("overlay-images/*/*")]:
        path.write_bytes(b"damaged")
    for path in view.glob("overlay/*/diff"):
        path.unlink()
        path.symlink_to("/nowhere")
    for path in view.glob("overlay/l/*"):
        path.unlink()
    (view / "overlay-images" / "images.json").write_bytes(b"[{")
    shutil.rmtree(view / "overlay-layers")
    export(home, A)
    assert everything(view) == before


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "7", "\0" * 100, "[" * 100_000, '{"version": 2}'),
        '{"version": 1, "home": 1, "layers": "", "images": []}',
        '{"version": 1, "home": "/", "layers": "/", "images": [{"reference": "../x"}]}',
    ],
    ids=range(9),
)
def test_a_damaged_list_of_what_is_shown(home, tmp_path, text):
    export(home, A)
    (home / "podman" / "msb-pull.json").write_text(text)
    store = Store.open(home)
    assert any("is damaged" in remark for remark in plan_prune(store, Selection()).remarks)
    heard, job = hearing()
    export(home, B, job=job)
    assert any("is damaged" in told for told in heard)
    assert shown(home / "podman") == [B]
    # One that the store does not know is somebody else's.
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "msb-pull.json").write_text(text)
    with pytest.raises(ContentError):
        export(home, B, folder=stranger)
    assert sorted(os.listdir(stranger))[-1] in ("msb-pull.json", "msb-pull.lock")


@pytest.mark.parametrize("change", [{"digest": "sha256:x"}, {"layers": [{}]}, {"created": "x"}, {"config_bytes": -1}])
def test_no_path_is_made_of_what_a_view_says(home, change):
    export(home, A)
    place = home / "podman" / "msb-pull.json"
    document = json.loads(place.read_bytes())
    assert ShownImage.parse(document["images"][0]).document() == document["images"][0]
    document["images"][0] |= change
    place.write_text(json.dumps(document))
    with pytest.raises((ValueError, KeyError, TypeError)):
        ShownImage.parse(document["images"][0])


def test_a_store_that_was_moved_takes_its_view_along(home, tmp_path):
    export(home, A)
    moved = tmp_path / "moved"
    home.rename(moved)
    export(moved, B)
    assert shown(moved / "podman") == [A, B]
    assert all(path.resolve().is_relative_to(moved) for path in (moved / "podman/overlay").glob("*/diff"))
