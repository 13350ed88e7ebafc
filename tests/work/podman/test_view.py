"""Views for podman as they lie on the disk: what podman would see, at every moment and whatever is done to them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from msb_pull import PullOptions, pull_image
from msb_pull import Store as Program
from msb_pull.ground.errors import ContentError, LocalError, MsbPullError, NotFoundError, UsageError
from msb_pull.ground.events import Warned
from msb_pull.ground.running import Job
from msb_pull.image.reference import Reference
from msb_pull.store.store import Store
from msb_pull.work.podman.export import export_to_podman
from msb_pull.work.podman.shown import ShownImage
from msb_pull.work.prune import apply_prune, plan_prune, remove_images
from msb_pull.work.select import Selection
from msb_pull.work.verify.verify import verify_images
from tests.support.archive import END, directory, hardlink, hdr, reg
from tests.support.exports import layout
from tests.support.imagebuild import LayoutBuilder
from tests.support.podman import shown

A, B = "localhost/a:1", "localhost/b:1"
BASE = [directory(b"etc", mtime=1), reg(b"etc/base", b"base")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with two images that share their lowest layer, and the layout ``a`` of the first."""
    place = tmp_path_factory.mktemp("made")
    for name, content in ((A, "a"), (B, "b")):
        pull(place / "home", name, layout(place / content, BASE, [reg(b"etc/own", content.encode())]))
    return place


@pytest.fixture
def home(made, tmp_path):
    return copied(made / "home", tmp_path / "home")


def copied(old: Path, new: Path) -> Path:
    return shutil.copytree(old, new, symlinks=True)


def pull(home: Path, name: str, folder: Path, **options) -> None:
    pull_image(f"oci:{folder}", Program.open(home), PullOptions(name=name, **options))


def export(home: Path, *names: str, folder: Path | None = None, job: Job | None = None):
    return export_to_podman(Store.open(home), [Reference.parse(name) for name in names], folder, job or Job())


def remove(home: Path, *names: str, job: Job | None = None):
    return remove_images(Store.open(home), names, job or Job())


def prune(home: Path):
    store = Store.open(home)
    return apply_prune(store, plan_prune(store, None), Job())


def hearing() -> tuple[list[str], Job]:
    heard: list[str] = []
    return heard, Job(observer=lambda event: heard.append(event.text) if isinstance(event, Warned) else None)


def everything(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(base, name)
            key = str(path.relative_to(folder))
            if not name.endswith(".lock"):
                found[key] = os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes()
    return found


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


# Removals


def test_rm_says_what_podman_shows_and_hides_it_first(home):
    export(home, A, B)
    heard, job = hearing()
    remove(home, A, job=job)
    assert len(heard) == 1
    assert heard[0].startswith(f"podman's view {home}/podman shows {A}: it will no longer")
    assert shown(home / "podman") == [B]
    remove(home, B)
    assert shown(home / "podman") == []
    # podman refuses to start where a store that it was told of is gone.
    assert (home / "podman").is_dir()
    assert sorted(everything(home / "podman")) == [
        *("msb-pull.json", "overlay", "overlay-images", "overlay-images/images.json"),
        *("overlay-layers", "overlay-layers/layers.json", "overlay/l"),
    ]


def test_rm_of_what_podman_does_not_show_says_nothing(home):
    export(home, A)
    heard, job = hearing()
    remove(home, B, job=job)
    assert heard == []
    assert shown(home / "podman") == [A]


def test_prune_plans_with_a_remark_and_hides(home):
    export(home, A, B)
    store = Store.open(home)
    plan = plan_prune(store, Selection(references=("localhost/b",)))
    (remark,) = plan.remarks
    assert remark.startswith(f"podman's view {home}/podman shows {B}: it will no longer")
    assert shown(home / "podman") == [A, B]
    apply_prune(store, plan, Job())
    assert shown(home / "podman") == [A]


def test_prune_hides_an_older_version_whose_layers_go(home, tmp_path):
    export(home, A, B)
    pull(home, A, layout(tmp_path / "new", BASE, [reg(b"etc/own", b"newer")]), force=True)
    assert shown(home / "podman") == [A, B]
    prune(home)
    assert shown(home / "podman") == [B]
    export(home, A)
    assert shown(home / "podman") == [A, B]


def test_several_views_are_all_told(home, tmp_path):
    export(home, A, folder=tmp_path / "one")
    export(home, A, B, folder=tmp_path / "two")
    heard, job = hearing()
    remove(home, A, job=job)
    assert len(heard) == 2
    assert (shown(tmp_path / "one"), shown(tmp_path / "two")) == ([], [B])


def test_a_view_that_is_gone_bothers_nobody(home, tmp_path):
    export(home, A, folder=tmp_path / "view")
    shutil.rmtree(tmp_path / "view")
    heard, job = hearing()
    remove(home, A, job=job)
    assert heard == []
    assert not (tmp_path / "view").exists()


def test_nothing_is_removed_while_podman_would_go_on_showing_it(home, monkeypatch):
    export(home, A)

    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied", "overlay-images/images.json")

    monkeypatch.setattr("msb_pull.work.podman.folder._write", refuse)
    with pytest.raises(LocalError, match="podman's view"):
        remove(home, A)
    monkeypatch.undo()
    assert shown(home / "podman") == [A]
    assert Store.open(home).has_images


def test_what_another_home_shows_of_the_same_layers_stays(home, made, tmp_path):
    other = tmp_path / "other"
    pull_image(f"oci:{made / 'a'}", Program.open(other, home / "layers"), PullOptions(name=A))
    theirs = Store.open(other, home / "layers")
    export_to_podman(theirs, [Reference.parse(A)], None, Job())
    export(home, A)
    heard, job = hearing()
    remove(home, A, job=job)
    assert len(heard) == 1
    assert (shown(home / "podman"), shown(other / "podman")) == ([], [A])
    with pytest.raises(UsageError, match="shows the images of"):
        export(home, B, folder=other / "podman")


# Whose folder it is


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


# Interruptions


CALLS = ("rename", "replace", "symlink", "mkdir", "rmdir", "unlink", "write", "pwrite", "fsync")


def killed_at(step: int, work) -> bool:
    """Whether a process that does ``work`` was killed at its ``step``-th change of the disk."""
    child = os.fork()
    if child == 0:
        left = [step]

        def counting(call):
            def counted(*arguments, **named):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return call(*arguments, **named)

            return counted

        for name in CALLS:
            setattr(os, name, counting(getattr(os, name)))
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.parametrize("work", ["first", "second", "moved", "rm", "prune"])
def test_killed_at_any_moment(home, tmp_path, work):
    if work != "first":
        export(home, *((A,) if work == "second" else (A, B)))
    if work in ("moved", "prune"):
        pull(home, A, layout(tmp_path / "new", BASE, [reg(b"etc/own", b"newer")]), force=True)
    does = {"rm": lambda: remove(home, B), "prune": lambda: prune(home)}.get(work, lambda: export(home, A, B))
    whole = tmp_path / "whole"
    copied(home, whole)
    step, names = 0, set()
    while True:
        shutil.rmtree(home)
        copied(whole, home)
        killed = killed_at(step, does)
        # podman sees no half of anything.
        names.add(tuple(shown(home / "podman")))
        if not killed:
            break
        if work in ("rm", "prune"):
            prune(home)
            shown(home / "podman")
        left = [image.reference for image in Program.open(home).images()]
        export(home, *left)
        assert shown(home / "podman") == left
        assert not list((home / "podman").rglob("*draft*"))
        step += 1
    assert step > 10
    assert len(names) == {"moved": 1}.get(work, 2)


def test_exports_at_the_same_time(home, tmp_path):
    names = [A, B]
    for number in range(4):
        names.append(f"localhost/more:{number}")
        pull(home, names[-1], layout(tmp_path / f"more-{number}", BASE, [reg(b"x", b"%d" % number)]))
    threads = [threading.Thread(target=export, args=(home, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shown(home / "podman") == sorted(names)


# Devices

DEVICES = [hdr(b"null", typ=b"3", mode=0o666, major=1, minor=3), hdr(b"pipe", typ=b"6", mode=0o622), reg(b"f", b"f")]


def test_devices_get_their_type_as_a_word(home, tmp_path):
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
