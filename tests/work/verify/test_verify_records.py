"""What is recorded of an image is held against the digest of its manifest: every row, and the copy beside layers."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import threading
from contextlib import closing

import pytest

from msb_pull.ground.running import Job
from msb_pull.store.store import Store
from msb_pull.work.prune.remove import remove_images
from msb_pull.work.pull.plan import PullOptions
from msb_pull.work.verify.layers import Verdict
from msb_pull.work.verify.repair import repair_layers
from msb_pull.work.verify.verify import verify_images
from tests.support.archive import END, directory, reg
from tests.support.fault_registry import FaultRegistry
from tests.support.home import Home, gz, sample

NEVER = threading.Event()
ZERO = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def pulled(tmp_path_factory):
    """A home with one image of two layers, and another that shares one of them; to be copied."""
    with FaultRegistry() as registry:
        home = Home(tmp_path_factory.mktemp("pulled"))
        shared = gz(directory(b"d") + reg(b"d/f", b"shared") + END)
        for name, own in (("one", b"1"), ("two", b"2")):
            registry.add_image(f"acme/{name}", "1", [shared, gz(reg(b"own", own) + END)])
            assert home.pull(f"{registry.host}/acme/{name}:1").returncode == 0
    return home


@pytest.fixture
def home(pulled, tmp_path):
    shutil.copytree(pulled.store, tmp_path / "store", symlinks=True)
    made = Home(tmp_path)
    assert made.run("verify").returncode == 0
    return made


def change(home: Home, *statements: str) -> None:
    with closing(sqlite3.connect(home.store / "oci.db", isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


def found_and_repaired(home: Home) -> str:
    """Verify must name what is wrong, and repair must mend it without any registry."""
    run = home.run("verify")
    assert run.returncode == 6, run
    assert "records of" in run.stderr
    assert home.run("verify", "--quick").returncode == 6
    repaired = home.run("verify", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    again = home.run("verify")
    assert (again.returncode, again.stdout) == (0, ""), again
    return run.stdout


OWN = {
    "manifest_digest": f"'{ZERO}'",
    "manifest": "cast('{}' as blob)",
    "config": 'cast(\'{"os": "linux"}\' as blob)',
    "layers_json": "'[]'",
    "platform": "'nonsense'",
    "pulled_at": "'yesterday'",
}
EDITS = {
    **{f"own {column}": f"UPDATE msb_pull_images SET {column} = {value}" for column, value in OWN.items()},
    "own sizes": "UPDATE msb_pull_images SET layers_json = replace(layers_json, '\"size\": ', '\"size\": 1')",
    "own row": "DELETE FROM msb_pull_images",
    "configs in the place of each other": "UPDATE msb_pull_images SET config = (SELECT config FROM msb_pull_images "
    "ORDER BY reference DESC LIMIT 1), manifest = manifest WHERE reference LIKE '%one%'",
    "image size": "UPDATE images SET size_bytes = 1",
    "manifest type": "UPDATE manifests SET media_type = 'x'",
    "manifest schema": "UPDATE manifests SET schema_version = 1",
    "manifest annotations": 'UPDATE manifests SET annotations_json = \'{"a": "b"}\'',
    "config gone": "DELETE FROM configs",
    "config command": "UPDATE configs SET config_cmd_json = '[\"/bin/evil\"]'",
    "config user": "UPDATE configs SET config_user = 'root2'",
    "config architecture": "UPDATE configs SET architecture = 'mips'",
    "config diff_ids": "UPDATE configs SET rootfs_diff_ids_json = '[]'",
    "layer diff_id": f"UPDATE layers SET diff_id = '{ZERO}'",
    "layer size": "UPDATE layers SET size_bytes = size_bytes + 1",
    "layer digest": f"UPDATE layers SET digest = '{ZERO}' WHERE id = 1",
    "layer gone": "DELETE FROM layers WHERE id = 1",
    "link gone": "DELETE FROM manifest_layers WHERE id = 1",
}


@pytest.mark.parametrize("statement", EDITS.values(), ids=EDITS)
def test_a_changed_row_is_damage_and_written_anew(home, statement):
    change(home, statement)
    found_and_repaired(home)


def test_layers_that_stand_in_another_order_are_put_right_and_that_is_told(home):
    """Microsandbox stacks them by their rows; an image that needed the other order may have gone."""
    change(home, "UPDATE layers SET id = 100 - id", "UPDATE manifest_layers SET layer_id = 100 - layer_id")
    run = home.run("verify")
    assert run.returncode == 0 and "corrected" in run.stderr
    again = home.run("verify")
    assert again.returncode == 0 and "corrected" not in again.stderr, again.stderr
    assert home.sql("SELECT count(*) FROM manifest_layers") == [(4,)]


def test_a_row_that_names_another_layer_never_lets_that_one_be_proven(home):
    """The layers are those of the manifest, whatever the rows say."""
    (listed,) = home.sql("SELECT layers_json FROM msb_pull_images WHERE reference LIKE '%one%'")[0]
    (other,) = home.sql("SELECT layers_json FROM msb_pull_images WHERE reference LIKE '%two%'")[0]
    layers, others = json.loads(listed), json.loads(other)
    change(home, f"UPDATE msb_pull_images SET layers_json = '{json.dumps([layers[0], others[1]])}' "
           "WHERE reference LIKE '%one%'")  # fmt: skip
    assert "layers other than its manifest" in found_and_repaired(home)


def copies(home: Home):
    return sorted((home.layers / ".msb-pull" / "images").glob("*.json"))


COPIES = {
    "removed": lambda data: None,
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "nested": lambda data: b"[" * 100_000,
    "another source": lambda data: data.replace(b'"registry"', b'"registri"'),
    "another digest": lambda data: data.replace(b'"manifest_digest": "sha256:', b'"manifest_digest": "sha256:0'),
    "another manifest": lambda data: data.replace(b'"manifest": "', b'"manifest": "' + base64.b64encode(b"{}  ")),
    "another time": lambda data: data.replace(b"20", b"19"),
}


@pytest.mark.parametrize("edit", COPIES.values(), ids=COPIES)
def test_a_copy_that_is_another_is_written_anew_and_that_is_told(home, edit):
    for path in copies(home):
        before = path.read_bytes()
        changed = edit(before)
        path.unlink() if changed is None else path.write_bytes(changed)
        run = home.run("verify")
        assert run.returncode == 0 and "rewritten" in run.stderr, run.stderr
        assert json.loads(path.read_bytes()) == json.loads(before)
        assert "rewritten" not in home.run("verify").stderr


def test_where_neither_rows_nor_copy_prove_themselves_the_image_is_damaged_and_the_other_verified(home):
    change(home, f"UPDATE msb_pull_images SET manifest_digest = '{ZERO}' WHERE reference LIKE '%one%'")
    for path in copies(home):
        if b"acme/one" in path.read_bytes():
            path.write_bytes(b"{}")
    run = home.run("verify", "--format", "json")
    document = json.loads(run.stdout)
    assert run.returncode == 6 and {layer["verdict"] for layer in document["layers"]} == {"proven"}
    assert ["acme/one" in record["image"] for record in document["records"]] == [True]
    run = home.run("verify", "--repair")
    assert run.returncode == 6 and "not repaired" in run.stderr


@pytest.fixture
def registry():
    with FaultRegistry() as running:
        yield running


def damaged(home: Home):
    """A report of damage, as repair gets it."""
    store = Store.open(home.store)
    for path in home.layers.glob("sha256:*/own"):
        path.write_bytes(b"damage")
    report = verify_images(store, [], Job())
    assert [layer.verdict for layer in report.damaged] == [Verdict.DAMAGED]
    return store, report


def repaired(store: Store, report):
    return repair_layers(store, report, lambda: pytest.fail("nothing of it is needed any more"), PullOptions(), Job())


def test_repair_never_moves_an_image_back(registry, tmp_path):
    home = Home(tmp_path)
    name = f"{registry.host}/acme/a:1"
    registry.add_image("acme/a", "1", [gz(reg(b"own", b"old") + END)])
    assert home.pull(name).returncode == 0
    store, report = damaged(home)
    registry.add_image("acme/a", "1", [gz(reg(b"new", b"new") + END)])
    assert home.pull("--policy", "always", name).returncode == 0
    before = home.sql("SELECT * FROM msb_pull_images")
    result = repaired(store, report)
    assert (result.damaged, result.failures) == ([], ())
    assert home.sql("SELECT * FROM msb_pull_images") == before


def test_repair_passes_over_an_image_that_has_gone(registry, tmp_path):
    home = Home(tmp_path)
    registry.add_image("acme/a", "1", [gz(reg(b"own", b"old") + END)])
    registry.add_image("acme/b", "1", [gz(reg(b"other", b"x") + END)])
    for name in ("a", "b"):
        assert home.pull(f"{registry.host}/acme/{name}:1").returncode == 0
    store, report = damaged(home)
    remove_images(store, [x for x in report.images if "acme/a" in x], Job())
    result = repaired(store, report)
    assert (result.damaged, result.failures) == ([], ())


def test_repair_records_nothing(registry, tmp_path):
    home = Home(tmp_path)
    name, _ = sample(registry)
    assert home.pull(name).returncode == 0
    (next(home.layers.glob("sha256:*/etc")) / "passwd").write_bytes(b"x")
    before = home.sql("SELECT * FROM msb_pull_images"), home.sql("SELECT * FROM images")
    assert home.run("verify", "--repair").returncode == 0
    assert (home.sql("SELECT * FROM msb_pull_images"), home.sql("SELECT * FROM images")) == before
