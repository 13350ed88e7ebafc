"""Images that say of a blob what is not so, to have other content taken for it: no other image suffers from them."""

from __future__ import annotations

import io
import shutil
import threading

import pytest

from msb_pull.ground import events
from msb_pull.ground.errors import ContentError, NotFoundError
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.digest import Digest
from msb_pull.image.reference import Reference
from msb_pull.store.store import Store
from msb_pull.work.export.export import ExportOptions, export_image
from msb_pull.work.pull.transfer import Transfer
from msb_pull.work.save import Format, save_images
from msb_pull.work.verify.layers import Verdict
from msb_pull.work.verify.verify import verify_images
from tests.support.archive import END, directory, reg
from tests.support.fault_registry import FaultRegistry, digest_of
from tests.support.machine import ONE, TWO, Machine, lie


@pytest.fixture
def machine(tmp_path):
    with FaultRegistry() as registry:
        yield Machine(tmp_path / "home", registry)


def test_the_truth_comes_while_a_lie_waits_for_a_layer_below(machine):
    """What it had unpacked by then is not put in the place of what was downloaded since."""
    lower, shared = directory(b"a", mode=0o755) + END, reg(b"a/b", b"shared" * 1000) + END
    machine.add("known", [ONE, shared])
    below = machine.add("below", [lower])
    machine.add("honest", [TWO])
    machine.add("lie", [lower, TWO], diff_ids=[digest_of(lower), digest_of(shared)])
    machine.pull("known")
    other = Machine(machine.store.home, machine.registry)
    errors: list[BaseException] = []

    def lying() -> None:
        try:
            other.pull("lie")
        except BaseException as error:
            errors.append(error)

    waiting = threading.Thread(target=lying)
    with machine.store.lock_layer(Digest.parse(below.layer_digests[0]), lambda holder: None, Cancel()):
        waiting.start()
        while not any(isinstance(x, events.LayerWaiting) for x in list(other.seen)):
            assert waiting.is_alive()
            waiting.join(0.01)
        machine.pull("honest")
    waiting.join()
    assert [type(x) for x in errors] == [ContentError] and "does not match its diff_id" in str(errors[0])
    assert machine.verdicts("honest", "known") == {Verdict.PROVEN}


def lie_of_a_second_form(machine) -> None:
    """Adds ``known``, and ``0`` and ``1``, which have a layer on two bases, and ``lie``, which has it on the second."""
    shared = reg(b"a/b", b"shared" * 1000) + END
    bases = [directory(b"a", mode=mode, uid=uid) + END for mode, uid in ((0o700, 1), (0o755, 0))]
    machine.add("known", [ONE])
    for number, base in enumerate(bases):
        machine.add(str(number), [base, shared])
    machine.add("lie", [bases[1], shared], diff_ids=[digest_of(bases[1]), digest_of(ONE)])
    machine.pull("known")


def test_a_lie_that_the_truth_has_overtaken_is_not_recorded(machine, monkeypatch):
    """Both have the same base, and so one name."""
    lie_of_a_second_form(machine)
    other = Machine(machine.store.home, machine.registry)
    record = Transfer._record

    def truth_first(self) -> None:
        monkeypatch.setattr(Transfer, "_record", record)
        other.pull("0")
        other.pull("1")
        record(self)

    monkeypatch.setattr(Transfer, "_record", truth_first)
    with pytest.raises(ContentError, match="another content"):
        machine.pull("lie")
    assert machine.verdicts() == {Verdict.PROVEN}


def test_an_image_of_which_the_truth_has_a_layer_is_not_complete(machine):
    lie_of_a_second_form(machine)
    assert machine.pull("lie").layers[1].reused
    machine.pull("0")
    machine.pull("1")
    name = f"{machine.registry.host}/acme/app:lie"
    with pytest.raises(ContentError, match="diff_id"):
        save_images(machine.store, [name], io.BytesIO(), Format.OCI, Job())
    with pytest.raises(ContentError, match="diff_id"):
        export_image(machine.store, Reference.parse(name), io.BytesIO(), ExportOptions(), Job())
    with pytest.raises(NotFoundError):
        machine.pull("lie", policy="never")
    with pytest.raises(ContentError, match="does not match its diff_id"):
        machine.pull("lie")
    assert machine.verdicts("0", "1", "known") == {Verdict.PROVEN}
    report = verify_images(machine.store, [], Job())
    assert [x.reference.rpartition(":")[2] for x in report.misrecorded] == ["lie"]


def test_an_image_that_lost_a_layer_does_not_get_that_of_a_lie(machine, tmp_path):
    """Another home on the same layers does not know what this one's images say of a layer that was lost."""
    machine.add("known", [ONE])
    machine.add("honest", [TWO])
    lie(machine, TWO, ONE)
    result = machine.pull("honest")
    shutil.rmtree(machine.directory(result))
    other = Machine(tmp_path / "other", machine.registry)
    other.store = Store.open(tmp_path / "other", machine.store.layers)
    other.pull("known")
    assert other.pull("lie").layers[0].reused
    name = f"{machine.registry.host}/acme/app:honest"
    with pytest.raises(NotFoundError):
        save_images(machine.store, [name], io.BytesIO(), Format.OCI, Job())
    with pytest.raises(NotFoundError):
        export_image(machine.store, Reference.parse(name), io.BytesIO(), ExportOptions(), Job())
    with pytest.raises(NotFoundError):
        machine.pull("honest", policy="never")
    assert machine.pull("honest").changed
    assert machine.verdicts("honest") == {Verdict.PROVEN}


@pytest.mark.parametrize("liar", ["lie", "untruth"])
def test_verify_blames_only_the_image_that_lies(machine, liar):
    """Whichever is looked at first; and repairing does not spoil the rows of the other one."""
    machine.add("known", [ONE])
    lie(machine, TWO, ONE, liar)
    machine.add("truth", [TWO])
    machine.pull("known")
    machine.pull(liar)
    machine.pull("truth")
    for _ in range(3):
        report = verify_images(machine.store, [], Job())
        assert [x.reference.rpartition(":")[2] for x in report.misrecorded] == [liar]
        assert {x.verdict for x in report.layers} == {Verdict.PROVEN}
        assert all(not name.endswith(f":{liar}") for layer in report.layers for name in layer.images)
        report = machine.repair()
        assert [x.reference.rpartition(":")[2] for x in report.misrecorded] == [liar] and report.mended == ()
        (failure,) = report.failures
        assert f":{liar}: " in failure.message and "msb-pull rm" in (failure.hint or "")
    # Also where it is asked of alone.
    machine.repair(liar)
    assert machine.verdicts("truth", "known") == {Verdict.PROVEN}
