"""ls, inspect, verify, prune, rm and save as a script sees them: exit code and both streams, to the letter."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import tarfile
from pathlib import Path

import pytest

from tests.support.archive import END, directory, reg
from tests.support.contract import IMAGE, PINNED, PULLING, Said
from tests.support.fault_registry import Fault
from tests.support.holders import holder
from tests.support.imagebuild import simple_layout
from tests.support.terminal import Terminal, plain

NONE = "docker.io/library/none:1"
WHEN = re.compile(r'"?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"?')
REMOVED = re.compile(r"\d+\.\d kB")


def failed(code: int, kind: str, message: str, cause: str | None = None, hint: str | None = None):
    return {
        "status": "failed",
        "error": {"code": code, "kind": kind, "message": message, "cause": cause, "hint": hint},
    }


@pytest.fixture
def full(shared):
    """A store with the sample image, for tests that only look."""
    if not shared.home.exists():
        assert shared.run("-q", IMAGE) == Said(0, PINNED, "")
    return shared


def on_disk(said: Said) -> Said:
    """Without the sizes of directories, which differ between file systems."""
    return Said(said.code, REMOVED.sub("SIZE", said.out), REMOVED.sub("SIZE", said.error))


EMPTY = [
    (["ls"], Said(0, "", "No images.\n")),
    (["ls", "--format", "json"], Said(0, "[]\n", "No images.\n")),
    (["ls", "-q"], Said(0, "", "")),
    (["verify"], Said(0, "", "No images.\n")),
    (["prune"], Said(0, "", "Nothing to remove.\n")),
    (["prune", "-a", "-y", "-q"], Said(0, "", "")),
    (["inspect", "none:1"], Said(3, "", f"error: {NONE}: not in the store\n  hint: `msb-pull {NONE}` pulls it\n")),
    *(
        (words, Said(3, "", f"error: {NONE}: not in the store\n  cause: there is no store in ~/home\n"))
        for words in (["verify", "none:1"], ["rm", "none:1"], ["save", "none:1", "-o", "x"])
    ),
]


@pytest.mark.parametrize(("words", "expected"), EMPTY)
def test_where_nothing_is(place, words, expected):
    assert place.run(*words) == expected
    assert not place.home.exists()


LISTED = "IMAGE                    DIGEST        PLATFORM     LAYERS    SIZE  PULLED\n"


def test_ls(full):
    table = re.sub(" +", " ", LISTED + f"{IMAGE} image linux/amd64 2 2.3 kB just now\n")
    digest = full.added.manifest_digest
    done = full.run("ls")
    assert Said(done.code, re.sub(" +", " ", done.out).replace(digest[7:19], "image"), done.error) == Said(0, table, "")
    done = full.run("ls", "--no-trunc")
    assert re.sub(" +", " ", done.out) == table.replace("image", "IMAGE")
    (listed,) = full.run("ls", "--format", "json").document
    assert WHEN.fullmatch(listed.pop("pulled_at"))
    assert listed == {
        "reference": IMAGE, "digest": "IMAGE", "platform": "linux/amd64", "layers": 2, "size_bytes": 2254,
        "complete": True,
    }  # fmt: skip


def test_ls_chooses_and_sorts(place):
    """A pattern, filters of one key (either) and of several (both), three orders."""
    registry = place.registry
    base, top = (registry.blobs[digest] for digest in place.added.layer_digests)
    registry.add_image("acme/arm", "1", [top], platform=("linux", "arm64", None))
    registry.add_image("other/app", "2", [base])
    assert place.run("-q", IMAGE, "HOST/other/app:2").code == 0
    assert place.run("-q", "--platform", "linux/arm64", "HOST/acme/arm:1").code == 0
    app, arm, other = (f"HOST/{name}" for name in ("acme/app:1", "acme/arm:1", "other/app:2"))
    cases = {
        "": [app, arm, other],
        "HOST/acme/*": [app, arm],
        "*:2": [other],
        "*/none": [],
        "--filter reference=*/app": [app, other],
        "--filter reference=*/arm:* --filter reference=*/other/*": [arm, other],
        "--filter reference=*/app --filter platform=linux/amd64": [app, other],
        "--filter platform=linux/arm64 --filter platform=linux/amd64": [app, arm, other],
        "--filter reference=*/app --filter platform=linux/arm64": [],
        "*/app --filter reference=*/arm": [app, arm, other],
        "--filter until=1h": [],
        "--filter until=0s": [app, arm, other],
        "--filter incomplete=true": [],
        "--filter incomplete=false --sort size": [app, other, arm],
        "--sort name": [app, arm, other],
    }
    wrong = {}
    for words, expected in cases.items():
        done = place.run("ls", "-q", *words.split())
        if (done.code, done.error, done.out.split()) != (0, "", expected):
            wrong[words] = done
    assert not wrong
    times = [image["pulled_at"] for image in place.run("ls", "--sort", "pulled", "--format", "json").document]
    assert times == sorted(times, reverse=True)


def test_inspect(full):
    done = full.run("inspect", IMAGE)
    assert (done.code, done.error) == (0, "")
    facts, rows = done.out.split("\n\n")
    assert WHEN.sub("WHEN", facts).splitlines() == [
        f"Image     {IMAGE}",
        "Digest    IMAGE",
        "Platform  linux/amd64",
        "Size      2.3 kB compressed, 2 layers",
        "Pulled    just now, WHEN",
        "Source    registry",
    ]
    assert [line.split() for line in rows.splitlines()] == [
        ["LAYER", "DIGEST", "SIZE", "UNPACKED", "ENTRIES", "STATE", "PATH"],
        ["1", "base", "1.6", "kB", "16.8", "kB", "34", "complete", "~/home/layers/BASE.extracted"],
        ["2", "top", "372", "B", "93", "B", "8", "complete", "~/home/layers/TOP.extracted"],
    ]
    document = full.run("inspect", "--format", "json", IMAGE).document
    assert WHEN.fullmatch(document.pop("pulled_at"))
    for layer in document["layers"]:
        assert re.fullmatch("sha256:[0-9a-f]{64}", layer.pop("diff_id"))
    assert document == {
        "reference": IMAGE, "digest": "IMAGE", "platform": "linux/amd64", "size_bytes": 2254, "source": "registry",
        "created": None, "signatures": [],
        "config": {
            "env": [], "entrypoint": [], "cmd": [], "workdir": "", "user": "", "ports": [], "volumes": [],
            "stop_signal": None, "labels": {},
        },
        "layers": [
            {
                "digest": name, "media_type": "application/vnd.oci.image.layer.v1.tar+gzip", "size_bytes": size,
                "unpacked_bytes": unpacked, "entries": entries, "state": "complete",
                "path": f"~/home/layers/{name}.extracted",
            }
            for name, size, unpacked, entries in (("BASE", 1634, 16835, 34), ("TOP", 372, 93, 8))
        ],
    }  # fmt: skip


def test_parts_of_an_image(full):
    folders = ["~/home/layers/BASE.extracted", "~/home/layers/TOP.extracted"]
    links = "~/home/layers/.msb-pull/l/top:~/home/layers/.msb-pull/l/base"
    json = ("--format", "json")
    assert full.run("inspect", "--layers", IMAGE) == Said(0, "\n".join(folders) + "\n", "")
    assert full.run("inspect", "--layers", *json, IMAGE).document == folders
    assert full.run("inspect", "--lowerdir", IMAGE) == Said(0, links + "\n", "")
    assert full.run("inspect", "--lowerdir", *json, IMAGE).document == {"lowerdir": links}
    done = full.run("inspect", "--files", IMAGE)
    assert (done.code, done.error) == (0, "")
    assert done.out.splitlines()[:2] == [
        "drwxr-xr-x 1000/1000          0 2023-11-14 22:13 /app",
        "-rw-r--r-- 1000/1000         37 2023-11-14 22:13 /app/main.py",
    ]
    first = full.run("inspect", "--files", *json, IMAGE).document[0]
    assert first == {
        "path": "app", "type": "directory", "mode": "0755", "uid": 1000, "gid": 1000, "size_bytes": 0,
        "mtime": "2023-11-14T22:13:20Z", "target": None, "device": None, "layer": "TOP",
    }  # fmt: skip


LOOKED_UP = [
    (["verify"], Said(0, "", "Verified 2 layers (16.9 kB) in Ns\n")),
    (["verify", "-q"], Said(0, "", "")),
    (["verify", IMAGE, IMAGE], Said(0, "", "Verified 2 layers (16.9 kB) in Ns\n")),
    (["verify", "--quick", IMAGE], Said(0, "", "Compared 2 layers (16.9 kB) in Ns\n")),
    (["verify", "--repair"], Said(0, "", "Verified 2 layers (16.9 kB) in Ns\n")),
    (["verify", "none:1"], Said(3, "", f"error: {NONE}: not in the store\n  hint: `msb-pull ls` shows what is\n")),
    (["rm", IMAGE, "none:1"], Said(3, "", f"error: {NONE}: not in the store\n  hint: `msb-pull ls` shows what is\n")),
    (["prune"], Said(0, "", "Nothing to remove.\n")),
    (["prune", "--all", "--filter", "until=1h"], Said(0, "", "Nothing to remove.\n")),
    (["prune", "--all"], Said(2, "", "error: prune: cannot ask for confirmation without a terminal\n"
                              "  hint: use --yes to remove without asking, or --dry-run to see what would go\n")),
    (["prune", "--all", "--dry-run"], Said(0, f"image {IMAGE}\nlayer BASE SIZE\nlayer TOP SIZE\n",
                                           "Would remove 1 image and 2 layers (SIZE).\n")),
    (["prune", "-a", "-n", "-q"], Said(0, f"image {IMAGE}\nlayer BASE SIZE\nlayer TOP SIZE\n", "")),
    (["save", IMAGE, "-o", "none/x.tar"], Said(7, "", "error: none: no such folder\n"
                                               "  hint: choose another place with -o\n")),
    (["save", IMAGE, "-o", "."], Said(7, "", "error: .: Is a directory\n  hint: choose another place with -o\n")),
    (["save", "none:1", "-o", "x"], Said(3, "", f"error: {NONE}: not in the store\n"
                                         "  hint: `msb-pull ls` shows what is\n")),
    (["inspect", "HOST/acme/ap:1"], Said(3, "", f"error: HOST/acme/ap:1: not in the store\n"
                                         f"  hint: did you mean {IMAGE}?\n")),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), LOOKED_UP)
def test_nothing_is_changed(full, words, expected):
    assert on_disk(full.run(*words)) == on_disk(expected)
    assert full.run("ls", "-q").out == f"{IMAGE}\n"


def test_documents_of_failures(full):
    """One document, whatever the command; the exit code stands in it."""
    unknown = failed(3, "not-found", f"{NONE}: not in the store", hint="`msb-pull ls` shows what is")
    cases = [
        (["inspect", "none:1"], failed(3, "not-found", f"{NONE}: not in the store", None,
                                       f"`msb-pull {NONE}` pulls it")),
        (["verify", "none:1"], unknown),
        (["rm", "none:1"], unknown),
        (["save", "none:1", "-o", "x"], unknown),
        (["ls", "--sort", "x"], failed(2, "usage", "--sort: 'x' is not one of name, size, pulled")),
        (["prune", "-a"], failed(2, "usage", "prune: cannot ask for confirmation without a terminal", None,
                                 "use --yes to remove without asking, or --dry-run to see what would go")),
        (["save", IMAGE, "-o", "none/x"], failed(7, "local", "none: no such folder", None,
                                                 "choose another place with -o")),
    ]  # fmt: skip
    for words, expected in cases:
        done = full.run(*words, "--format", "json")
        assert (done.code, done.document) == (expected["error"]["code"], expected), words


def damaged(place) -> Said:
    """What verify says of a layer with one file more and one less, with times left alone."""
    folder = place.layers / f"{place.added.layer_digests[0]}.extracted"
    top, etc = folder.stat(), (folder / "etc").stat()
    (folder / "new").write_text("")
    (folder / "etc" / "shadow").unlink()
    for path, facts in ((folder / "etc", etc), (folder, top)):
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    out = "base\t/etc/shadow\tmissing\tfile\tnothing\nbase\t/new\textra\tnothing\tfile\n"
    return Said(6, out, "error: 1 of 2 layers damaged\n  hint: `msb-pull verify --repair` fetches them again\n")


def layer_document(name: str, verdict: str, size: int, entries: int, *damages, repaired: bool = False):
    keys = ("path", "kind", "expected", "found")
    return {
        "name": name, "digest": name, "verdict": verdict, "repaired": repaired, "remark": None, "content_bytes": size,
        "entries": entries, "images": [IMAGE], "damages": [dict(zip(keys, x, strict=True)) for x in damages],
    }  # fmt: skip


def test_damage_and_repair(place):
    assert place.run("-q", IMAGE).code == 0
    done = place.run("verify", "--format", "json").document
    assert isinstance(done.pop("seconds"), float)
    proven = [layer_document("BASE", "proven", 16835, 34), layer_document("TOP", "proven", 93, 8)]
    assert done == {"status": "ok", "images": [IMAGE], "unsigned": [], "records": [], "layers": proven}
    expected = damaged(place)
    assert place.run("verify") == expected
    assert place.run("verify", "-q", "--quick") == expected
    done = place.run("verify", "--format", "json").document
    del done["seconds"]
    lines = [line.split("\t")[1:] for line in expected.out.splitlines()]
    assert done == {
        "images": [IMAGE],
        "unsigned": [],
        "records": [],
        "layers": [layer_document("BASE", "damaged", 16835, 34, *lines), proven[1]],
        **failed(6, "content", "1 of 2 layers damaged", None, "`msb-pull verify --repair` fetches them again"),
    }
    message = 'error: layer base: "etc/shadow" is damaged (expected a file, found nothing)'
    done = place.run("save", IMAGE, "-o", "x.tar")
    assert (done.code, done.out, done.error.partition(" is damaged")[0]) == (6, "", message.partition(" is damaged")[0])
    assert not (place.folder / "x.tar").exists()
    place.registry.script("/blobs/", Fault(status=500))
    trouble = "error: HOST/acme/app:1: HOST reports a server error\n"
    trouble += "  cause: registry answered 500 Internal Server Error\n"
    failed_repair = place.run("verify", "--repair", "-q")
    assert failed_repair == Said(
        6, expected.out, f"{trouble}  hint: try again later\nerror: 1 of 2 layers damaged\n"
        "  cause: not repaired: HOST/acme/app:1: HOST reports a server error\n"
    )  # fmt: skip
    repaired = f"{PULLING}layer top already here\nlayer base done 1.6 kB\n"
    repaired += "Verified 2 layers (16.9 kB) in Ns, 1 layer repaired\n"
    assert place.run("verify", "--repair") == Said(0, expected.out, repaired)
    assert place.run("verify", "-q") == Said(0, "", "")


def test_what_is_missing(place):
    assert place.run("-q", IMAGE).code == 0
    shutil.rmtree(place.layers / f"{place.added.layer_digests[0]}.extracted")
    gone = f"error: {IMAGE}: layer base is missing\n  hint: `msb-pull pull {IMAGE}` completes the image\n"
    for part in ("--layers", "--lowerdir"):
        assert place.run("inspect", part, IMAGE) == Said(3, "", gone)
    assert " missing " in place.run("inspect", IMAGE).out
    assert place.run("ls").out.endswith("just now (incomplete)\n")
    assert place.run("ls", "-q", "--filter", "incomplete=true") == Said(0, f"{IMAGE}\n", "")
    assert place.run("verify") == Said(
        6, "base\t/\tmissing\ta directory\tnothing\n",
        "error: 1 of 2 layers damaged\n  hint: `msb-pull verify --repair` fetches them again\n",
    )  # fmt: skip
    assert place.run("save", IMAGE, "-o", "x.tar") == Said(
        3, "", "error: layer base is not in the store, or has no record to recreate it from\n"
        "  hint: `msb-pull verify --repair` or `msb-pull pull --force` fetches it\n",
    )  # fmt: skip


def test_an_emptied_layer(place):
    """A directory of which nothing is left, as a failed copy of a store has it."""
    assert place.run("-q", IMAGE).code == 0
    for entry in (place.layers / f"{place.added.layer_digests[0]}.extracted").iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    assert place.run("ls").out.endswith("just now (incomplete)\n")
    assert place.run("ls", "-q", "--filter", "incomplete=true") == Said(0, f"{IMAGE}\n", "")
    assert place.run("inspect", "--layers", IMAGE) == Said(
        3, "", f"error: {IMAGE}: layer base is missing\n  hint: `msb-pull pull {IMAGE}` completes the image\n"
    )  # fmt: skip
    assert place.run("verify", "-q").out == "base\t/\tmissing\tits entries\tan empty directory\n"
    assert place.run("-q", IMAGE) == Said(0, PINNED, "")
    assert place.run("verify", "-q") == Said(0, "", "")


def test_short_links(place):
    """One is lost, one leads elsewhere: verify reports it, inspect says so, and what writes makes them again."""
    assert place.run("-q", IMAGE).code == 0
    base, top = (f"l/{digest[7:19]}" for digest in place.added.layer_digests)
    links = place.run("inspect", "--lowerdir", IMAGE)

    def spoil() -> None:
        (place.layers / ".msb-pull" / base).unlink()
        (place.layers / ".msb-pull" / top).unlink()
        (place.layers / ".msb-pull" / top).symlink_to("../../elsewhere")

    said = f"{IMAGE}\tl/base\trecord\t../../BASE.extracted\tnothing\n"
    said += f"{IMAGE}\tl/top\trecord\t../../TOP.extracted\t../../elsewhere\n"
    spoil()
    assert place.run("verify") == Said(
        6, said, "error: the records of 1 of 1 image are damaged\n  hint: `msb-pull verify --repair` rewrites them\n"
    )
    assert place.run("inspect", "--lowerdir", IMAGE) == Said(
        3, "", f"error: {IMAGE}: layer top has no short link\n  cause: its link is lost or leads elsewhere\n"
        f"  hint: `msb-pull pull {IMAGE}` recreates it\n",
    )  # fmt: skip
    assert place.run("verify", "--repair", "-q") == Said(0, said, "")
    assert place.run("inspect", "--lowerdir", IMAGE) == links
    spoil()
    assert place.run("-q", IMAGE) == Said(0, PINNED, "")
    assert place.run("inspect", "--lowerdir", IMAGE) == links
    assert place.run("verify", "-q") == Said(0, "", "")


def test_forms_of_one_layer(place):
    """A blob that looks different on two bases has two directories; what is said of them names which."""
    shared = reg(b"a/b", b"x") + END
    simple_layout(place.folder / "layout", [shared, directory(b"a", mode=0o700, uid=1) + END, shared])
    pulling = ("-q", "oci:layout", "--as", "localhost/twice:1")
    assert place.run(*pulling).code == 0
    folders = [Path(x) for x in place.run("inspect", "--layers", "--format", "json", "localhost/twice:1").document]
    names = [folder.name.removesuffix(".extracted") for folder in folders]
    plain, variant = names[0], names[2]
    assert variant.startswith(f"{plain}+")
    for name in (plain, variant):
        (place.layers / f"{name}.extracted" / "a" / "b").unlink()
    done = place.run("verify", "-q")
    lost = {line.split("\t")[0] for line in done.out.splitlines() if line.split("\t")[1] == "/a/b"}
    assert lost == {plain[7:19], f"{plain[7:19]}+{variant[-12:]}"}
    layers = place.run("verify", "--format", "json").document["layers"]
    assert {x["name"]: x["digest"] for x in layers} == {name: name.partition("+")[0] for name in names}
    assert place.run("verify", "--repair", "-q").error == (
        "error: 2 damaged layers cannot be fetched: no image from a registry has them\n"
        "  hint: pull localhost/twice:1 again with --force, from oci:~/layout\n"
        "error: 2 of 3 layers damaged\n"
        "  cause: not repaired: 2 damaged layers cannot be fetched: no image from a registry has them\n"
    )
    assert place.run(*pulling, "--force").code == 0
    assert place.run("verify", "-q") == Said(0, "", "")


def test_layers_without_a_database(place):
    """Neither the database nor a copy of it is left: nothing can be verified, and that is no success."""
    assert place.run("-q", IMAGE).code == 0
    for path in (*place.home.glob("oci.db*"), *(place.layers / ".msb-pull" / "images").iterdir()):
        path.unlink()
    message = "~/home/oci.db: missing, with 2 layers left in ~/home/layers"
    hint = "restore it from a copy, or pull the images again: the layers that are here will not be fetched again"
    assert place.run("verify") == Said(6, "", f"error: {message}\n  hint: {hint}\n")
    assert not (place.home / "oci.db").exists()
    assert place.run("ls") == Said(0, "", f"warning: {message}; {hint}\nNo images.\n")
    # The first pull of all records its image after the last layer.
    with holder(place.layers / ".msb-pull" / "locks", kind="s"):
        assert place.run("verify") == Said(0, "", "No images.\n")
        assert place.run("ls") == Said(0, "", "No images.\n")
    document = place.run("verify", "--format", "json").document
    assert (document["status"], document["images"], document["error"]["message"]) == ("failed", [], message)
    elsewhere = {"MICROSANDBOX_HOME": str(place.folder / "other")}
    shared = place.run("verify", "--layers-dir", str(place.layers), env=elsewhere)
    assert shared.code == 6, shared
    assert place.run("-q", IMAGE) == Said(0, PINNED, "")
    assert place.run("verify", "-q") == Said(0, "", "")
    # The layers are those of a home that is there.
    shared = place.run("verify", "--layers-dir", str(place.layers), env=elsewhere)
    assert shared == Said(0, "", "No images.\n")


def test_a_copy_that_cannot_be_read(place):
    """It is named every time, since an image that it is all that is left of stays unverified."""
    assert place.run("-q", IMAGE).code == 0
    copy = place.layers / ".msb-pull" / "images" / f"{'a' * 64}.json"
    copy.write_text("damaged")
    message = f"~/home/layers/.msb-pull/images/{copy.name}: cannot be read, and may be all that is left of an image "
    said = f"error: {message}that oci.db does not have\n"
    said += "  hint: pull that image again, or remove the file if you do not need it\n"
    for _ in range(2):
        assert place.run("verify") == Said(7, "", said)
        assert place.run("verify", "--repair", "-q") == Said(7, "", said)
    assert place.run("verify", "-q", IMAGE) == Said(0, "", "")
    damaged_too = damaged(place)
    assert place.run("verify") == Said(6, damaged_too.out, said + damaged_too.error)


def without_sizes(document):
    """A document of prune or rm, whose sizes on disk are checked and taken out."""
    sizes = [item.pop("size_bytes") for item in (*document["layers"], *document["files"])]
    assert all(isinstance(size, int) and size > 0 for size in sizes)
    assert document.pop("freed_bytes") == sum(sizes)
    return document


def test_removing(place):
    both = f"image {IMAGE}\nlayer BASE SIZE\nlayer TOP SIZE\n"
    removed = Said(0, both, "Removed 1 image and 2 layers, freed SIZE\n")
    document = {
        "status": "ok", "dry_run": False, "images": [IMAGE], "files": [], "leftovers": 0,
        "layers": [{"name": name, "digest": name} for name in ("BASE", "TOP")],
    }  # fmt: skip
    form = ("--format", "json")
    for words in (["rm", IMAGE, IMAGE], ["prune", "--all", "--yes"], ["prune", "-a", "-y", "--filter", "until=0s"]):
        assert place.run("-q", IMAGE).code == 0
        assert on_disk(place.run(*words)) == removed, words
        assert place.run("ls", "-q").out == ""
    for words in (["rm", IMAGE], ["prune", "-a", "-y"]):
        assert place.run("-q", IMAGE).code == 0
        if words[0] == "prune":
            dry = place.run(*words, "-n", *form).document
            assert without_sizes(dry) == {**document, "dry_run": True}
        assert without_sizes(place.run(*words, "-q", *form).document) == document
    assert without_sizes(place.run("prune", *form).document) == {**document, "images": [], "layers": []}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("y\n", "✓ Removed 1 image and 2 layers, freed SIZE\n"),
        ("Yes\n", "✓ Removed 1 image and 2 layers, freed SIZE\n"),
        ("n\n", "Nothing removed.\n"),
        ("\n", "Nothing removed.\n"),
        ("\x04", "\nNothing removed.\n"),
    ],
)
def test_the_question(place, tmp_path, answer, said):
    """On standard error, while standard output is a file; "n" ends with 0."""
    assert place.run("-q", IMAGE).code == 0
    out = tmp_path / "out"
    with Terminal(
        place.argv("prune", "--all"), env=place.environment(LC_ALL="C.UTF-8"), cwd=tmp_path, stdout=out
    ) as terminal:
        terminal.expect(r"Remove 1 image and 2 layers \(\d+\.\d kB\)\? \[y/N\] ")
        terminal.send(answer)
        assert terminal.wait() == 0
        text = REMOVED.sub("SIZE", plain(terminal.text).replace("\r\n", "\n")).removeprefix(answer)
    # While it removes, the last line says what; that is drawn over.
    assert re.sub(r"[\r\n]*Removing layer [0-9a-f]{12} \([12] of 2\)[\r\n]*", "", text) == said
    lines = f"image {IMAGE}\nlayer BASE SIZE\nlayer TOP SIZE\n"
    assert REMOVED.sub("SIZE", place.alike(out.read_text())) == (lines if "✓" in said else "")
    assert place.run("ls", "-q").out == ("" if "✓" in said else f"{IMAGE}\n")


def test_the_store_is_locked(place):
    assert place.run("-q", IMAGE).code == 0
    with open(place.layers / ".msb-pull" / "locks" / "store.lock", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        done = place.run("prune", "--all", "--yes", "--no-wait")
    assert (done.code, done.out) == (7, "")
    assert done.error.startswith("error: the store is in use")
    assert place.run("ls", "-q").out == f"{IMAGE}\n"


def test_save(full):
    kinds = {"oci": "index.json", "docker": "manifest.json"}
    for kind, member in kinds.items():
        path = full.folder / f"{kind}.tar"
        done = full.run("save", IMAGE, IMAGE, "-o", path.name, "--format", kind)
        assert on_disk(done) == Said(0, "", f"Saved 1 image to {kind}.tar: SIZE in Ns\n")
        done = full.run("save", IMAGE, "--output", path.name, "--format", "json", "--format", kind).document
        digest = done["images"][0].pop("digest")
        assert re.fullmatch("IMAGE|CONFIG|sha256:[0-9a-f]{64}", digest)
        assert isinstance(done.pop("seconds"), float)
        assert done == {
            "status": "ok", "file": path.name, "format": kind, "size_bytes": path.stat().st_size,
            "images": [{"reference": IMAGE, "layers": 2, "left_out": 0}],
        }  # fmt: skip
        with tarfile.open(path) as archive:
            assert member in archive.getnames()
    done = full.run("save", IMAGE, "-o", "-", "--format", "json")
    message, hint = "save: standard output cannot carry an archive and a document", "name a file with -o"
    assert (done.code, done.error) == (2, f"error: {message}\n  hint: {hint}\n")
    assert done.document == failed(2, "usage", message, None, hint)
    assert sorted(x.name for x in full.folder.iterdir() if "part" in x.name) == []


INTERRUPTED = {
    ("rm", IMAGE): "`msb-pull ls` shows which images are left, `msb-pull prune` removes layers that none of them needs",
    ("prune", "--all", "--yes"): "run the same command again to remove what is left",
    ("save", IMAGE, "-o", "app.tar"): "app.tar was not written; run the same command again",
    ("save", IMAGE, "-o", "-"): "the archive is not complete; run the same command again",
}


@pytest.mark.parametrize("words", INTERRUPTED)
def test_an_interruption_says_what_is_left(full, words):
    """Here all is, since the store is locked."""
    with holder(full.layers / ".msb-pull" / "locks"):
        process = full.start(*words)
        assert process.stderr.readline().startswith("waiting for ")
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert full.alike(error) == f"error: interrupted\n  hint: {INTERRUPTED[words]}\n"
    assert full.run("ls", "-q").out == f"{IMAGE}\n"
    assert not list(full.folder.glob("*app.tar*"))
