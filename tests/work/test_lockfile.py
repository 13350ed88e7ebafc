"""Lock files: the same text for the same images, merged with what is there, and clear about what is wrong with one."""

from __future__ import annotations

import os
import threading

import pytest

from msb_pull.ground.errors import LocalError, UsageError
from msb_pull.image.digest import Digest
from msb_pull.image.platform import Platform
from msb_pull.work.lockfile import LockChange, LockedImage, LockFile, update

A, B, C, D = (Digest("sha256", letter * 64) for letter in "abcd")
NAME = "docker.io/library/alpine:3.20"
HEAD = "version = 1\n"


def test_the_same_images_give_the_same_text(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    alpine = LockedImage(C, {"linux/arm64": B, "linux/amd64": A})
    own = LockedImage(None, {"linux/amd64": D})
    update(one, {"ghcr.io/acme/app:1": own, NAME: alpine})
    update(other, {NAME: alpine})
    update(other, {"ghcr.io/acme/app:1": own})
    assert one.read_bytes() == other.read_bytes()
    assert one.read_text() == (
        "# What `msb-pull pull --lock` has found; `msb-pull pull --locked` pulls exactly that. "
        "Not to be edited by hand.\n"
        "version = 1\n\n"
        f'[images."{NAME}"]\nindex = "{C}"\n"linux/amd64" = "{A}"\n"linux/arm64" = "{B}"\n\n'
        f'[images."ghcr.io/acme/app:1"]\n"linux/amd64" = "{D}"\n'
    )
    assert LockFile.load(one).images == {NAME: alpine, "ghcr.io/acme/app:1": own}


def test_a_platform_of_the_same_index_is_added_to_those_that_are_there(tmp_path):
    path = tmp_path / "images.lock"
    update(path, {NAME: LockedImage(C, {"linux/amd64": A})})
    assert update(path, {NAME: LockedImage(C, {"linux/arm64": B})}) == [LockChange(NAME, "linux/arm64", None, B)]
    assert LockFile.load(path).images[NAME].manifests == {"linux/amd64": A, "linux/arm64": B}


def test_another_index_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "images.lock"
    update(path, {NAME: LockedImage(C, {"linux/amd64": A, "linux/arm64": B})})
    assert update(path, {NAME: LockedImage(D, {"linux/amd64": B})}) == [
        LockChange(NAME, None, C, D), LockChange(NAME, "linux/amd64", A, B), LockChange(NAME, "linux/arm64", B, None)
    ]  # fmt: skip
    assert LockFile.load(path).images == {NAME: LockedImage(D, {"linux/amd64": B})}


def test_nothing_new_leaves_the_file_alone(tmp_path):
    path = tmp_path / "images.lock"
    update(path, {NAME: LockedImage(C, {"linux/amd64": A})})
    # Not as it would be written: only a change may do that.
    path.write_text(path.read_text() + "# a remark\n")
    before = path.stat()
    assert update(path, {NAME: LockedImage(C, {"linux/amd64": A})}) == []
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_change_can_be_worked_out_without_being_written(tmp_path):
    path = tmp_path / "images.lock"
    changes = update(path, {NAME: LockedImage(C, {"linux/amd64": A})}, write=False)
    assert changes == [LockChange(NAME, "linux/amd64", None, A)]
    assert list(tmp_path.iterdir()) == []


def test_a_link_leads_to_the_file_that_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "images.lock"
    link.symlink_to("real/images.lock")
    update(link, {NAME: LockedImage(C, {"linux/amd64": A})})
    assert link.is_symlink()
    assert [x.name for x in (tmp_path / "real").iterdir()] == ["images.lock"]


def test_several_at_once_lose_nothing_of_each_other(tmp_path):
    path = tmp_path / "images.lock"
    names = [f"r.example/app{number}:1" for number in range(16)]
    threads = [
        threading.Thread(target=update, args=(path, {name: LockedImage(C, {"linux/amd64": A})})) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(LockFile.load(path).images) == sorted(names)


def test_what_is_not_in_it_is_named(tmp_path):
    lock = LockFile(tmp_path / "images.lock", {NAME: LockedImage(C, {"linux/amd64": A})})
    assert lock.manifest(NAME, Platform("linux", "x86_64")) == A
    with pytest.raises(UsageError, match=r"busybox:1: not in .*images\.lock$"):
        lock.manifest("docker.io/library/busybox:1", Platform("linux", "amd64"))
    with pytest.raises(UsageError, match=r"alpine:3\.20: not in .*images\.lock for linux/arm64") as caught:
        lock.manifest(NAME, Platform("linux", "arm64"))
    assert caught.value.cause == "it is there for linux/amd64"


GOOD = f'{HEAD}\n[images."{NAME}"]\nindex = "{C}"\n"linux/amd64" = "{A}"\n'
WRONG = {
    "no TOML": (GOOD.replace("]\n", "\n"), "not valid TOML", "line 3"),
    "cut short": (GOOD[:-3], "not valid TOML", "end of document"),
    "twice": (GOOD + f'[images."{NAME}"]\n', "not valid TOML", "line 6"),
    "no version": (GOOD.replace(HEAD, "\n"), "line 1: it has no version", ""),
    "true": (GOOD.replace("= 1", "= true"), "line 1: it has version True", ""),
    "newer": (GOOD.replace("= 1", "= 2"), "line 1: it has version 2, this program knows 1", ""),
    "unknown key": (HEAD + 'sources = "x"\n', 'line 2: unknown key "sources"', ""),
    "no table": (HEAD + "images = 3\n", "line 2: images must be a table", ""),
    "no image": (HEAD + f'[images]\n"{NAME}" = "{A}"\n', "line 3: .* must be a table", ""),
    "not canonical": (GOOD.replace("docker.io/library/", ""), 'line 3: "alpine:3.20" is not the whole name', ""),
    "no name": (GOOD.replace(NAME, "../../etc"), "line 3: invalid reference", ""),
    "control characters": (GOOD.replace(NAME, r"a\u001b[31mb"), r"line 1: invalid reference .*\\x1b", ""),
    "no platform": (GOOD.replace("linux/amd64", "linux amd64"), "line 5: invalid platform", ""),
    "alias": (GOOD.replace("amd64", "x86_64"), 'line 5: "linux/x86_64" is not how a platform is written', ""),
    "no digest": (GOOD.replace(str(A), "latest"), 'line 5: "latest" is not a digest', ""),
    "upper-case": (GOOD.replace("aaaa", "AAAA"), "line 5: .* lower-case hex", ""),
    "short": (GOOD.replace("aaaa", "a", 1), "line 5: .* has 61 hex digits", ""),
    "path": (GOOD.replace(str(A), "sha256:../../x"), "line 5: .* lower-case hex", ""),
    "number": (GOOD.replace(f'"{A}"', "7"), 'line 5: "linux/amd64" must be a digest', ""),
    "bad index": (GOOD.replace(str(C), "sha256:cc"), "line 4: .* has 2 hex digits", ""),
    "index alone": ("\n".join(GOOD.splitlines()[:-1]), "line 3: .* has no platform", ""),
    "several": (
        f'{HEAD}[images."{NAME}"]\n"linux/amd64" = "{A}"\n"linux/arm64" = "{B}"\n',
        "line 2: .* has several manifests and no index",
        "",
    ),
    "deep": (HEAD + "x = " + "[" * 5000, "not valid TOML", ""),
}


@pytest.mark.parametrize("text, message, cause", WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, text, message, cause):
    path = tmp_path / "images.lock"
    path.write_text(text)
    for create in (False, True):
        with pytest.raises(UsageError, match=message) as caught:
            LockFile.load(path, create=create)
        assert cause in (caught.value.cause or "")
        assert caught.value.message.startswith(str(path))
        assert "\n" not in caught.value.message and caught.value.hint
    with pytest.raises(UsageError):
        update(path, {"ghcr.io/acme/app:1": LockedImage(None, {"linux/amd64": A})})
    assert path.read_text() == text


def test_the_line_is_that_of_the_image_and_not_of_one_that_begins_alike(tmp_path):
    path = tmp_path / "images.lock"
    path.write_text(
        f'{HEAD}[images."{NAME}.1"]\n"linux/amd64" = "{A}"\n[images."{NAME}"]\n"linux/amd64" = "none"\n'
    )  # fmt: skip
    with pytest.raises(UsageError, match="line 5: "):
        LockFile.load(path)


def test_bytes_that_are_no_text_and_files_that_are_too_large(tmp_path):
    path = tmp_path / "images.lock"
    path.write_bytes(HEAD.encode() + b"\xff")
    with pytest.raises(UsageError, match="line 2: not text in UTF-8"):
        LockFile.load(path)
    path.write_bytes(b"#" * ((4 << 20) + 1))
    with pytest.raises(UsageError, match="larger than a lock file may be"):
        LockFile.load(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="no such lock file"):
        LockFile.load(tmp_path / "images.lock")
    assert LockFile.load(tmp_path / "images.lock", create=True).images == {}
    with pytest.raises(LocalError, match="no such folder"):
        LockFile.load(tmp_path / "none" / "images.lock", create=True)
    with pytest.raises(LocalError, match="cannot read the lock file"):
        LockFile.load(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise OSError(30, os.strerror(30), str(tmp_path))

    monkeypatch.setattr("msb_pull.work.lockfile.os.replace", refuse)
    with pytest.raises(LocalError, match="Read-only"):
        update(tmp_path / "images.lock", {NAME: LockedImage(C, {"linux/amd64": A})})


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_not_a_file_is_never_replaced(tmp_path, make, linked):
    """As root a rename would take the place of /dev/null itself."""
    make(path := tmp_path / "odd")
    before = path.stat()
    if linked:
        (tmp_path / "link").symlink_to(path)
    with pytest.raises(LocalError, match="not a file"):
        update(tmp_path / "link" if linked else path, {NAME: LockedImage(C, {"linux/amd64": A})})
    assert (path.stat().st_mode, path.stat().st_ino) == (before.st_mode, before.st_ino)
