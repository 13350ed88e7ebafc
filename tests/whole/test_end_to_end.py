"""The installed program as a user runs it: a process, real HTTP, a store on disk, its exit code and its two streams."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time

import pytest

from tests.conftest import REPOSITORY, need, program, program_environment
from tests.support.archive import END, reg
from tests.support.counting import wait_for
from tests.support.fault_registry import OCI_MANIFEST, Fault, FaultRegistry
from tests.support.home import LINUX, Home, gz, sample, unread
from tests.support.make_sample import BASE, TOP, file, layer_tar
from tests.support.ports import free_port
from tests.support.treecompare import describe, differences


@pytest.fixture
def registry():
    with FaultRegistry() as running:
        yield running


TABLES = ("images", "manifests", "configs", "layers", "manifest_layers")


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


@pytest.fixture
def docker_registry(tmp_path):
    """A real docker-registry with an empty storage, and the way to end it."""
    need("docker-registry", "skopeo")
    host = f"127.0.0.1:{free_port()}"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "storage")}}
    settings = {"version": "0.1", "log": {"level": "error"}, "storage": storage, "http": {"addr": host}}
    path = tmp_path / "registry.yml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    with open(tmp_path / "registry.log", "wb") as log:
        server = subprocess.Popen(["docker-registry", "serve", str(path)], stdout=log, stderr=log)
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(host.partition(":")[2]))):
            break
        time.sleep(0.05)
    yield host, server
    server.terminate()
    server.wait(10)


def test_d20_real_registry_then_no_registry(docker_registry, home):
    host, server = docker_registry
    layout = REPOSITORY / "tests" / "sample"
    destination = f"docker://{host}/team/sample:1"
    copy = ["skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", f"oci:{layout}:1", destination]
    subprocess.run(copy, check=True, timeout=60)
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    first = home.pull(f"{host}/team/sample:1")
    assert (first.returncode, first.stdout) == (0, f"{host}/team/sample:1@{digest}\n"), first.stderr
    assert "\x1b" not in first.stderr
    server.terminate()
    server.wait(10)
    again = home.pull("-q", f"{host}/team/sample:1")
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")


def test_d20_a_second_pull_asks_nothing(registry, home):
    name, added = sample(registry)
    first = home.pull(name)
    assert (first.returncode, first.stdout) == (0, f"{name}@{added.manifest_digest}\n"), first.stderr
    asked = registry.count()
    second = home.pull(name)
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert registry.count() == asked
    assert {x.name for x in home.layers.glob("*.extracted")} == {f"{x}.extracted" for x in added.layer_digests}


def test_wrong_byte_anywhere_changes_nothing(registry, home):
    """Layer, config, manifest and diff_id: exit 6, no output, the store as it was; then the good image works."""
    other, _ = sample(registry, repository="acme/other")
    assert home.pull(other).returncode == 0
    before = home.state()
    layer = gz(layer_tar([file("x", random.Random(1).randbytes(100_000))]))
    added = registry.add_image("acme/bad", "1", [layer])
    registry.add_image("acme/liar", "1", [layer], diff_ids=["sha256:" + "1" * 64])
    spoiled = {
        added.layer_digests[0]: Fault(flip=5000),
        added.config_digest: Fault(flip=3),
        "acme/bad/manifests/1": Fault(flip=30),
    }
    for match, fault in spoiled.items():
        with FaultRegistry() as bad:
            bad.blobs, bad.manifests = registry.blobs, registry.manifests
            bad.always(match, fault)
            run = home.pull(f"{bad.host}/acme/bad:1")
        assert (run.returncode, run.stdout) == (6, ""), (match, run.stderr)
        assert run.stderr.startswith("error: ") or "\nerror: " in run.stderr
        assert home.state() == before, match
    run = home.pull(f"{registry.host}/acme/liar:1")
    assert (run.returncode, run.stdout) == (6, ""), run.stderr
    assert home.state() == before
    run = home.pull(f"{registry.host}/acme/bad:1")
    assert run.returncode == 0, run.stderr


def test_any_one_wrong_byte_is_refused(registry, home):
    """Also where it makes no difference to the tree: times and names of gzip, spaces of JSON."""
    other, _ = sample(registry, repository="acme/other")
    assert home.pull(other).returncode == 0
    before = home.state()
    layer = gz(layer_tar([file("x", random.Random(1).randbytes(50_000))]))
    added = registry.add_image("acme/bad", "1", [layer])
    places = {
        added.layer_digests[0]: (0, 3, 4, 8, 9, 10, 20_000, len(layer) - 8, len(layer) - 4, len(layer) - 1),
        added.config_digest: (0, len(added.config_bytes) // 2, len(added.config_bytes) - 1),
        added.manifest_digest: (0, 60, len(added.manifest_bytes) - 1),
    }
    with FaultRegistry() as bad:
        bad.blobs, bad.manifests = registry.blobs, registry.manifests
        for digest, positions in places.items():
            for position in positions:
                bad.forget()
                bad.always(digest, Fault(flip=position))
                run = home.pull(f"{bad.host}/acme/bad@{added.manifest_digest}")
                assert (run.returncode, run.stdout) == (6, ""), (digest, position, run.stderr)
                assert home.state() == before, (digest, position)
                assert home.partials() == [], (digest, position)


def test_bad_input_is_told_in_three_lines(registry, home):
    """One error with what it is about, its cause and what to do; nothing published, nothing lost."""
    name, _ = sample(registry)
    chart = {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": "sha256:" + "1" * 64, "size": 2}
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": chart, "layers": []}
    registry.add_manifest("acme/app", "chart", manifest)
    dead = f"127.0.0.1:{free_port()}"
    assert home.pull(name).returncode == 0
    before = home.state()
    for argument, code, words in (
        (f"{registry.host}/acme/nothing:1", 3, ("not found", "hint: ")),
        (f"{registry.host}/acme/app:none", 3, ("not found", "hint: ")),
        (f"{dead}/acme/app:1", 5, (dead, "connection refused")),
        ("registry.invalid/acme/app:1", 5, ("registry.invalid", "cannot be resolved")),
        (f"{registry.host}/UPPER/case:1", 2, ('"UPPER"', "lower-case")),
        (f"{registry.host}/a b:1", 2, ("a b",)),
        (f"{registry.host}/a@sha256:12", 2, ("sha256:12",)),
        (f"{registry.host}/acme/app:chart", 6, ("helm",)),
    ):
        run = home.pull("-q", argument)
        assert (run.returncode, run.stdout) == (code, ""), (argument, run.stderr)
        lines = run.stderr.splitlines()
        assert lines[0].startswith("error: ") and len(lines) <= 3, run.stderr
        assert {line[:8] for line in lines[1:]} <= {"  cause:", "  hint: "}, run.stderr
        assert all(word in run.stderr for word in words), run.stderr
        assert home.state() == before, argument


def test_exit_codes(registry, home):
    name, _ = sample(registry)
    cases = {
        f"{registry.host}/acme/nothing:1": 3,
        f"{registry.host}/acme/app:none": 3,
        f"127.0.0.1:{free_port()}/acme/app:1": 5,
        f"{registry.host}/UPPER/case:1": 2,
        "oci:nowhere:1": 3,
    }
    for argument, code in cases.items():
        run = home.pull(argument)
        assert (run.returncode, run.stdout) == (code, ""), (argument, run.stderr)
        assert "Traceback" not in run.stderr
    assert home.run("pull", "--platform", "linux/riscv64", name).returncode == 3
    assert home.pull("--no-such-option", name).returncode == 2


def test_failure_as_json(registry, home):
    run = home.pull("--format", "json", f"{registry.host}/acme/nothing:1")
    document = json.loads(run.stdout)
    found = document if isinstance(document, dict) else document[0]
    assert run.returncode == 3 and "failed" in json.dumps(found)
    assert run.stdout.count("\n") == 1 or run.stdout.startswith(("{", "["))


def test_several_images_are_all_tried(registry, home):
    name, added = sample(registry)
    run = home.pull("-q", f"{registry.host}/acme/nothing:1", name)
    assert (run.returncode, run.stdout) == (3, f"{name}@{added.manifest_digest}\n")
    run = home.pull("-q", f"{registry.host}/acme/nothing:1", f"127.0.0.1:{free_port()}/acme/app:1")
    assert (run.returncode, run.stdout) == (1, "")


def test_tag_moves(registry, home):
    name, _ = sample(registry)
    assert home.pull(name).returncode == 0
    added = registry.add_image("acme/app", "1", [gz(layer_tar(TOP)), gz(layer_tar(BASE))])
    assert home.pull(name).stdout != f"{name}@{added.manifest_digest}\n"
    run = home.pull("--policy", "always", name)
    assert run.stdout == f"{name}@{added.manifest_digest}\n", run.stderr
    assert home.sql("SELECT count(*) FROM images") == [(1,)]
    assert home.sql("SELECT count(*) FROM manifests") == [(1,)]
    assert home.sql("SELECT count(*) FROM configs") == [(1,)]


def test_database_as_other_programs_read_it(registry, home):
    """Plain SQL over the tables of the format, as Microsandbox asks them."""
    name, added = sample(registry)
    assert home.pull(name).returncode == 0
    sizes = [len(registry.blobs[x]) for x in added.layer_digests]
    ((reference, size),) = home.sql("SELECT reference, size_bytes FROM images")
    assert (reference, size) == (name, sum(sizes) + len(added.config_bytes))
    layers = home.sql(
        "SELECT l.digest, l.diff_id, l.size_bytes FROM layers l JOIN manifest_layers ml ON ml.layer_id = l.id "
        "JOIN manifests m ON m.id = ml.manifest_id JOIN images i ON i.id = m.image_id ORDER BY l.id"
    )
    diff_ids = json.loads(added.config_bytes)["rootfs"]["diff_ids"]
    assert layers == list(zip(added.layer_digests, diff_ids, sizes, strict=True))
    ((architecture, system, recorded),) = home.sql("SELECT architecture, os, rootfs_diff_ids_json FROM configs")
    assert (architecture, system, json.loads(recorded)) == ("amd64", "linux", diff_ids)
    assert home.sql("SELECT count(*) FROM _sqlx_migrations WHERE success = 1") == [(7,)]
    for table in TABLES:
        for (when,) in home.sql(f"SELECT created_at FROM {table}"):
            time.strptime(when, "%Y-%m-%d %H:%M:%S")


def big_image(registry: FaultRegistry, size: int = 2_000_000):
    content = random.Random(7).randbytes(size)
    return f"{registry.host}/acme/big:1", registry.add_image("acme/big", "1", [gz(layer_tar([file("big", content)]))])


def started_and_arrived(home: Home, name: str, least: int) -> subprocess.Popen:
    """A pull of which at least so many bytes lie in the partial file."""
    process = home.start("pull", *LINUX, name)
    wait_for(lambda: process.poll() is not None or sum(x.stat().st_size for x in home.partials()) >= least)
    assert process.poll() is None, process.communicate()
    return process


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_d11_interrupted_then_resumed(registry, home, sent, code):
    """With the partial file kept; the next run asks for the rest only."""
    name, added = big_image(registry)
    registry.set_total_rate(400_000)
    process = started_and_arrived(home, name, 300_000)
    process.send_signal(sent)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, ""), error
    assert error.endswith(
        "error: interrupted\n  hint: what was downloaded is kept; run the same command again to continue\n"
    )
    (partial,) = home.partials()
    kept = partial.stat().st_size
    assert 300_000 <= kept < 2_000_000
    registry.set_total_rate(None)
    asked = len(registry.asked("/blobs/"))
    run = home.pull(name)
    assert (run.returncode, run.stdout) == (0, f"{name}@{added.manifest_digest}\n"), run.stderr
    blobs = [x for x in registry.asked("/blobs/")[asked:] if added.layer_digests[0] in x.path]
    assert [x.headers.get("range") for x in blobs] == [f"bytes={kept}-"]
    assert home.partials() == []


def test_d10_no_blob_stays_behind(registry, home, tmp_path):
    """Neither in the store nor where temporary files are, which a system shows to nobody."""
    name, _ = big_image(registry)
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    environment = program_environment(TMPDIR=str(elsewhere))
    pull = [*program(), "pull", "-q", *LINUX, name, *home.command]
    subprocess.run(pull, env=environment, cwd=tmp_path, check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert os.listdir(elsewhere) == []
    files = [x for x in home.store.rglob("*") if x.is_file() and ".extracted" not in str(x) and "/l/" not in str(x)]
    assert sum(x.stat().st_size for x in files) < 500_000, sorted(files)


def test_killed_then_pulled_again(registry, home):
    """After SIGKILL in the middle nothing is published, and the next run needs no help and leaves no remains."""
    name, added = big_image(registry)
    registry.set_total_rate(500_000)
    process = started_and_arrived(home, name, 200_000)
    process.kill()
    process.communicate(timeout=60)
    assert list(home.layers.glob("*.extracted")) == []
    registry.set_total_rate(None)
    run = home.pull(name)
    assert run.returncode == 0, run.stderr
    assert [x.name for x in home.layers.glob("*.extracted")] == [f"{added.layer_digests[0]}.extracted"]
    assert list((home.layers / ".msb-pull" / "staging").iterdir()) == []


def test_processes_side_by_side_fetch_each_layer_once(registry, home):
    name, added = big_image(registry)
    registry.set_total_rate(2_000_000)
    running = [home.start("pull", "-vv", *LINUX, name) for _ in range(3)]
    ended = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ended
    assert {out for out, _ in ended} == {f"{name}@{added.manifest_digest}\n"}
    (layer,) = added.layer_digests
    assert 1 <= registry.count(layer, "GET") <= 1 + unread("".join(log for _, log in ended))[layer[7:19]]


def test_damage_is_found_and_repaired(registry, home):
    """verify names the file, exit 6; --repair fetches the layer again; then all is well and the tree is the same."""
    name, added = sample(registry)
    assert home.pull(name).returncode == 0
    good = describe(home.layers / f"{added.layer_digests[0]}.extracted")
    assert home.run("verify").returncode == 0
    victim = home.layers / f"{added.layer_digests[0]}.extracted" / "etc" / "passwd"
    victim.write_bytes(victim.read_bytes().replace(b"root", b"toor", 1))
    found = home.run("verify")
    assert found.returncode == 6 and "etc/passwd" in found.stdout, found.stderr
    repaired = home.run("verify", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert home.run("verify").returncode == 0
    assert differences(good, describe(home.layers / f"{added.layer_digests[0]}.extracted")) == []


def test_d33_a_store_that_was_copied_without_attributes(registry, home, tmp_path):
    """Every file names what it lost, even where no byte of content differs; repair puts it right."""
    name, added = sample(registry)
    assert home.pull(name).returncode == 0
    good = describe(home.layers / f"{added.layer_digests[0]}.extracted")
    moved = Home(tmp_path)
    moved.store = tmp_path / "moved"
    moved.command[1] = str(moved.store)
    subprocess.run(["cp", "-r", "--preserve=mode,links,timestamps", home.store, moved.store], check=True)
    for options in ([], ["--quick"]):
        found = moved.run("verify", *options)
        assert found.returncode == 6 and "Traceback" not in found.stderr
        lost = [line.split("\t")[1:3] for line in found.stdout.splitlines()]
        assert ["/", "owner"] in lost and ["/etc/passwd", "owner"] in lost
        assert "--repair" in found.stderr
    assert moved.run("verify", "--repair").returncode == 0
    assert differences(good, describe(moved.layers / f"{added.layer_digests[0]}.extracted")) == []


def test_the_download_of_a_layer_that_got_its_name_goes(registry, home):
    """The last step before it is removed may fail, on a full disk, say: the layer is there, and so is its download."""
    first, added = sample(registry)
    assert home.pull(first).returncode == 0
    digest = added.layer_digests[0]
    (home.layers / ".msb-pull" / "partial" / digest).write_bytes(registry.blobs[digest])
    registry.add_image("acme/other", "1", [gz(layer_tar(BASE))])
    other = f"{registry.host}/acme/other:1"
    assert home.pull("--dry-run", other).returncode == 0
    assert [x.name for x in home.partials()] == [digest]
    assert home.pull(other).returncode == 0
    assert home.partials() == []


def test_a56_a_name_that_is_no_utf_8_in_every_output(registry, home):
    layer = gzip.compress(reg(b"caf\xe9", b"content") + END)
    name = f"{registry.host}/acme/bytes:1"
    added = registry.add_image("acme/bytes", "1", [layer])
    assert home.pull("--format", "json", name).returncode == 0
    tree = os.fsencode(home.layers / f"{added.layer_digests[0]}.extracted")
    assert os.listdir(tree) == [b"caf\xe9"]
    with open(os.path.join(tree, b"caf\xe9"), "wb") as file:
        file.write(b"CONTENT")
    found = home.run("verify", "--format", "json")
    assert (found.returncode, "Traceback" in found.stderr) == (6, False)
    damages = json.loads(found.stdout)["layers"][0]["damages"]
    assert {os.fsencode(damage["path"]) for damage in damages} == {b"/caf\xe9"}
    assert "/caf\\xe9\t" in home.run("verify").stdout


def test_saved_image_is_the_one_that_was_pulled(registry, home, tmp_path):
    """An archive that skopeo reads, with the digests of the registry, and that another store takes."""
    name, added = sample(registry)
    assert home.pull(name).returncode == 0
    archive = tmp_path / "saved.tar"
    saved = home.run("save", name, "-o", str(archive))
    assert saved.returncode == 0, saved.stderr
    (tmp_path / "other").mkdir()
    other = Home(tmp_path / "other")
    taken = other.pull(f"oci-archive:{archive}", "--as", "saved:1")
    assert taken.returncode == 0, taken.stderr
    diff_ids = json.loads(added.config_bytes)["rootfs"]["diff_ids"]
    assert [x for (x,) in other.sql("SELECT diff_id FROM layers ORDER BY id")] == diff_ids
    if shutil.which("skopeo"):
        shown = subprocess.run(
            ["skopeo", "inspect", "--config", "--raw", f"oci-archive:{archive}"], capture_output=True, timeout=60
        )
        assert json.loads(shown.stdout)["rootfs"]["diff_ids"] == diff_ids, shown.stderr


def test_removed_image_takes_its_own_layers_only(registry, home):
    shared = gz(layer_tar(BASE))
    one = registry.add_image("acme/one", "1", [shared, gz(layer_tar([file("1", "1")]))])
    registry.add_image("acme/two", "1", [shared, gz(layer_tar([file("2", "2")]))])
    names = [f"{registry.host}/acme/{x}:1" for x in ("one", "two")]
    assert home.pull(*names).returncode == 0
    run = home.run("rm", names[0])
    assert run.returncode == 0, run.stderr
    left = {x.name for x in home.layers.glob("*.extracted")}
    assert f"{one.layer_digests[0]}.extracted" in left and f"{one.layer_digests[1]}.extracted" not in left
    assert home.pull("--policy", "never", names[1]).returncode == 0
    assert os.listdir(home.layers / ".msb-pull" / "staging") == []
