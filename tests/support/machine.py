"""A store of its own beside a registry that counts, and images that lie about what their blobs hold."""

from __future__ import annotations

import contextlib
from pathlib import Path

from msb_pull.ground import events
from msb_pull.ground.running import Job
from msb_pull.image.platform import Platform
from msb_pull.image.reference import parse_argument
from msb_pull.source.login.credentials import CredentialStore
from msb_pull.source.registry.registry import RegistryClient, RegistryOptions
from msb_pull.store.store import Store
from msb_pull.work.pull.images import pull_images
from msb_pull.work.pull.plan import PullOptions
from msb_pull.work.pull.pull import pull_image
from msb_pull.work.verify.layers import Verdict
from msb_pull.work.verify.repair import repair_layers
from msb_pull.work.verify.verify import verify_images
from tests.support.fault_registry import FaultRegistry, digest_of
from tests.support.home import gz
from tests.support.make_sample import file, folder, layer_tar

ONE = layer_tar([folder("./"), file("a", "one" * 1000), file("a", "another" * 1000), file("b", "two")])
TWO = layer_tar([folder("./"), file("c", "three" * 1000)])


class Machine:
    """A store of its own, and a registry that counts."""

    def __init__(self, home: Path, registry: FaultRegistry) -> None:
        self.store = Store.open(home)
        self.registry = registry
        self.seen: list[events.Event] = []

    def add(self, tag: str, tars, compress=gz, diff_ids=None):
        return self.registry.add_image(
            "acme/app", tag, [compress(tar) for tar in tars], diff_ids=diff_ids or [digest_of(tar) for tar in tars]
        )

    def pull(self, *tags: str, **options):
        """The result, and how many requests for blobs it took; of several tags, outcomes."""
        self.registry.forget()
        self.seen.clear()
        job = Job(self.seen.append)
        settled = PullOptions(**{"platform": Platform("linux", "amd64"), **options})
        arguments = [parse_argument(f"{self.registry.host}/acme/app:{tag}") for tag in tags]
        client = RegistryClient(RegistryOptions(retries=0), CredentialStore.nobody(), job)
        with contextlib.closing(client):
            if len(arguments) == 1:
                return pull_image(arguments[0], self.store, lambda: client, settled, job)
            return pull_images(arguments, self.store, lambda: client, settled, job)

    def layers_asked(self, *images) -> int:
        configs = {image.config_digest for image in images}
        return sum(x.path.rpartition("/")[2] not in configs for x in self.registry.asked("/blobs/"))

    def warnings(self) -> list[str]:
        return [event.text for event in self.seen if isinstance(event, events.Warned)]

    def verdicts(self, *tags: str) -> set[Verdict]:
        names = [f"{self.registry.host}/acme/app:{tag}" for tag in tags]
        report = verify_images(self.store, names, Job())
        assert not report.misrecorded or tags == ("lie",)
        return {layer.verdict for layer in report.layers}

    def repair(self, *tags: str):
        """Verifies images, all of them where none is named, and repairs what is wrong."""
        report = verify_images(self.store, [f"{self.registry.host}/acme/app:{tag}" for tag in tags], Job())
        client = RegistryClient(RegistryOptions(retries=0), CredentialStore.nobody(), Job())
        with contextlib.closing(client):
            options = PullOptions(platform=Platform("linux", "amd64"))
            return repair_layers(self.store, report, lambda: client, options, Job())

    def directory(self, result, position: int = 0) -> Path:
        return Path(result.layers[position].path)


def lie(machine, truth: bytes, claimed: bytes, tag: str = "lie"):
    """Lists the blob of ``truth`` with the diff_id of ``claimed``."""
    return machine.add(tag, [truth], diff_ids=[digest_of(claimed)])
