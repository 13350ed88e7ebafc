"""rm and prune beside views: podman is told first."""

from __future__ import annotations

import shutil

import pytest

from msb_pull import PullOptions, pull_image
from msb_pull import Store as Program
from msb_pull.ground.errors import LocalError, UsageError
from msb_pull.ground.running import Job
from msb_pull.image.reference import Reference
from msb_pull.store.store import Store
from msb_pull.work.podman.export import export_to_podman
from msb_pull.work.prune.apply import apply_prune, prune_after_pull, prune_to_fit
from msb_pull.work.prune.budget import Budget, Fit
from msb_pull.work.prune.plan import plan_prune
from msb_pull.work.select import Selection
from tests.support.archive import reg
from tests.support.exports import layout
from tests.support.podman import BASE, A, B, copied, everything, export, hearing, prune, pull, remove, shown


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


def test_a_budget_leaves_what_podman_shows(home):
    export(home, A)
    store = Store.open(home)
    removed = prune_to_fit(store, Fit(Budget(keep=1), Selection()), Job())
    assert removed.images == (B,) and removed.over > 0
    assert shown(home / "podman") == [A]
    remove(home, A)
    assert prune_to_fit(store, Fit(Budget(keep=1), Selection()), Job()).over == 0


def test_a_pull_with_a_budget_says_what_podman_is_shown_no_longer(home, tmp_path):
    """The layers of an older version of an image are those of no image, so they go first."""
    export(home, A)
    pull(home, A, layout(tmp_path / "newer", BASE, [reg(b"etc/own", b"newer")]), force=True)
    heard, job = hearing()
    removed = prune_after_pull(Store.open(home), Fit(Budget(keep=1), Selection()), job)
    assert removed is not None and removed.layers
    assert len(heard) == 1 and heard[0].startswith(f"podman's view {home}/podman shows {A}: it will no longer")


def test_a_budget_takes_what_podman_was_shown_once(home):
    export(home, A)
    shutil.rmtree(home / "podman")
    removed = prune_to_fit(Store.open(home), Fit(Budget(keep=1), Selection()), Job())
    assert removed.images == (A, B) and not removed.over


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


def test_a_copy_of_the_store_takes_nothing_from_the_views_of_the_first(home, tmp_path):
    export(home, A)
    copied(home, tmp_path / "copy")
    heard, job = hearing()
    remove(tmp_path / "copy", A, job=job)
    assert heard == []
    assert shown(home / "podman") == [A]


def test_nothing_is_removed_while_podman_would_go_on_showing_it(home, monkeypatch):
    export(home, A)

    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied", "overlay-images/images.json")

    monkeypatch.setattr("msb_pull.store.podman.folder._write", refuse)
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
