"""Archives without the layers that the other side has, from the command that writes them to the one that reads them."""

from __future__ import annotations

import hashlib
import json
import tarfile

import pytest

from tests.support.fault_registry import FaultRegistry, digest_of
from tests.support.home import Home, gz
from tests.support.imagebuild import zstd
from tests.support.make_sample import BASE, TOP, file, folder, layer_tar

MORE = layer_tar([folder("./"), file("more", "one more layer" * 500)])
TARS = [layer_tar(BASE), layer_tar(TOP), MORE]


@pytest.fixture
def registry():
    with FaultRegistry() as served:
        served.add_image("acme/app", "1", [gz(tar) for tar in TARS[:2]])
        # The same layers in another compression, and one more.
        served.add_image(
            "acme/app",
            "2",
            [zstd.compress(tar) for tar in TARS],
            diff_ids=[digest_of(tar) for tar in TARS],
            layer_type="application/vnd.oci.image.layer.v1.tar+zstd",
        )
        yield served


def machine(tmp_path, name: str, registry: FaultRegistry, *tags: str) -> Home:
    folder = tmp_path / name
    folder.mkdir()
    home = Home(folder)
    for tag in tags:
        assert home.pull(f"{registry.host}/acme/app:{tag}").returncode == 0
    return home


def blobs(path) -> set[str]:
    with tarfile.open(path) as archive:
        names = archive.getnames()
    assert len(names) == len(set(names))
    return {x.rpartition("/")[2] for x in names if x.startswith("blobs/")}


def hexes(*tars: bytes) -> set[str]:
    return {hashlib.sha256(tar).hexdigest() for tar in tars}


def test_the_store_of_the_other_side_completes_it(tmp_path, registry):
    one, other = machine(tmp_path, "one", registry, "1", "2"), machine(tmp_path, "other", registry, "1")
    name = f"{registry.host}/acme/app:2"
    done = one.run("save", name, "--without", f"{registry.host}/acme/app:1", "-o", "update.tar")
    assert done.returncode == 0 and ", without 2 layers\n" in done.stderr
    assert blobs(one.folder / "update.tar") & hexes(*TARS) == hexes(MORE)
    registry.forget()
    done = other.run("pull", "--format", "json", f"oci-archive:{one.folder / 'update.tar'}")
    assert done.returncode == 0, done.stderr
    (image,) = json.loads(done.stdout)["images"]
    assert [layer["reused"] for layer in image["layers"]] == [True, True, False]
    assert other.run("verify").returncode == 0 and registry.requests == []
    trees = [home.run("inspect", "--files", name).stdout for home in (one, other)]
    assert trees[0] == trees[1] and "/more" in trees[0]


def test_it_is_the_same_image_and_the_same_archive_each_time(tmp_path, registry):
    one = machine(tmp_path, "one", registry, "1", "2")
    name, base = (f"{registry.host}/acme/app:{tag}" for tag in "21")
    digests = set()
    for number, more in enumerate(([], ["--without", base], ["--without", base], ["--without", name])):
        done = one.run("save", name, *more, "-o", f"{number}.tar", "--format", "json")
        (image,) = json.loads(done.stdout)["images"]
        digests.add(image["digest"])
        assert image["left_out"] == [0, 2, 2, 3][number]
    assert len(digests) == 1
    assert (one.folder / "1.tar").read_bytes() == (one.folder / "2.tar").read_bytes()


@pytest.mark.parametrize("kind", ["archive", "docker", "layout", "prefixed", "compressed", "lacking"])
def test_what_was_handed_over_before_is_left_out(tmp_path, registry, kind):
    one = machine(tmp_path, "one", registry, "1", "2")
    base, name = (f"{registry.host}/acme/app:{tag}" for tag in "12")
    words = {"docker": ["--format", "docker"], "lacking": ["--without", base]}.get(kind, [])
    assert one.run("save", base, *words, "-o", "before.tar").returncode == 0
    before = one.folder / "before.tar"
    if kind == "layout":
        with tarfile.open(before) as archive:
            archive.extractall(one.folder / "layout", filter="data")
    elif kind == "compressed":
        before.write_bytes(gz(before.read_bytes()))
    file = {"layout": "oci:layout", "prefixed": "oci-archive:before.tar"}.get(kind, "before.tar")
    for given in (file, f"./{file}") if ":" not in file else (file, "./layout"[: 8 * (kind == "layout")] or file):
        done = one.run("save", name, "--without", given, "-o", "update.tar")
        assert done.returncode == 0, done.stderr
        assert blobs(one.folder / "update.tar") & hexes(*TARS) == hexes(MORE)


def test_all_images_of_an_archive_count(tmp_path, registry):
    one = machine(tmp_path, "one", registry, "1", "2")
    other = tmp_path / "one" / "both.tar"
    names = [f"{registry.host}/acme/app:{tag}" for tag in "12"]
    assert one.run("save", *names, "-o", str(other)).returncode == 0
    done = one.run("save", names[1], "--without", str(other), "-o", "nothing.tar")
    assert done.returncode == 0 and not blobs(one.folder / "nothing.tar") & hexes(*TARS)


def test_a_store_that_lacks_what_was_left_out(tmp_path, registry):
    one, other = machine(tmp_path, "one", registry, "1", "2"), machine(tmp_path, "other", registry)
    name, base = (f"{registry.host}/acme/app:{tag}" for tag in "21")
    assert one.run("save", name, "--without", base, "-o", "update.tar").returncode == 0
    source = f"oci-archive:{one.folder / 'update.tar'}"
    missing = [hashlib.sha256(tar).hexdigest()[:12] for tar in TARS[:2]]
    for more in ([], ["--force"], ["--dry-run"]):
        done = other.run("pull", *more, source)
        assert (done.returncode, done.stdout) == (3, "")
        assert f"2 layers of it are neither in {source} nor in the store" in done.stderr
        assert f"missing: {', '.join(missing)}\n" in done.stderr
    assert other.run("ls", "-q").stdout == ""
    assert [x for x in other.layers.iterdir() if x.name.endswith(".extracted")] == []
    # Once they are here, it takes the rest.
    assert other.pull(base).returncode == 0
    assert other.run("pull", source).returncode == 0
    assert other.run("pull", "--force", source).returncode == 0
    assert other.run("verify").returncode == 0


def test_a_layer_that_is_damaged_completes_nothing(tmp_path, registry):
    one, other = machine(tmp_path, "one", registry, "1", "2"), machine(tmp_path, "other", registry, "1")
    name, base = (f"{registry.host}/acme/app:{tag}" for tag in "21")
    assert one.run("save", name, "--without", base, "-o", "update.tar").returncode == 0
    (directory,) = (x for x in other.layers.iterdir() if (x / "etc" / "passwd").exists())
    (directory / "etc" / "passwd").write_text("root::0:0::/:/bin/sh\n")
    done = other.run("pull", f"oci-archive:{one.folder / 'update.tar'}")
    assert done.returncode == 6 and '"etc/passwd" is damaged' in done.stderr
    assert other.run("ls", "-q").stdout.split() == [base]


@pytest.mark.parametrize(
    "words, code",
    [
        (["--without", "no/such:1"], 3),
        (["--without", "./none.tar"], 3),
        (["--without", "oci:none"], 3),
        (["--without", "oci-archive:-"], 2),
        (["--without", "config.toml"], 6),
        (["--without", "Bad Name"], 2),
        (["--without", "broken.tar"], 6),
        (["--format", "docker", "--without", "NAME"], 2),
    ],
)
def test_what_cannot_be_left_out(tmp_path, registry, words, code):
    one = machine(tmp_path, "one", registry, "1")
    name = f"{registry.host}/acme/app:1"
    with tarfile.open(one.folder / "broken.tar", "w") as archive:
        data = tarfile.TarInfo("index.json")
        archive.addfile(data)
    done = one.run("save", name, "-o", "out.tar", *[name if x == "NAME" else x for x in words])
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert not (one.folder / "out.tar").exists()


def test_an_image_comes_before_a_file_of_the_same_name(tmp_path, registry):
    one = machine(tmp_path, "one", registry, "1")
    name = f"{registry.host}/acme/app:1"
    assert one.run("save", name, "-o", "saved.tar").returncode == 0
    assert one.run("pull", "oci-archive:saved.tar", "--as", "app:1").returncode == 0
    (one.folder / "app").mkdir()
    done = one.run("save", name, "--without", "app:1", "-o", "less.tar")
    assert done.returncode == 0 and not blobs(one.folder / "less.tar") & hexes(*TARS)
