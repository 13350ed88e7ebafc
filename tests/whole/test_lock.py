"""Lock files on the command line: the same digests on two machines, no tag asked for, and every request counted."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.support.fault_registry import OCI_MANIFEST, FaultRegistry
from tests.support.home import Home, gz
from tests.support.make_sample import file, folder, layer_tar

PLATFORMS = ("amd64", "arm64", "s390x")


@pytest.fixture
def registry():
    with FaultRegistry() as served:
        yield served


def machine(tmp_path, name: str) -> Home:
    folder = tmp_path / name
    folder.mkdir()
    return Home(folder)


def layer(content: str) -> bytes:
    return gz(layer_tar([folder("./"), file("content", content.encode() * 100)]))


def add_index(registry: FaultRegistry, tag: str, content: str, platforms=PLATFORMS, repository="acme/app"):
    """An index; returns its digest and those of its manifests by platform."""
    entries, manifests = [], {}
    for architecture in platforms:
        image = registry.add_image(
            repository, None, [layer(content + architecture)], platform=("linux", architecture, None)
        )
        manifests[f"linux/{architecture}"] = image.manifest_digest
        entries.append(
            {
                "mediaType": OCI_MANIFEST,
                "digest": image.manifest_digest,
                "size": len(image.manifest_bytes),
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    return registry.add_index(repository, tag, entries), manifests


def manifests_asked(registry: FaultRegistry) -> list[str]:
    return [x.path.rpartition("/")[2] for x in registry.asked("/manifests/")]


def recorded(home: Home) -> dict[str, str]:
    return {x["reference"]: x["digest"] for x in json.loads(home.run("ls", "--format", "json").stdout)}


def test_two_machines_a_moved_tag_and_an_index_with_three_platforms(tmp_path, registry):
    name = f"{registry.host}/acme/app:1"
    index, manifests = add_index(registry, "1", "first")
    one, other = machine(tmp_path, "one"), machine(tmp_path, "other")
    done = one.pull("--lock", "images.lock", "--lock-platform", "arm64", "--lock-platform", "linux/s390x", name)
    assert (done.returncode, done.stdout) == (0, f"{name}@{manifests['linux/amd64']}\n")
    # The tag once, and each platform's manifest.
    assert manifests_asked(registry) == ["1", *manifests.values()]
    assert [x.path.rpartition("/")[2] for x in registry.asked("/blobs/")].count("1") == 0
    text = (one.folder / "images.lock").read_text()
    assert text.splitlines()[2:] == [
        "", f'[images."{name}"]', f'index = "{index}"', *(f'"{x}" = "{manifests[x]}"' for x in sorted(manifests))
    ]  # fmt: skip
    add_index(registry, "1", "second")
    shutil.copy(one.folder / "images.lock", other.folder)
    for architecture in PLATFORMS:
        registry.forget()
        digest = manifests[f"linux/{architecture}"]
        done = other.run("pull", "--locked", "images.lock", "--platform", f"linux/{architecture}")
        assert (done.returncode, done.stdout) == (0, f"{name}@{digest}\n")
        # Manifest, config and layer.
        assert manifests_asked(registry) == [digest] and registry.count("/blobs/") == 2
        assert recorded(other) == {name: digest}
        assert other.run("verify").returncode == 0
    assert (other.folder / "images.lock").read_text() == text


def test_what_is_here_and_locked_needs_no_request(tmp_path, registry):
    name = f"{registry.host}/acme/app:1"
    _, manifests = add_index(registry, "1", "first")
    home = machine(tmp_path, "one")
    assert home.pull("--lock", "images.lock", name).returncode == 0
    registry.forget()
    for more in (["--locked", "images.lock"], ["--locked", "images.lock", name], ["--lock", "images.lock", name]):
        done = home.pull(*more)
        assert (done.returncode, done.stdout) == (0, f"{name}@{manifests['linux/amd64']}\n")
    assert registry.requests == []
    done = home.pull("--locked", "images.lock", "--policy", "never")
    assert (done.returncode, registry.requests) == (0, [])


def test_a_store_whose_tag_points_elsewhere_is_pulled_anew(tmp_path, registry):
    name = f"{registry.host}/acme/app:1"
    _, first = add_index(registry, "1", "first")
    one, other = machine(tmp_path, "one"), machine(tmp_path, "other")
    assert one.pull("--lock", "images.lock", name).returncode == 0
    _, second = add_index(registry, "1", "second")
    assert other.pull(name).returncode == 0
    assert recorded(other) == {name: second["linux/amd64"]}
    shutil.copy(one.folder / "images.lock", other.folder)
    done = other.pull("--locked", "images.lock", "--policy", "never")
    assert done.returncode == 3 and f"wanted is {first['linux/amd64']}" in done.stderr
    registry.forget()
    assert other.pull("--locked", "images.lock", name).returncode == 0
    assert recorded(other) == {name: first["linux/amd64"]}
    assert manifests_asked(registry) == [first["linux/amd64"]]


def test_a_mirror_without_tags_is_enough(tmp_path, registry):
    """And the registry itself may be gone."""
    name = f"{registry.host}/acme/app:1"
    _, manifests = add_index(registry, "1", "first")
    one, other = machine(tmp_path, "one"), machine(tmp_path, "other")
    assert one.pull("--lock", "images.lock", name).returncode == 0
    shutil.copy(one.folder / "images.lock", other.folder)
    with FaultRegistry() as mirror:
        mirror.blobs = dict(registry.blobs)
        mirror.manifests = {key: x for key, x in registry.manifests.items() if key[1] in manifests.values()}
        other.config.write_text(f'[pull]\nretries = 0\n[registries."{registry.host}"]\nmirrors = ["{mirror.url}"]\n')
        registry.stop()
        done = other.pull("--locked", "images.lock")
        assert (done.returncode, done.stdout) == (0, f"{name}@{manifests['linux/amd64']}\n")
        assert manifests_asked(mirror) == [manifests["linux/amd64"]]


def test_what_is_not_in_the_file_fails_before_anything_is_asked(tmp_path, registry):
    name = f"{registry.host}/acme/app:1"
    add_index(registry, "1", "first")
    home = machine(tmp_path, "one")
    assert home.pull("--lock", "images.lock", name).returncode == 0
    registry.forget()
    for more in ([name, f"{registry.host}/acme/app:2"], [name, "--platform", "linux/arm64"], ["oci:x"]):
        done = home.pull("--force", "--locked", "images.lock", *more)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert registry.requests == []


def test_what_the_file_says_stays_until_it_is_upgraded(tmp_path, registry):
    name = f"{registry.host}/acme/app:1"
    old_index, old = add_index(registry, "1", "first")
    home = machine(tmp_path, "one")
    assert home.pull("--lock", "images.lock", name).returncode == 0
    new_index, new = add_index(registry, "1", "second")
    registry.forget()
    # A platform that is missing comes from the index that is locked, not from where the tag points by now.
    done = home.pull("--lock", "images.lock", "--lock-platform", "linux/arm64", name)
    assert done.returncode == 0 and "1" not in manifests_asked(registry)
    assert f"{name} linux/arm64: new, {old['linux/arm64']}\n" in done.stderr
    planned = home.pull("--lock", "images.lock", "--upgrade", "--dry-run")
    assert planned.returncode == 0 and recorded(home) == {name: old["linux/amd64"]}
    text = (home.folder / "images.lock").read_text()
    assert old_index in text and "Would write " in planned.stderr
    registry.forget()
    done = home.pull("--lock", "images.lock", "--upgrade")
    assert done.returncode == 0
    told = [line for line in done.stderr.splitlines() if " -> " in line]
    assert told == [line for line in planned.stderr.splitlines() if " -> " in line]
    assert told == [
        f"{name} index: {old_index} -> {new_index}",
        f"{name} linux/amd64: {old['linux/amd64']} -> {new['linux/amd64']}",
        f"{name} linux/arm64: {old['linux/arm64']} -> {new['linux/arm64']}",
    ]
    assert manifests_asked(registry).count("1") == 1
    assert recorded(home) == {name: new["linux/amd64"]}
    text = (home.folder / "images.lock").read_text()
    assert all(x in text for x in (new_index, new["linux/amd64"], new["linux/arm64"])) and old_index not in text
    registry.forget()
    done = home.pull("--lock", "images.lock", "--upgrade", "--format", "json")
    assert json.loads(done.stdout)["lock"] == {"file": str(home.folder / "images.lock"), "changes": []}


def test_a_platform_that_is_gone_keeps_the_file_as_it_is(tmp_path, registry):
    name = f"{registry.host}/acme/app:1"
    add_index(registry, "1", "first")
    home = machine(tmp_path, "one")
    assert home.pull("--lock", "images.lock", "--lock-platform", "arm64", name).returncode == 0
    text = (home.folder / "images.lock").read_text()
    add_index(registry, "1", "second", platforms=["amd64"])
    done = home.pull("--lock", "images.lock", "--upgrade", name)
    assert done.returncode == 3 and "locked for linux/arm64 as well" in done.stderr
    assert (home.folder / "images.lock").read_text() == text


def test_one_image_that_fails_leaves_out_itself_alone(tmp_path, registry):
    add_index(registry, "1", "first")
    home = machine(tmp_path, "one")
    good, bad = (f"{registry.host}/acme/app:{tag}" for tag in "12")
    done = home.pull("--lock", "images.lock", "--format", "json", good, bad)
    assert done.returncode == 3
    document = json.loads(done.stdout)
    assert [x["image"] for x in document["lock"]["changes"]] == [good]
    assert bad not in (home.folder / "images.lock").read_text()


def test_no_image_no_file(tmp_path, registry):
    home = machine(tmp_path, "one")
    done = home.pull("--lock", "images.lock", f"{registry.host}/acme/none:1")
    assert done.returncode == 3 and not (home.folder / "images.lock").exists()


def test_a_lone_manifest_has_no_index(tmp_path, registry):
    name = f"{registry.host}/acme/app:1"
    image = registry.add_image("acme/app", "1", [layer("alone")])
    home = machine(tmp_path, "one")
    assert home.pull("--lock", "images.lock", name).returncode == 0
    text = (home.folder / "images.lock").read_text()
    assert text.splitlines()[2:] == ["", f'[images."{name}"]', f'"linux/amd64" = "{image.manifest_digest}"']
    # It is for no other platform, whatever its tag says by now.
    add_index(registry, "1", "second")
    done = home.run("pull", "--lock", "images.lock", "--platform", "linux/arm64", name)
    assert done.returncode == 3 and "no image for linux/arm64" in done.stderr
    assert (home.folder / "images.lock").read_text() == text


def test_digests_that_were_edited(tmp_path, registry):
    name = f"{registry.host}/acme/app:1"
    index, manifests = add_index(registry, "1", "first")
    home = machine(tmp_path, "one")
    assert home.pull("--lock", "images.lock", name).returncode == 0
    path = home.folder / "images.lock"
    good = path.read_text()
    assert home.run("rm", name).returncode == 0
    path.write_text(good.replace(manifests["linux/amd64"], index))
    done = home.pull("--locked", "images.lock")
    assert done.returncode == 2 and "is not its manifest for one platform" in done.stderr
    path.write_text(good.replace(manifests["linux/amd64"], "sha256:" + "0" * 64))
    done = home.pull("--locked", "images.lock")
    assert done.returncode == 3 and "--upgrade" in done.stderr
    path.write_text(good.replace(manifests["linux/amd64"], manifests["linux/arm64"]))
    # With another platform the index is asked, and does not agree.
    done = home.pull("--lock", "images.lock", "--lock-platform", "s390x", name)
    assert done.returncode == 2 and f"{index} leads to" in done.stderr
    assert recorded(home) == {}


def swapped(text: str, one: str, other: str) -> str:
    return text.replace(one, "?").replace(other, one).replace("?", other)


@pytest.mark.parametrize("here", [False, True])
def test_digests_that_were_swapped(tmp_path, registry, here):
    name = f"{registry.host}/acme/app:1"
    index, manifests = add_index(registry, "1", "first")
    home = machine(tmp_path, "one")
    assert home.pull("--lock", "images.lock", "--lock-platform", "arm64", name).returncode == 0
    path = home.folder / "images.lock"
    amd64, arm64 = manifests["linux/amd64"], manifests["linux/arm64"]
    assert amd64 in path.read_text() and arm64 in path.read_text()
    if here:
        assert home.run("pull", "--platform", "linux/arm64", "--locked", "images.lock").returncode == 0
    else:
        assert home.run("rm", name).returncode == 0
    before = recorded(home)
    path.write_text(swapped(path.read_text(), amd64, arm64))
    done = home.pull("--locked", "images.lock")
    assert done.returncode == 2, done.stderr
    assert f"{arm64} is not its manifest for one platform" in done.stderr
    assert f"cause: {index} leads to {amd64}" in done.stderr and "hint: " in done.stderr
    assert recorded(home) == before


def test_a_config_that_is_wrong_is_pulled_as_its_index_says(tmp_path, registry):
    """As many builds for another platform have one."""
    image = registry.add_image("acme/app", None, [layer("x")], platform=("linux", "arm64", None))
    entry = {
        "mediaType": OCI_MANIFEST,
        "digest": image.manifest_digest,
        "size": len(image.manifest_bytes),
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    registry.add_index("acme/app", "1", [entry])
    name = f"{registry.host}/acme/app:1"
    one, two = machine(tmp_path, "one"), machine(tmp_path, "two")
    assert one.pull("--lock", "images.lock", name).returncode == 0
    shutil.copy(one.folder / "images.lock", two.folder)
    done = two.pull("--locked", "images.lock")
    assert done.returncode == 0, done.stderr
    assert recorded(two) == {name: image.manifest_digest}
    assert two.pull("--locked", "images.lock").returncode == 0


def test_a_digest_and_a_tag_can_be_locked_together(tmp_path, registry):
    index, manifests = add_index(registry, "1", "first")
    name = f"{registry.host}/acme/app:1@{index}"
    home = machine(tmp_path, "one")
    assert home.pull("--lock", "images.lock", name).returncode == 0
    registry.forget()
    home.run("rm", name)
    done = home.pull("--locked", "images.lock")
    assert (done.returncode, done.stdout) == (0, f"{name}\n")
    assert manifests_asked(registry) == [manifests["linux/amd64"]]


@pytest.mark.parametrize(
    "words",
    [
        ["--lock", "a.lock", "--locked", "a.lock", "x"],
        ["--upgrade", "x"],
        ["--lock-platform", "arm64", "x"],
        ["--locked", "a.lock", "--upgrade"],
        ["--lock", "a.lock"],
        ["--lock", "a.lock", "--upgrade"],
        ["--lock", "a.lock", "--policy", "never", "x"],
        ["--lock", "a.lock", "oci:x"],
        ["--lock", "a.lock", "--lock-platform", "a b", "x"],
        ["--locked", "a.lock"],
        ["--lock", "", "x"],
    ],
)
def test_options_that_do_not_go_together(tmp_path, words):
    home = machine(tmp_path, "one")
    done = home.run("pull", *words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ") and not (home.folder / "a.lock").exists()


def test_a_lock_file_that_cannot_be_written_hides_nothing(tmp_path, registry):
    add_index(registry, "1", "first")
    home = machine(tmp_path, "one")
    good, bad = (f"{registry.host}/acme/app:{tag}" for tag in "12")
    (home.folder / "a.lock").symlink_to("missing/a.lock")
    done = home.pull("--lock", "a.lock", "--format", "json", good, bad)
    document = json.loads(done.stdout)
    assert [x["status"] for x in document["images"]] == ["ok", "failed"] and document["status"] == "failed"
    assert document["error"]["message"] == "1 of 2 images failed, and the lock file was not written"
    assert done.returncode == 1 and done.stderr.count("error: ") == 2 and f"{bad}: not found" in done.stderr


def test_a_pipe_is_refused_before_anything_is_asked(tmp_path, registry):
    home = machine(tmp_path, "one")
    os.mkfifo(home.folder / "a.lock")
    done = home.pull("--lock", "a.lock", f"{registry.host}/acme/app:1")
    assert (done.returncode, registry.requests) == (7, []) and "not a file" in done.stderr
