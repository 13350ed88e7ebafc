"""Layers that the store has in another compression are made from what is there; whatever an image says of them."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from msb_pull.ground import events
from msb_pull.ground.errors import ContentError
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.digest import Digest
from msb_pull.image.manifest import Descriptor
from msb_pull.image.reference import Reference
from msb_pull.layer.noted import noted_diff_id
from msb_pull.source.login.credentials import CredentialStore
from msb_pull.source.registry.registry import RegistryClient, RegistryOptions
from msb_pull.store.index.keys import LayerKey
from msb_pull.work.pull.plan import WantedLayer
from msb_pull.work.pull.twins import Twins
from msb_pull.work.verify.layers import Verdict
from tests.support.archive import END, directory, reg
from tests.support.fault_registry import FaultRegistry, digest_of
from tests.support.home import gz
from tests.support.imagebuild import zstd
from tests.support.machine import ONE, TWO, Machine, lie
from tests.support.make_sample import BASE, TOP, layer_tar
from tests.support.treecompare import describe


@pytest.fixture
def machine(tmp_path):
    with FaultRegistry() as registry:
        yield Machine(tmp_path / "home", registry)


@pytest.mark.parametrize("tars", [[ONE, TWO], [layer_tar(BASE), layer_tar(TOP)]], ids=["plain", "sample"])
def test_d39_the_same_layers_in_another_compression_are_not_fetched(machine, tmp_path, tars):
    first, second = machine.add("gzip", tars), machine.add("zstd", tars, zstd.compress)
    machine.pull("gzip")
    planned = machine.pull("zstd", dry_run=True)
    assert [(x.present, x.reused) for x in planned.layers] == [(False, True)] * 2
    result = machine.pull("zstd")
    assert machine.layers_asked(first, second) == 0
    assert result.fetched == 0 and result.changed
    assert [x.path for x in planned.layers] == [x.path for x in result.layers]
    assert [(x.fetched, x.present, x.reused) for x in result.layers] == [(0, False, True)] * 2
    assert [(x.fetched, x.reused) for x in machine.seen if isinstance(x, events.LayerDone)] == [(0, True)] * 2
    assert machine.verdicts("zstd") == machine.verdicts("gzip") == {Verdict.PROVEN}
    other = Machine(tmp_path / "other", machine.registry)
    fetched = other.pull("zstd")
    for made, plain in zip(result.layers, fetched.layers, strict=True):
        assert Path(made.path).name != Path(plain.path).name
        assert describe(Path(made.path)) == describe(Path(plain.path))
    for tag in ("gzip", "zstd"):
        assert not machine.pull(tag).changed and not machine.registry.asked("")


@pytest.mark.parametrize("tars", [[ONE, TWO], [layer_tar(BASE), layer_tar(TOP)]], ids=["plain", "sample"])
def test_d40_what_was_not_downloaded_never_has_the_name_of_the_blob(machine, tars):
    """That is the one that Microsandbox takes for it, without any comparison."""
    machine.add("gzip", tars)
    image = machine.add("zstd", tars, zstd.compress)
    # A second base: a form made from what was made is not the blob either.
    upper = machine.add("upper", [directory(b"lower") + END, *tars], zstd.compress)
    machine.pull("gzip")
    plain = [machine.store.layer_dir(LayerKey.parse(x)) for x in image.layer_digests]
    machine.pull("zstd")
    made = machine.pull("upper")
    assert [x.reused for x in made.layers[1:]] == [True] * len(tars) and len(upper.layer_digests) == len(tars) + 1
    assert not any(os.path.lexists(x) for x in plain)
    fetched = machine.pull("zstd", force=True)
    assert [Path(x.path) for x in fetched.layers] == plain and machine.layers_asked(image) == len(tars)
    assert all(x.is_dir() for x in plain)
    assert machine.verdicts("gzip", "zstd", "upper") == {Verdict.PROVEN}


def test_d40_a_layer_lost_of_which_a_second_form_is_left(machine):
    """The one that was downloaded had the name of the blob; what is made in its place does not."""
    shared = reg(b"a/b", b"shared" * 1000) + END
    bases = [directory(b"a", mode=mode, uid=uid) + END for mode, uid in ((0o700, 1), (0o755, 0))]
    images = [machine.add(str(number), [base, shared]) for number, base in enumerate(bases)]
    plain = machine.directory(machine.pull("0"), 1)
    machine.pull("1")
    shutil.rmtree(plain)
    result = machine.pull("0")
    assert machine.layers_asked(*images) == 0 and result.layers[1].reused
    assert not plain.exists() and machine.directory(result, 1) != plain
    assert machine.verdicts("0", "1") == {Verdict.PROVEN}


def test_what_another_pull_made_meanwhile_is_not_made_again(machine):
    machine.add("gzip", [ONE])
    zstd_image = machine.add("zstd", [ONE], zstd.compress)
    machine.pull("gzip")
    other = Machine(machine.store.home, machine.registry)
    results = []
    waiting = threading.Thread(target=lambda: results.append(other.pull("zstd")))
    digest = Digest.parse(zstd_image.layer_digests[0])
    with machine.store.lock_layer(digest, lambda holder: None, Cancel()):
        waiting.start()
        while not any(isinstance(x, events.LayerWaiting) for x in list(other.seen)):
            assert waiting.is_alive()
            waiting.join(0.01)
        # As the holder of the lock would leave it.
        key = LayerKey.on(digest, "")
        made = LayerKey(Digest.parse(digest_of(gz(ONE))))
        shutil.copy(machine.store.record_path(made), machine.store.record_path(key))
        shutil.copy(machine.store.notes_path(made), machine.store.notes_path(key))
        shutil.copytree(machine.store.kept_path(made), machine.store.kept_path(key))
        shutil.copytree(machine.store.layer_dir(made), machine.store.layer_dir(key), symlinks=True)
        inode = machine.store.layer_dir(key).stat().st_ino
    waiting.join()
    (result,) = results
    assert result.layers[0].present and Path(result.layers[0].path) == machine.store.layer_dir(key)
    assert machine.directory(result).stat().st_ino == inode


def test_uncompressed_is_one_more_compression(machine):
    first, second = machine.add("plain", [ONE], bytes), machine.add("gzip", [ONE])
    machine.pull("gzip")
    machine.pull("plain")
    assert machine.layers_asked(first, second) == 0
    assert machine.verdicts("plain") == {Verdict.PROVEN}


def test_only_the_layers_that_are_here_are_made_from_them(machine):
    first, second = machine.add("gzip", [ONE]), machine.add("zstd", [ONE, TWO], zstd.compress)
    machine.pull("gzip")
    result = machine.pull("zstd")
    assert [x.reused for x in result.layers] == [True, False]
    assert machine.layers_asked(first, second) == 1


def test_another_form_of_a_layer_is_made_from_the_first(machine):
    """The directory that the layer implies has other facts on each base (A26)."""
    shared = reg(b"a/b", b"shared" * 1000) + END
    bases = [directory(b"a", mode=mode, uid=uid) + END for mode, uid in ((0o700, 1), (0o755, 0))]
    images = [machine.add(str(number), [base, shared]) for number, base in enumerate(bases)]
    results = [machine.pull("0")]
    results.append(machine.pull("1"))
    assert machine.layers_asked(*images) == 1
    assert results[0].layers[1].path != results[1].layers[1].path
    stats = [os.getxattr(machine.directory(x, 1) / "a", "user.containers.override_stat") for x in results]
    assert stats == [b"1:0:040700", b"0:0:040755"]
    assert machine.verdicts("0", "1") == {Verdict.PROVEN}


def test_a_layer_on_another_base_in_another_compression(machine):
    shared = reg(b"a/b", b"shared" * 1000) + END
    bases = [directory(b"a", mode=mode, uid=uid) + END for mode, uid in ((0o700, 1), (0o755, 0))]
    first, second = machine.add("gzip", [bases[0], shared]), machine.add("zstd", [bases[1], shared], zstd.compress)
    machine.pull("gzip")
    result = machine.pull("zstd")
    assert [x.reused for x in result.layers] == [False, True] and machine.layers_asked(first, second) == 1
    assert os.getxattr(machine.directory(result, 1) / "a", "user.containers.override_stat") == b"0:0:040755"
    assert machine.verdicts("gzip", "zstd") == {Verdict.PROVEN}


def test_force_fetches_all_the_same(machine):
    first, second = machine.add("gzip", [ONE]), machine.add("zstd", [ONE], zstd.compress)
    machine.pull("gzip")
    result = machine.pull("zstd", force=True)
    assert machine.layers_asked(first, second) == 1 and not result.layers[0].reused


def damage_content(machine, result):
    path = machine.directory(result) / "b"
    path.write_bytes(b"TWO")


def damage_kept(machine, result):
    digest = LayerKey.parse(result.layers[0].digest)
    (path,) = machine.store.kept_path(digest).iterdir()
    path.write_bytes(b"x" + path.read_bytes()[1:])


def damage_record(machine, result):
    path = machine.store.record_path(LayerKey.parse(result.layers[0].digest))
    path.write_bytes(path.read_bytes()[:-20])


def lose_record(machine, result):
    machine.store.record_path(LayerKey.parse(result.layers[0].digest)).unlink()


def lose_file(machine, result):
    (machine.directory(result) / "b").unlink()


def swap_notes(machine, result):
    """The notes of one layer beside the directory of another one."""
    one, two = (machine.store.notes_path(LayerKey.parse(x.digest)) for x in result.layers)
    two.write_bytes(one.read_bytes())
    machine.store.trash(machine.directory(result))


@pytest.mark.parametrize("damage", [damage_content, damage_kept, damage_record, lose_record, lose_file, swap_notes])
def test_a_damaged_layer_is_no_source(machine, damage):
    first, second = machine.add("gzip", [ONE, TWO]), machine.add("zstd", [ONE], zstd.compress)
    damage(machine, machine.pull("gzip"))
    result = machine.pull("zstd")
    assert machine.layers_asked(first, second) == 1 and not result.layers[0].reused
    assert any("could not be made from one with the same content" in text for text in machine.warnings())
    assert machine.verdicts("zstd") == {Verdict.PROVEN}
    assert list((machine.store.own / "staging").iterdir()) == []


def test_a_size_that_is_not_that_of_the_uncompressed_layer(machine):
    import json

    machine.add("gzip", [ONE])
    image = machine.add("plain", [ONE], bytes)
    manifest = json.loads(image.manifest_bytes)
    manifest["layers"][0]["size"] += 1
    machine.registry.add_manifest("acme/app", "plain", manifest)
    machine.pull("gzip")
    with pytest.raises(ContentError):
        machine.pull("plain")


# An image that says of a blob what is not so, to have its content taken for that of another image.


def test_d40_a_lie_does_not_outlive_the_truth(machine):
    machine.add("known", [ONE])
    lie(machine, TWO, ONE)
    honest = machine.add("honest", [TWO])
    machine.pull("known")
    assert machine.pull("lie").layers[0].reused
    result = machine.pull("honest")
    # The blob was fetched, and has the name that the lie did not get.
    assert machine.layers_asked(honest) == 1
    assert sorted(os.listdir(machine.directory(result))) == ["c"]
    assert machine.directory(result) == machine.store.layer_dir(LayerKey.parse(honest.layer_digests[0]))
    assert noted_diff_id(machine.store.notes_path(LayerKey.parse(result.layers[0].digest))) == digest_of(TWO)
    assert machine.verdicts("honest", "known") == {Verdict.PROVEN}
    assert Verdict.DAMAGED in machine.verdicts("lie")
    # The liar keeps what it wanted, where nobody else looks.
    for tag in ("honest", "lie", "known"):
        assert not machine.pull(tag).changed and not machine.registry.asked("")
    # Whoever pulls it anew meets the truth.
    with pytest.raises(ContentError, match="does not match its diff_id"):
        machine.pull("lie", force=True)
    assert machine.verdicts("honest", "known") == {Verdict.PROVEN}


def test_d40_the_truth_is_not_replaced_by_a_lie(machine):
    machine.add("known", [ONE])
    machine.add("honest", [TWO])
    lie(machine, TWO, ONE)
    machine.pull("known", "honest")
    with pytest.raises(ContentError, match="does not match its diff_id"):
        machine.pull("lie")
    assert machine.verdicts("known", "honest") == {Verdict.PROVEN}


def test_the_truth_may_come_while_a_lie_is_under_way(machine):
    machine.add("known", [ONE])
    machine.add("honest", [TWO])
    blob = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", Digest.parse(digest_of(gz(TWO))), len(gz(TWO)))
    machine.pull("known")
    source = RegistryClient(RegistryOptions(), CredentialStore.nobody(), Job()).source(Reference.parse("r.example/a:1"))
    twins = Twins(machine.store, source, off=False)
    lied = WantedLayer(blob, Digest.parse(digest_of(ONE)))
    assert twins.find(lied) is not None
    machine.pull("honest")
    assert twins.find(lied) is None
    assert twins.find(WantedLayer(blob, Digest.parse(digest_of(TWO)))) == LayerKey(blob.digest)


def test_what_is_true_may_be_made_while_a_lie_is_under_way(machine):
    """Both would have the same name."""
    machine.add("known", [ONE])
    machine.add("other", [TWO])
    made = machine.add("honest", [TWO], zstd.compress)
    machine.pull("known")
    machine.pull("other")
    source = RegistryClient(RegistryOptions(), CredentialStore.nobody(), Job()).source(Reference.parse("r.example/a:1"))
    twins = Twins(machine.store, source, off=False)
    size = len(zstd.compress(TWO))
    blob = Descriptor("application/vnd.oci.image.layer.v1.tar+zstd", Digest.parse(made.layer_digests[0]), size)
    lied = WantedLayer(blob, Digest.parse(digest_of(ONE)))
    assert twins.find(lied) is not None
    assert machine.pull("honest").layers[0].reused
    assert twins.find(lied) is None
    assert twins.find(WantedLayer(blob, Digest.parse(digest_of(TWO)))) == LayerKey.on(blob.digest, "")


def test_a_lie_about_a_layer_that_was_lost(machine):
    """Its image is recorded, and would find it complete."""
    machine.add("known", [ONE])
    machine.add("honest", [TWO])
    lie(machine, TWO, ONE)
    machine.pull("known")
    result = machine.pull("honest")
    shutil.rmtree(machine.directory(result))
    with pytest.raises(ContentError, match="does not match its diff_id"):
        machine.pull("lie")
    assert machine.pull("honest").changed
    assert machine.verdicts("honest") == {Verdict.PROVEN}


def test_a_lie_beside_the_truth_in_one_command(machine):
    machine.add("known", [ONE])
    honest = machine.add("honest", [TWO])
    lie(machine, TWO, ONE)
    machine.pull("known")
    machine.pull("lie", "honest")
    # In whatever order: who was honest is whole, at once or when it is pulled again.
    machine.pull("honest", policy="always")
    assert machine.verdicts("honest", "known") == {Verdict.PROVEN}
    assert honest.layer_digests[0] in {str(key) for key in machine.store.layers_there()}


def test_a_lie_about_a_layer_that_has_two_forms(machine):
    shared = reg(b"a/b", b"shared" * 1000) + END
    bases = [directory(b"a", mode=mode, uid=uid) + END for mode, uid in ((0o700, 1), (0o755, 0))]
    machine.add("known", [ONE])
    for number, base in enumerate(bases):
        machine.add(str(number), [base, shared])
    machine.pull("known")
    lie(machine, shared, ONE)
    machine.pull("lie")
    machine.pull("0")
    machine.pull("1")
    assert machine.verdicts("0", "1", "known") == {Verdict.PROVEN}
    with pytest.raises(ContentError):
        machine.pull("lie", force=True)
    assert machine.verdicts("0", "1", "known") == {Verdict.PROVEN}


def test_both_compressions_in_one_command(machine):
    machine.add("gzip", [ONE, TWO])
    machine.add("zstd", [ONE, TWO], zstd.compress)
    assert all(hasattr(x, "pinned") for x in machine.pull("gzip", "zstd"))
    assert machine.verdicts("gzip", "zstd") == {Verdict.PROVEN}
