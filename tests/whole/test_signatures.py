"""Signatures from the rules in a configuration file to the exit code, and what the store keeps of them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from msb_pull import ExitCode
from tests.conftest import program, program_environment
from tests.support.fault_registry import OCI_MANIFEST, Fault, FaultRegistry
from tests.support.home import Home, gz, sample
from tests.support.imagebuild import simple_layout
from tests.support.make_sample import BASE, TOP, layer_tar
from tests.support.sample import MANIFEST, SAMPLE
from tests.support.signing import Layer, Signer, bundle, list_referrers, manifest_of, payload, refer, rule, sign, tag_of

LAYERS = [gz(layer_tar(BASE)), gz(layer_tar(TOP))]


class World:
    """A registry with one image, a home whose rules ask for a key, and that key."""

    def __init__(self, folder: Path, registry: FaultRegistry) -> None:
        self.registry = registry
        self.home = Home(folder)
        self.key = Signer.make("ed25519")
        self.stranger = Signer.make("p256")
        self.key.write(folder / "acme.pub")
        self.name, self.image = sample(registry)
        self.digest = self.image.manifest_digest
        self.rules(rule(f"{registry.host}/acme/*", key="acme.pub"))

    def rules(self, *rules: str) -> None:
        self.home.config.write_text("\n".join(["[pull]", "retries = 0", *rules]))

    def sign(self, digest: str | None = None, *signers: Signer) -> None:
        sign(self.registry, "acme/app", digest or self.digest, *(signers or (self.key,)))

    def add_index(self, tag: str = "1") -> tuple[str, str]:
        """An index with the image for two platforms under the tag; returns its digest and that of the other image."""
        other = self.registry.add_image("acme/app", None, LAYERS[:1], platform=("linux", "arm64", "v8"))
        entries = [
            {
                "mediaType": OCI_MANIFEST,
                "digest": image.manifest_digest,
                "size": len(image.manifest_bytes),
                "platform": {"os": "linux", "architecture": architecture},
            }
            for image, architecture in ((self.image, "amd64"), (other, "arm64"))
        ]
        return self.registry.add_index("acme/app", tag, entries), other.manifest_digest

    def pull(self, *words: str) -> subprocess.CompletedProcess:
        self.registry.forget()
        return self.home.pull(*(words or (self.name,)))

    def layers_asked(self) -> int:
        return sum(self.registry.count(digest) for digest in self.image.layer_digests)

    @property
    def kept(self) -> Path:
        name = hashlib.sha256(self.name.encode()).hexdigest()
        return self.home.layers / ".msb-pull" / "images" / f"{name}.signature"


@pytest.fixture
def world(tmp_path):
    with FaultRegistry() as registry:
        yield World(tmp_path, registry)


def ok(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, done.stderr


def refused(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == ExitCode.UNSIGNED, done.stderr
    assert "not signed as required" in done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


def test_signed_and_not(world):
    refused(world.pull(), "signatures[1]", "/acme/*", "acme.pub (SHA256:", "there is no signature")
    assert world.layers_asked() == 0 and not world.kept.exists()
    world.sign()
    ok(world.pull())
    assert world.layers_asked() == 2
    ok(world.pull())
    assert world.registry.requests == []


def test_as_json(world):
    done = world.pull("--format", "json", world.name)
    document = json.loads(done.stdout)
    assert (done.returncode, document["error"]["code"], document["error"]["kind"]) == (8, 8, "unsigned")


def test_the_image_itself_is_kept_shown_and_verified_again(world):
    world.sign()
    ok(world.pull())
    shown = world.home.run("inspect", world.name)
    assert "Signed by" in shown.stdout and "acme.pub (SHA256:" in shown.stdout
    (signature,) = json.loads(world.home.run("inspect", "--format", "json", world.name).stdout)["signatures"]
    assert signature["signed"] == world.digest
    world.registry.forget()
    ok(world.home.run("verify"))
    assert world.registry.requests == []


def test_the_index_is_what_was_signed(world):
    index, _ = world.add_index()
    world.sign(index)
    ok(world.pull())
    (signature,) = json.loads(world.home.run("inspect", "--format", "json", world.name).stdout)["signatures"]
    assert signature["signed"] == index
    ok(world.home.run("verify"))
    ok(world.pull())
    assert world.registry.requests == []


def test_an_image_of_a_signed_index_named_by_its_own_digest_is_not_signed(world):
    """Nothing says then which index it was."""
    index, _ = world.add_index()
    world.sign(index)
    refused(world.pull(f"{world.registry.host}/acme/app@{world.digest}"))
    ok(world.pull(f"{world.registry.host}/acme/app@{index}"))


def test_the_image_of_an_index_may_be_signed_itself(world):
    _, other = world.add_index()
    world.sign()
    ok(world.pull())
    refused(world.pull("--platform", "linux/arm64", world.name))
    world.sign(other)
    ok(world.pull("--platform", "linux/arm64", world.name))


def test_a_signature_of_the_other_platform_does_not_count(world):
    _, other = world.add_index()
    world.sign(other)
    refused(world.pull())
    assert world.layers_asked() == 0


def test_an_image_that_was_here_before_the_rule_costs_one_question(world):
    world.rules()
    ok(world.pull())
    world.rules(rule("*", key="acme.pub"))
    refused(world.pull("--policy", "never", world.name), "nothing that was kept")
    assert world.registry.requests == []
    refused(world.pull())
    world.sign()
    ok(world.pull())
    assert world.layers_asked() == 0 and world.kept.exists()
    for words in (world.name,), ("--policy", "never", world.name):
        ok(world.pull(*words))
        assert world.registry.requests == []


def test_an_image_of_an_index_that_was_here_before_the_rule(world):
    index, _ = world.add_index()
    world.rules()
    ok(world.pull())
    world.rules(rule("*", key="acme.pub"))
    world.sign(index)
    ok(world.pull())
    assert world.layers_asked() == 0
    ok(world.home.run("verify"))


def test_what_the_tag_has_become_proves_nothing_of_what_is_here(world):
    world.rules()
    ok(world.pull())
    later = world.registry.add_image("acme/app", "1", LAYERS[:1])
    world.sign(later.manifest_digest)
    world.rules(rule("*", key="acme.pub"))
    refused(world.pull())
    assert world.layers_asked() == 0
    ok(world.pull("--policy", "always", world.name))


def test_a_moved_tag_needs_a_signature_of_its_own(world):
    world.sign()
    ok(world.pull())
    later = world.registry.add_image("acme/app", "1", LAYERS[:1])
    refused(world.pull("--policy", "always", world.name))
    # What is here stays, with its signature.
    ok(world.pull())
    ok(world.home.run("verify"))
    world.sign(later.manifest_digest)
    ok(world.pull("--policy", "always", world.name))
    (signature,) = json.loads(world.home.run("inspect", "--format", "json", world.name).stdout)["signatures"]
    assert signature["signed"] == later.manifest_digest


def test_without_a_network_the_kept_signature_counts(world):
    world.sign()
    ok(world.pull())
    world.registry.stop()
    for policy in "missing", "never", "newer":
        ok(world.home.pull("--policy", policy, world.name))
    world.kept.unlink()
    refused(world.home.pull("--policy", "never", world.name))
    assert world.home.pull("--policy", "newer", world.name).returncode == ExitCode.NETWORK
    assert world.home.pull(world.name).returncode == ExitCode.NETWORK


def test_a_new_key_makes_the_kept_signature_worthless(world):
    world.sign()
    ok(world.pull())
    world.stranger.write(world.home.folder / "acme.pub")
    refused(world.pull(), "not made with a key of the rule")
    done = world.home.run("verify")
    assert done.returncode == ExitCode.UNSIGNED
    assert done.stdout.startswith(f"{world.name}\tsignature\trecord\t")
    document = json.loads(world.home.run("verify", "--format", "json").stdout)
    assert [x["image"] for x in document["unsigned"]] == [world.name]
    assert (document["status"], document["error"]["code"]) == ("failed", 8)


def changes(kept: dict) -> dict[str, object]:
    signature = kept["signatures"][0]
    return {
        "other digest": kept | {"digest": "sha256:" + "5" * 64},
        "other version": kept | {"version": 2},
        "no signatures": kept | {"signatures": []},
        "no list": kept | {"signatures": {}},
        "no time": kept | {"checked_at": ""},
        "another signature": kept | {"signatures": [signature | {"signature": "AAAA"}]},
        "no signature": kept | {"signatures": [signature | {"signature": None}]},
        "another document": kept | {"signatures": [signature | {"document": "e30="}]},
        "no base64": kept | {"signatures": [signature | {"document": "%"}]},
        "signed something else": kept | {"signatures": [signature | {"signed": "sha256:" + "5" * 64}]},
    }


@pytest.mark.parametrize("name", [*changes({"signatures": [{}]}), "text", "nothing", "a fifo", "too much", "bytes"])
def test_a_kept_signature_that_was_changed_is_asked_for_again(world, name):
    world.sign()
    ok(world.pull())
    good = world.kept.read_bytes()
    if name == "a fifo":
        world.kept.unlink()
        os.mkfifo(world.kept)
    elif name == "too much":
        world.kept.write_bytes(good + b" " * (5 << 20))
    else:
        raw = {"text": b"signed", "nothing": b"", "bytes": b"\xff" * 100}.get(name)
        world.kept.write_bytes(raw if raw is not None else json.dumps(changes(json.loads(good))[name]).encode())
    done = world.home.run("verify")
    assert done.returncode == ExitCode.UNSIGNED, done.stdout + done.stderr
    ok(world.home.run("inspect", world.name))
    if name == "a fifo":
        world.kept.unlink()
    ok(world.pull())
    assert world.layers_asked() == 0 and world.registry.requests
    ok(world.home.run("verify"))


def test_without_a_rule_a_damaged_signature_is_still_told(world):
    world.sign()
    ok(world.pull())
    world.rules()
    ok(world.home.run("verify"))
    kept = json.loads(world.kept.read_bytes())
    kept["signatures"][0]["signature"] = "AAAA"
    world.kept.write_text(json.dumps(kept))
    done = world.home.run("verify")
    assert (done.returncode, "its signature is lost" in done.stderr) == (ExitCode.UNSIGNED, True)
    ok(world.pull())


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_an_index_that_does_not_hold_the_image_proves_nothing(world):
    """Signature and index are genuine, but of something else."""
    index, _ = world.add_index("2")
    elsewhere = world.registry.add_index("acme/app", "3", [])
    world.sign(index)
    ok(world.pull(f"{world.registry.host}/acme/app:2"))
    name = hashlib.sha256(f"{world.registry.host}/acme/app:2".encode()).hexdigest()
    path = world.kept.with_name(f"{name}.signature")
    kept = json.loads(path.read_bytes())
    world.sign(elsewhere)
    document = payload(f"{world.registry.host}/acme/app", elsewhere)
    kept["indexes"] = [text_of(world.registry.manifests["acme/app", "3"][0])]
    kept["signatures"][0] |= {
        "document": text_of(document), "signature": text_of(world.key.sign(document)), "signed": elsewhere,
    }  # fmt: skip
    path.write_text(json.dumps(kept))
    done = world.home.run("verify")
    assert done.returncode == ExitCode.UNSIGNED and "does not lead to the image" in done.stdout


def test_it_goes_with_the_image_and_survives_the_database(world):
    world.sign()
    ok(world.pull())
    (world.home.store / "oci.db").unlink()
    ok(world.pull())
    assert world.registry.requests == []
    ok(world.home.run("rm", world.name))
    assert not world.kept.exists()


def test_rules_that_accept_and_reject(world):
    world.rules(rule(f"{world.registry.host}/acme/*", accept=True), rule("*", reject=True))
    ok(world.pull())
    assert world.registry.count(tag_of(world.digest)) == 0
    done = world.pull(f"{world.registry.host}/other/app:1")
    refused(done, "signatures[2]", "takes no such image")
    assert world.registry.requests == []


def test_options_of_one_run(world):
    world.rules(rule("ghcr.io/*", key="acme.pub"))
    key = str(world.home.folder / "acme.pub")
    refused(world.pull("--require-signature", key, world.name), "--require-signature asks for one made with")
    world.sign()
    strange = world.stranger.write(world.home.folder / "stranger.pub")
    refused(world.pull("--require-signature", strange, world.name))
    ok(world.pull("--require-signature", strange, "--require-signature", key, world.name))
    ok(world.pull("--no-signature-check", world.name))
    both = world.pull("--require-signature", key, "--no-signature-check", world.name)
    assert (both.returncode, "exclude each other" in both.stderr) == (ExitCode.USAGE, True)
    missing = world.pull("--require-signature", "missing.pub", "--policy", "always", world.name)
    assert (missing.returncode, "missing.pub" in missing.stderr) == (ExitCode.USAGE, True)


def test_a_key_of_a_user_that_is_unknown(world):
    done = world.pull("--require-signature", "~nobody-of-this-name/acme.pub", world.name)
    assert (done.returncode, "unknown home directory" in done.stderr) == (ExitCode.USAGE, True), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the default place of the file")
def test_a_configuration_file_that_cannot_be_read_stops_pull_and_verify(world):
    """Any of its rules might be about this image."""
    (world.home.folder / "msb-pull" / "config.toml").mkdir(parents=True)
    environment = program_environment(
        XDG_CONFIG_HOME=str(world.home.folder), MICROSANDBOX_HOME=str(world.home.store),
        MSB_PULL_PLATFORM="linux/amd64", PYTHONPATH=str(Path(__file__).parents[2]),
    )  # fmt: skip
    world.rules()
    ok(world.pull())
    code = (
        "import sys, msb_pull\n"
        "msb_pull.pull_image(sys.argv[1], msb_pull.Store.open(), msb_pull.PullOptions(signatures=()))\n"
        "try:\n"
        "    msb_pull.pull_image(sys.argv[1], msb_pull.Store.open())\n"
        "except msb_pull.UsageError as error:\n"
        "    sys.exit(str(error))\n"
    )
    asking = [["pull", world.name], ["verify"]]
    for words in ([*program(), *asking[0]], [*program(), *asking[1]], [sys.executable, "-c", code, world.name]):
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode in (1, 2) and "may hold rules about signatures" in done.stderr, done
    assert subprocess.run([*program(), "ls"], env=environment, capture_output=True, timeout=60).returncode == 0


def test_a_signature_is_asked_for_at_its_registry_alone(world):
    """Whoever may push one could otherwise have any address asked."""
    with FaultRegistry() as elsewhere:
        document = payload(f"{world.registry.host}/acme/app", world.digest)
        manifest = manifest_of(world.registry, [Layer.of(world.key, document)])
        digest = manifest["layers"][0]["digest"]
        manifest["layers"][0]["urls"] = [f"{elsewhere.url}/there"]
        world.registry.add_manifest("acme/app", tag_of(world.digest), manifest)
        elsewhere.files["/there"] = world.registry.blobs.pop(digest), "application/json"
        refused(world.pull(), "its document cannot be read")
        assert elsewhere.requests == []


def test_no_signature_check_lifts_no_rule(world):
    refused(world.pull("--no-signature-check", world.name), "--no-signature-check does not lift that")
    assert world.registry.requests == []
    world.sign()
    ok(world.pull())
    refused(world.pull("--no-signature-check", world.name))


def test_both_the_rule_and_the_run_must_be_fulfilled(world):
    strange = world.stranger.write(world.home.folder / "stranger.pub")
    world.sign()
    refused(world.pull("--require-signature", strange, world.name))
    world.sign(None, world.key, world.stranger)
    ok(world.pull("--require-signature", strange, world.name))
    assert len(json.loads(world.kept.read_bytes())["signatures"]) == 2
    ok(world.home.run("verify"))


def test_a_dry_run_checks_and_keeps_nothing(world):
    refused(world.pull("--dry-run", world.name))
    world.sign()
    ok(world.pull("--dry-run", world.name))
    assert not world.kept.exists()


def test_force_checks_again(world):
    world.sign()
    ok(world.pull())
    del world.registry.manifests["acme/app", tag_of(world.digest)]
    refused(world.pull("--force", world.name))
    assert world.layers_asked() == 0
    ok(world.pull())


def test_several_images(world):
    other = world.registry.add_image("acme/other", "1", LAYERS[:1])
    free = world.registry.add_image("free/app", "1", LAYERS[1:])
    world.sign()
    names = [world.name, f"{world.registry.host}/acme/other:1", f"{world.registry.host}/free/app:1"]
    done = world.pull(*names)
    assert done.returncode == ExitCode.UNSIGNED
    assert [line.partition("@")[0] for line in done.stdout.split()] == [names[0], names[2]]
    assert other.manifest_digest != free.manifest_digest


def test_bundles_that_refer_to_the_index(world):
    index, _ = world.add_index()
    refer(world.registry, "acme/app", index, bundle(world.key, index), api=False)
    ok(world.pull())
    ok(world.home.run("verify"))


@pytest.mark.parametrize("at_mirror", [True, False])
def test_mirrors_are_asked_first(world, at_mirror):
    with FaultRegistry() as mirror:
        sample(mirror)
        mirrors = f'[registries."{world.registry.host}"]\nmirrors = ["{mirror.url}"]\n'
        world.rules(mirrors, rule(f"{world.registry.host}/acme/*", key="acme.pub"))
        document = sign(world.registry, "acme/app", world.digest, world.key)
        if at_mirror:
            mirror.manifests["acme/app", tag_of(world.digest)] = world.registry.manifests["acme/app", document]
            mirror.blobs.update(world.registry.blobs)
        done = world.pull()
        ok(done)
        # Most mirrors have no signatures, and are no worse for that.
        assert "MANIFEST_UNKNOWN" not in done.stderr
        assert (world.registry.count(tag_of(world.digest)) == 0) == at_mirror


def test_an_empty_list_of_a_mirror_is_not_the_last_word(world):
    with FaultRegistry() as mirror:
        sample(mirror)
        list_referrers(mirror, "acme/app", world.digest, [])
        refer(world.registry, "acme/app", world.digest, bundle(world.key, world.digest))
        mirrors = f'[registries."{world.registry.host}"]\nmirrors = ["{mirror.url}"]\n'
        world.rules(mirrors, rule(f"{world.registry.host}/acme/*", key="acme.pub"))
        ok(world.pull())


def test_a_mirror_cannot_give_another_name(world):
    """It hands out a genuine signature that was made for its own name."""
    with FaultRegistry() as mirror:
        sample(mirror)
        sign(mirror, "acme/app", world.digest, world.key)
        mirrors = f'[registries."{world.registry.host}"]\nmirrors = ["{mirror.url}"]\n'
        world.rules(mirrors, rule(f"{world.registry.host}/acme/*", key="acme.pub"))
        refused(world.pull(), "for another repository")
        assert mirror.bytes_sent(world.image.layer_digests[0]) == 0


def test_registries_that_answer_oddly_to_the_list_of_referrers(world):
    world.sign(None, world.stranger)
    refer(world.registry, "acme/app", world.digest, bundle(world.key, world.digest), api=False)
    path = f"/v2/acme/app/referrers/{world.digest}"
    for number, fault in enumerate((Fault(status=400), Fault(status=501), Fault(body=b"<html>", status=200))):
        world.registry.forget()
        world.registry.script(path, fault, times=9)
        done = world.home.pull("--policy", "always", f"{world.registry.host}/acme/app:1")
        assert done.returncode == 0, (number, done.stderr)


class Layout:
    """A copy of the sample as a layout, with more entries in its index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(SAMPLE, folder)

    def blob(self, data: bytes) -> dict:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / "sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def add(self, source: FaultRegistry, name: str, **entry) -> None:
        """Copies a manifest of a registry, with its blobs, under what the fields say."""
        data, media_type = source.manifests["acme/app", name]
        document = json.loads(data)
        for descriptor in [*document.get("layers", []), document.get("config")]:
            if descriptor:
                self.blob(source.blobs[descriptor["digest"]])
        path = self.folder / "index.json"
        index = json.loads(path.read_bytes())
        index["manifests"].append({"mediaType": media_type, **self.blob(data), **entry})
        path.write_text(json.dumps(index))


@pytest.mark.parametrize("way", ["tag", "cosign save", "refers", "list", "none", "stranger", "another name"])
def test_layouts(world, way, tmp_path):
    layout = Layout(tmp_path / "layout")
    name = "registry.example.com/acme/app"
    signer = world.stranger if way == "stranger" else world.key
    if way in ("refers", "list"):
        refer(world.registry, "acme/app", MANIFEST, bundle(signer, MANIFEST), api=False)
        list_name = MANIFEST.replace(":", "-")
        made = json.loads(world.registry.manifests["acme/app", list_name][0])["manifests"][0]["digest"]
        if way == "refers":
            layout.add(world.registry, made, artifactType="application/vnd.dev.sigstore.bundle.v0.3+json")
        else:
            layout.add(world.registry, made)
            path = layout.folder / "index.json"
            index = json.loads(path.read_bytes())
            index["manifests"].pop()
            path.write_text(json.dumps(index))
            layout.add(world.registry, list_name, annotations={"org.opencontainers.image.ref.name": list_name})
    elif way != "none":
        claimed = "ghcr.io/evil/app" if way == "another name" else name
        sign(world.registry, "acme/app", MANIFEST, signer, name=claimed)
        annotations = (
            {"kind": "dev.cosignproject.cosign/sigs"}
            if way == "cosign save"
            else {"org.opencontainers.image.ref.name": tag_of(MANIFEST)}
        )
        layout.add(world.registry, tag_of(MANIFEST), annotations=annotations)
    world.rules(rule("registry.example.com/*", key="acme.pub"))
    done = world.pull(f"oci:{layout.folder}:1", "--as", f"{name}:1")
    if way in ("none", "stranger", "another name"):
        refused(done, "signatures[1]")
        assert not list(world.home.layers.glob("sha256*"))
        return
    ok(done)
    ok(world.pull(f"oci:{layout.folder}", "--as", f"{name}:1"))
    ok(world.home.run("verify"))
    ok(world.pull("--policy", "never", f"{name}:1"))
    subprocess.run(["tar", "-C", str(layout.folder), "-cf", str(tmp_path / "a.tar"), "."], check=True, timeout=60)
    ok(world.pull(f"oci-archive:{tmp_path / 'a.tar'}:1", "--as", f"{name}:2"))


def test_the_name_that_a_layout_carries_falls_under_the_rules(world, tmp_path):
    simple_layout(tmp_path / "layout", [layer_tar(BASE)], "registry.example.com/acme/app:1")
    world.rules(rule("registry.example.com/*", key="acme.pub"))
    refused(world.pull(f"oci:{tmp_path / 'layout'}"), "there is no signature")
    refused(world.pull(f"oci:{tmp_path / 'layout'}", "--no-signature-check"))
    ok(world.pull(f"oci:{tmp_path / 'layout'}", "--as", "localhost/app:1"))


def test_archives_of_docker_hold_no_signatures(world, tmp_path):
    world.rules()
    ok(world.pull())
    ok(world.home.run("save", world.name, "--format", "docker", "-o", str(tmp_path / "d.tar")))
    world.rules(rule("*", key="acme.pub"))
    refused(world.pull(f"docker-archive:{tmp_path / 'd.tar'}", "--as", "localhost/app:1"), "holds no signatures")


def test_rules_hold_for_programs_too(world):
    code = (
        "import sys, msb_pull\n"
        "store = msb_pull.Store.open()\n"
        "try:\n"
        "    msb_pull.pull_image(sys.argv[1], store)\n"
        "except msb_pull.SignatureError as error:\n"
        "    print(int(error.exit_code))\n"
        "msb_pull.pull_image(sys.argv[1], store, msb_pull.PullOptions(signatures=()))\n"
    )
    environment = program_environment(
        MICROSANDBOX_HOME=str(world.home.store), MSB_PULL_CONFIG=str(world.home.config),
        MSB_PULL_PLATFORM="linux/amd64", PYTHONPATH=str(Path(__file__).parents[2]),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, world.name], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr


def test_where_no_rule_asks_nothing_is_loaded_for_it(world):
    world.rules()
    ok(world.pull())
    code = (
        "import sys\nfrom msb_pull.cli.app import main\n"
        "main(sys.argv[1:])\n"
        "print(*[name for name in sys.modules if name.split('.')[0] in ('cryptography', 'sigstore') "
        "or name.startswith(('msb_pull.trust', 'msb_pull.config.sig', 'msb_pull.work.signed'))], file=sys.stderr)"
    )
    for words in (["pull", "-q", "--platform", "linux/amd64", world.name], ["verify", "-q"], ["inspect", world.name]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words, *world.home.command],
            env=program_environment(PYTHONPATH=str(Path(__file__).parents[2])),
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.stderr.strip() == "", words


def test_what_is_locked_counts_as_signed_under_its_index(world):
    """The lock file names the manifest, which is what is pulled; cosign signed the index above it."""
    index, _ = world.add_index()
    world.sign(index)
    lock = world.home.folder / "images.lock"
    ok(world.pull("--lock", str(lock), world.name))
    shutil.rmtree(world.home.store)
    ok(world.pull("--locked", str(lock)))
    assert world.layers_asked() == len(world.image.layer_digests)
    assert world.registry.count("/manifests/1 ") == 0
    world.kept.unlink()
    ok(world.pull("--locked", str(lock)))
    assert world.layers_asked() == 0
    assert world.kept.exists()
    world.key = world.stranger
    world.rules(rule(f"{world.registry.host}/acme/*", key="other.pub"))
    world.stranger.write(world.home.folder / "other.pub")
    assert world.pull("--locked", str(lock)).returncode == ExitCode.UNSIGNED
