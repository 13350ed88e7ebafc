"""Names, staging, publishing and what an interruption at any point leaves."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from msb_pull.ground.errors import Cancelled, LocalError
from msb_pull.image.digest import Digest, InvalidDigest
from msb_pull.store import publish as exchange
from msb_pull.store.index.keys import LayerKey
from msb_pull.store.paths import LayerState
from msb_pull.store.store import Store
from tests.conftest import REPOSITORY, program_environment
from tests.support.stores import digest, fill, publish
from tests.support.unprivileged import as_nobody, folder_of_nobody

pytestmark = pytest.mark.disk

KEY = LayerKey(digest("x"))


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "home")


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def content(store: Store, key: LayerKey = KEY) -> str:
    return (store.layer_dir(key) / "f").read_text()


def staged(store: Store) -> list[str]:
    return sorted(os.listdir(store.places.folder))


# Opening


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_a46_folders_are_private_under_any_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        store = Store.open(tmp_path / "home")
        publish(store, "x")
    finally:
        os.umask(before)
    for folder in [store.home, store.layers, store.own, *(p for p in store.own.iterdir() if p.is_dir())]:
        assert mode(folder) == 0o700, folder
    assert (store.own / "version").read_text() == "1\n"


def test_a_folder_that_is_there_keeps_its_mode(tmp_path):
    (tmp_path / "home" / "layers").mkdir(parents=True)
    (tmp_path / "home").chmod(0o750)
    Store.open(tmp_path / "home")
    assert mode(tmp_path / "home") == 0o750


def test_looking_makes_nothing(tmp_path):
    store = Store.open(tmp_path / "home", create=False)
    assert store.layer_state(KEY) is LayerState.ABSENT
    assert not store.has_images
    assert store.places.leftovers() == []
    assert store.sweep() == 0
    with store.database(create=False) as database:
        assert database.images() == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "layers: laid out by a newer msb-pull$") for text in ("2\n", "9" * 10_000)),
        *((text, "version: damaged$") for text in ("1.5", "x", "-1")),
    ],
)
@pytest.mark.parametrize("create", [True, False])
def test_d36_a_newer_store_is_refused_untouched(store, text, said, create):
    """So is one whose version cannot be read, which need not be newer."""
    (store.own / "version").write_text(text)
    (store.own / "l").rmdir()
    with pytest.raises(LocalError, match=said) as caught:
        Store.open(store.home, create=create)
    assert caught.value.exit_code == 7
    assert not (store.own / "l").exists()


def test_d5_an_empty_version_is_what_a_power_cut_leaves(store):
    (store.own / "version").write_bytes(b"")
    publish(Store.open(store.home), "x")


def test_d24_symlinks_to_the_store_are_resolved_once(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "home").symlink_to("data")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "layers").symlink_to("../elsewhere")
    store = Store.open(tmp_path / "home")
    assert (store.home, store.layers) == (tmp_path / "data", tmp_path / "elsewhere")
    assert content(store) if publish(store, "x") else None


def test_d26_odd_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"a b\xff")
    store = Store.open(Path("home"), Path("x/../" + odd + "/"))
    publish(store, "x")
    assert store.layers == tmp_path / odd
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(LocalError):
        Store.open(Path("home"))
    assert Store.open(tmp_path / "home").layers == tmp_path / "home" / "layers"


def test_a81_layers_on_another_file_system(tmp_path):
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("no second file system to write to")
    folder = Path("/dev/shm") / f"msb-pull-test-{os.getpid()}"
    try:
        store = Store.open(tmp_path / "home", folder)
        publish(store, "x")
        publish(store, "x", "new", replace=True)
        assert content(store) == "new"
        assert not (tmp_path / "home" / "layers").exists()
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)


def test_d25_a_store_that_others_may_write_to_is_warned_of(tmp_path):
    warnings: list[str] = []
    store = Store.open(tmp_path / "home", warn=warnings.append)
    assert warnings == []
    store.layers.chmod(0o770)
    Store.open(tmp_path / "home", warn=warnings.append)
    assert "written to by other users" in warnings[0]
    store.home.chmod(0o702)
    Store.open(tmp_path / "home", warn=warnings.append)
    assert f"`chmod go-w {store.home} {store.layers}`" in warnings[1]


def test_d23_a_store_of_another_user_is_warned_of(tmp_path, monkeypatch):
    warnings: list[str] = []
    Store.open(tmp_path / "home")
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    Store.open(tmp_path / "home", warn=warnings.append)
    assert "another user" in warnings[0]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_d23_a_home_that_cannot_be_made(tmp_path, monkeypatch, number):
    def mkdir(self, *arguments, **named):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(LocalError, match=str(tmp_path)) as caught:
        Store.open(tmp_path / "home")
    assert "--home" in caught.value.hint


# Names


@pytest.mark.parametrize("text", ["sha256:../../x", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "md5:aa", ""])
def test_a82_only_a_parsed_digest_makes_a_path(text):
    with pytest.raises(InvalidDigest):
        LayerKey.parse(text)


def test_short_links_are_relative_and_have_no_colon(store):
    publish(store, "x")
    link = store.link_path(KEY)
    assert (link.name, os.readlink(link)) == (KEY.digest.short, f"../../{KEY}.extracted")
    assert os.path.samefile(link, store.layer_dir(KEY))


def test_short_links_of_equal_beginnings_differ(store):
    keys = [LayerKey(Digest("sha256", "a" * length + "b" * (64 - length))) for length in (12, 16, 40)]
    for key in keys:
        with store.staging(key) as place:
            fill(place, str(key))
            store.publish(place, key)
    assert len({store.link_path(key) for key in keys}) == 3
    for key in keys:
        assert (store.link_path(key) / "f").read_text() == str(key)
    store.link_path(keys[0]).unlink()
    store.make_link(keys[0])
    assert (store.link_path(keys[0]) / "f").read_text() == str(keys[0])


@pytest.mark.parametrize("wrong", ["../../elsewhere", f"../../{digest('y')}.extracted", None])
def test_short_links_that_are_lost_or_lead_elsewhere_are_made_again(store, wrong):
    publish(store, "x")
    link = store.link_path(KEY)
    assert store.has_link(KEY)
    link.unlink()
    if wrong:
        link.symlink_to(wrong)
    assert not store.has_link(KEY)
    assert store.make_link(KEY) == link
    assert store.has_link(KEY) and os.path.samefile(link, store.layer_dir(KEY))


def test_a_short_link_stays_when_a_shorter_name_becomes_free(store):
    plain, variant = KEY, LayerKey(KEY.digest, "0" * 12)
    for key in (plain, variant):
        store.make_link(key)
    longer = store.link_path(variant)
    store.link_path(plain).unlink()
    assert store.has_link(variant) and store.link_path(variant) == longer


def test_a_short_link_that_another_process_makes_meanwhile_stays(store, monkeypatch):
    """Two forms of a layer, both without a link, want the same short name."""
    plain, variant = KEY, LayerKey(KEY.digest, "0" * 12)
    real = Store.link_path

    def overtaken(self, layer):
        path = real(self, layer)
        monkeypatch.undo()
        store.make_link(variant)
        return path

    monkeypatch.setattr(Store, "link_path", overtaken)
    store.make_link(plain)
    assert store.has_link(plain) and store.has_link(variant)


def test_what_is_no_link_keeps_its_name(store):
    link = store.link_path(KEY)
    link.mkdir()
    publish(store, "x")
    assert link.is_dir() and not link.is_symlink()
    assert store.has_link(KEY) and os.path.samefile(store.link_path(KEY), store.layer_dir(KEY))


# States


def test_states(store):
    assert store.layer_state(KEY) is LayerState.ABSENT
    publish(store, "x")
    assert store.layer_state(KEY) is LayerState.COMPLETE
    assert store.has_layer(KEY)
    store.notes_path(KEY).unlink()
    assert store.layer_state(KEY) is LayerState.FOREIGN
    assert not store.has_layer(KEY)


@pytest.mark.parametrize("notes", [{"content_bytes": 0, "entries": 5}, {"content_bytes": "damaged"}])
def test_d19_an_empty_layer_is_complete(store, notes):
    with store.staging(KEY) as place:
        fill(place)
        (place.path / "f").unlink()
        document = json.loads(place.notes.read_text()) | notes
        place.notes.write_text(json.dumps(document))
        store.publish(place, KEY)
    assert store.has_layer(KEY)


def test_d19_a_layer_that_keeps_all_its_content_aside_is_complete(store):
    """As one of nothing but leftovers of AUFS."""
    publish(store, "x")
    (store.layer_dir(KEY) / "f").unlink()
    store.kept_path(KEY).mkdir()
    assert store.has_layer(KEY)


def test_d19_an_emptied_layer_is_not_complete(store):
    """As a failed copy of a store leaves it; by its notes it has content."""
    publish(store, "x")
    (store.layer_dir(KEY) / "f").unlink()
    assert store.layer_state(KEY) is LayerState.EMPTIED
    assert not store.has_layer(KEY) and not store.has_directory(KEY)
    publish(store, "x", "again")
    assert store.has_layer(KEY) and content(store) == "again"


def test_d17_a_directory_that_is_gone_is_missing_whatever_else_is_there(store):
    publish(store, "x")
    subprocess.run(["rm", "-rf", store.layer_dir(KEY)], check=True)
    assert store.layer_state(KEY) is LayerState.ABSENT
    publish(store, "x", "again")
    assert content(store) == "again"


def test_has_layer_takes_two_looks(store, monkeypatch):
    publish(store, "x")
    looks = []
    real = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path: looks.append(path) or real(path))
    monkeypatch.setattr(os, "stat", None)
    assert store.has_layer(KEY)
    assert len(looks) == 2


@pytest.mark.parametrize("kind", ["symlink", "dangling", "file"])
def test_d25_a_name_that_is_no_directory_is_refused(store, tmp_path, kind):
    victim = tmp_path / "victim"
    victim.mkdir()
    if kind == "file":
        store.layer_dir(KEY).write_text("x")
    else:
        store.layer_dir(KEY).symlink_to(victim if kind == "symlink" else "nowhere")
    assert store.layer_state(KEY) is LayerState.OCCUPIED
    assert not store.has_layer(KEY)
    with pytest.raises(LocalError, match="symlink"), store.staging(KEY):
        pytest.fail("nothing may be fetched for it")
    with pytest.raises(LocalError, match="symlink"), store.staging(LayerKey(digest("y"))) as place:
        fill(place)
        store.publish(place, KEY, replace=True)
    assert os.listdir(victim) == []


# Publishing


def test_published_whole_and_staging_gone(store):
    path = publish(store, "x")
    assert path == store.layers / f"{KEY}.extracted"
    assert content(store) == "content"
    assert store.record_path(KEY).read_bytes() == b"record of content"
    assert staged(store) == []
    assert store.disk_usage(KEY) > 0


def test_what_is_complete_stays_without_replace(store):
    publish(store, "x", "old")
    publish(store, "x", "new")
    assert content(store) == "old"
    assert staged(store) == []


@pytest.mark.parametrize("fallback", [False, True])
def test_replace_swaps_and_removes_the_old(store, monkeypatch, fallback):
    if fallback:
        monkeypatch.setattr(exchange, "_swap", lambda one, other: False)
    publish(store, "x", "old")
    publish(store, "x", "new", replace=True)
    assert content(store) == "new"
    assert store.record_path(KEY).read_bytes() == b"record of new"
    assert store.has_layer(KEY)
    assert staged(store) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC])
def test_a_swap_that_is_refused_leaves_the_old_one_proven(store, monkeypatch, number):
    def refuse(new, old, *, aside):
        raise OSError(number, os.strerror(number), str(old))

    publish(store, "x", "old")
    monkeypatch.setattr(exchange, "exchange", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        publish(store, "x", "new", replace=True)
    assert (content(store), store.has_layer(KEY), staged(store)) == ("old", True, [])
    assert store.record_path(KEY).read_bytes() == b"record of old"


@pytest.mark.parametrize("replace", [False, True])
def test_d18_what_somebody_else_left_is_swapped_out(store, replace):
    store.layer_dir(KEY).mkdir()
    (store.layer_dir(KEY) / "x").touch()
    publish(store, "x", replace=replace)
    assert os.listdir(store.layer_dir(KEY)) == ["f"]
    assert store.has_layer(KEY)


def test_a_reader_always_finds_a_directory(store):
    """While a layer is replaced again and again, its name always shows one whole version."""
    publish(store, "x", "0")
    wrong: list[BaseException] = []
    stop = threading.Event()

    def read():
        while not stop.is_set():
            try:
                content(store)
            except OSError as error:
                wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        publish(store, "x", str(number), replace=True)
    stop.set()
    reader.join()
    assert wrong == []


class Killed(BaseException):
    """Ends a test's work where a crash would."""


BEFORE = ("nothing", "foreign", "complete")
STEPS = [
    ("os.replace", 0), ("os.replace", 1), ("rename", 0), ("make_link", 0),
]  # fmt: skip


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("there", "call", "nth"),
    # Notes that are there already are put aside first.
    [
        *((there, *step) for there in BEFORE for step in STEPS),
        ("complete", "os.replace", 2),
    ],
)
def test_d3_ended_at_any_step_the_layer_is_missing_or_finished(store, monkeypatch, call, nth, after, there):
    """Never does a directory count as complete beside notes that are not its own; the next pull needs no help."""
    if there == "foreign":
        store.layer_dir(KEY).mkdir()
        (store.layer_dir(KEY) / "f").write_text("foreign")
    elif there == "complete":
        publish(store, "x", "old")
    count = 0

    def failing(real):
        def wrapper(*arguments, **named):
            nonlocal count
            count += 1
            if count - 1 != nth:
                return real(*arguments, **named)
            if after:
                real(*arguments, **named)
            raise Killed

        return wrapper

    if call == "os.replace":
        monkeypatch.setattr(os, "replace", failing(os.replace))
    elif call == "make_link":
        monkeypatch.setattr(Store, "make_link", failing(Store.make_link))
    elif there == "nothing":
        monkeypatch.setattr(exchange, "rename", failing(exchange.rename))
    else:
        monkeypatch.setattr(exchange, "exchange", failing(exchange.exchange))
    with pytest.raises(Killed):
        publish(store, "x", "new", replace=True)
    monkeypatch.undo()
    if store.has_layer(KEY):
        assert store.record_path(KEY).read_text() == f"record of {content(store)}"
        assert content(store) in ("new", "old")
    elif there != "nothing":
        assert content(store) in ("new", "old", "foreign")  # for those who have it mounted
    publish(Store.open(store.home), "x", "again", replace=True)
    assert content(store) == "again"
    assert store.has_layer(KEY)
    assert store.link_path(KEY).is_symlink()


def test_somebody_else_is_faster_in_the_last_moment(store, monkeypatch):
    real = exchange.rename

    def rename(old, new):
        if new == store.layer_dir(KEY) and not new.exists():
            new.mkdir()
            (new / "foreign").touch()
        real(old, new)

    monkeypatch.setattr(exchange, "rename", rename)
    publish(store, "x")
    assert os.listdir(store.layer_dir(KEY)) == ["f"]
    assert store.has_layer(KEY)


def test_d35_a_rename_that_is_busy_is_tried_again(store, monkeypatch):
    real, tries = os.rename, []

    def rename(old, new):
        tries.append(new)
        if len(tries) < 3:
            raise OSError(errno.EBUSY, "busy")
        real(old, new)

    monkeypatch.setattr(exchange.os, "rename", rename)
    publish(store, "x")
    assert len(tries) == 3
    assert store.has_layer(KEY)


def test_a77_d9_a_full_disk_while_publishing(store, monkeypatch):
    def full(old, new):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exchange.os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        publish(store, "x")
    monkeypatch.undo()
    assert store.layer_state(KEY) is LayerState.ABSENT
    assert staged(store) == []
    publish(store, "x")


@pytest.mark.parametrize("replace", [False, True])
def test_d5_a80_sync_flushes_before_and_after_the_rename(tmp_path, monkeypatch, replace):
    store = Store.open(tmp_path / "home", sync=True)
    if replace:
        publish(store, "x", "old")
    steps: list[str] = []
    for module, name in [(exchange, "_flush_file_system"), (exchange, "rename"), (exchange, "exchange")]:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _r=real, _n=name, **k: (steps.append(_n), _r(*a, **k))[1])
    publish(store, "x", "new", replace=True)
    assert steps == ["_flush_file_system", "exchange" if replace else "rename", "_flush_file_system"]
    assert content(store) == "new"


# Staging


def test_staging_is_private_unique_and_removed(store):
    with store.staging(KEY) as one, store.staging(KEY) as other:
        assert one.path != other.path
        assert mode(one.path) == mode(one.path.parent) == 0o700
        assert not one.record.exists()
        assert len(staged(store)) == 4
    assert staged(store) == []


def test_d3_what_a_dead_process_left_is_swept_and_the_living_stay(store):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom msb_pull.store.store import Store\n"
        "from tests.store.test_store import KEY\nfrom tests.support.stores import fill\n"
        f"with Store.open(Path({str(store.home)!r})).staging(KEY) as place:\n"
        "    fill(place)\n    (place.path / 'deep').mkdir()\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=program_environment(), timeout=30)
    (dead,) = store.places.leftovers()
    with store.staging(KEY) as place:
        fill(place)
        assert Store.open(store.home).sweep() == 1
        assert not dead.exists()
        assert (place.path / "f").exists()
        assert len(staged(store)) == 2
    assert staged(store) == []
    assert store.sweep() == 0


def test_sweep_takes_trees_without_a_lock_and_locks_without_a_tree(store):
    (store.places.folder / "a-1-ff").mkdir()
    (store.places.folder / "b-1-ff.lock").touch()
    (store.places.folder / "c-1-ff").touch()
    assert store.sweep() == 3
    assert staged(store) == []


def test_d28_sweeps_beside_starting_pulls_take_nothing_away(store):
    stop = threading.Event()
    other = Store.open(store.home)

    def sweep():
        while not stop.is_set():
            other.sweep()

    thread = threading.Thread(target=sweep)
    thread.start()
    try:
        for _ in range(300):
            with store.staging(KEY) as place:
                (place.path / "f").touch()
                place.notes.touch()
                assert (place.path / "f").exists()
    finally:
        stop.set()
        thread.join()
    assert staged(store) == []


def test_d7_without_flock_only_what_is_old_is_swept(store, monkeypatch):
    for name in ("old", "new"):
        (store.places.folder / name).mkdir()
        (store.places.folder / f"{name}.lock").touch()
    os.utime(store.places.folder / "old.lock", (1, 1))

    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert store.sweep() == 1
    assert staged(store) == ["new", "new.lock"]
    with store.staging(KEY):
        pass


def test_an_interruption_does_not_wait_for_large_trees(store, monkeypatch):
    monkeypatch.setattr("msb_pull.store.staging._LAST_SECONDS", 0.0)
    with pytest.raises(Cancelled), store.staging(KEY) as place:
        for number in range(30):
            (place.path / str(number) / "x").mkdir(parents=True)
        raise Cancelled("interrupted")
    assert len(os.listdir(place.path)) == 30
    assert staged(store)
    assert store.sweep() == 1
    assert staged(store) == []


def test_trash_takes_closed_directories(store):
    path = store.layers / "old"
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "f").touch()
    (path / "deep").chmod(0)
    path.chmod(0o500)
    store.trash(path)
    assert not path.exists()
    assert staged(store) == []


# As a user without privileges, for whom modes mean something

UNPRIVILEGED = """
import os, sys
from pathlib import Path
from msb_pull.ground.errors import LocalError
from msb_pull.store.store import Store
from tests.support.stores import *
home = Path(sys.argv[1])
store = Store.open(home)
pull(store, "localhost/a:1", "xy")
# D30, A47: what an older Microsandbox left, closed and read-only
old = store.layer_dir(digest("q"))
(old / "a" / "b").mkdir(parents=True)
(old / "a" / "b" / "f").touch()
(old / "a" / "b").chmod(0); (old / "a").chmod(0o500); old.chmod(0o500)
store.trash(old)
assert not old.exists()
# D22: everything read-only
for folder, folders, files in os.walk(home, topdown=False):
    for name in files:
        os.chmod(os.path.join(folder, name), 0o400)
    os.chmod(folder, 0o500)
warnings = []
store = Store.open(home, warn=warnings.append)
with store.lock_shared(print, NEVER), store.database(create=False) as database:
    (image,) = database.images()
    assert all(store.has_layer(layer.key) for layer in image.layers)
for work in (lambda: store.database(create=True).record(record("localhost/b:1", "x")), lambda: publish(store, "z")):
    try:
        work()
    except (LocalError, PermissionError) as error:
        print(error)
    else:
        raise SystemExit("wrote to a read-only store")
# D23
try:
    Store.open(Path("/proc/closed"))
except LocalError as error:
    print(error.exit_code, error.hint)
print("warnings", warnings)
"""


def test_d22_d23_d30_a47_without_privileges():
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root can become another user")
    with folder_of_nobody() as folder:
        command = as_nobody([sys.executable, "-c", UNPRIVILEGED, str(folder / "home")], [REPOSITORY])
        run = subprocess.run(
            command,
            cwd="/",
            env=program_environment(PYTHONDONTWRITEBYTECODE="1"),
            capture_output=True,
            text=True,
            timeout=60,
        )
        subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 4, lines
    assert all("Permission denied" in line for line in lines[:2])
    assert lines[2].startswith("7 ")
    assert lines[3] == "warnings []"
