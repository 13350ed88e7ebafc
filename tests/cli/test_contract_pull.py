"""The ``pull`` command and the bare form as a script sees them: exit code and both streams, to the letter."""

from __future__ import annotations

import base64
import json
import signal
import subprocess

import pytest

from tests.conftest import REPOSITORY
from tests.support.contract import IMAGE, PINNED, PULLING, RESOLVING, Said
from tests.support.fault_auth import errors, require_basic
from tests.support.fault_registry import Fault

PULLED = f"{RESOLVING}{PULLING}layer base done 1.6 kB\nlayer top done 372 B\nPulled {IMAGE}: 2.0 kB in Ns\n"
HERE = f"{IMAGE} is already here (2 layers)\n"
LOG_IN = (
    "log in with `docker login HOST`; msb-pull reads ~/.docker/config.json "
    "(a repository that does not exist is refused in the same way)"
)
WRONG = (
    "the credentials for HOST may be wrong or lack the right to pull, or the repository does not exist; "
    "log in again with `docker login HOST`, or try --anonymous if the image is public"
)
CHECK_NAME = "check the name and the tag; a private repository may also need `docker login HOST`"
CHANGED = "the registry or a proxy changed the content; try again or use another mirror"
UNREACHABLE = "127.0.0.1:1/x:1"


def failure(message: str, cause: str | None = None, hint: str | None = None) -> str:
    lines = [f"error: {message}", *([f"  cause: {cause}"] if cause else []), *([f"  hint: {hint}"] if hint else [])]
    return "\n".join(lines) + "\n"


def unknown(name: str) -> str:
    return failure(f"{name}: not found", "registry answered 404 MANIFEST_UNKNOWN: not here", CHECK_NAME)


NO_ANSWER = failure(
    f"{UNREACHABLE}: no answer from 127.0.0.1:1", "connection refused", "check the address and the network"
)


def layer_fields(**more):
    return [
        {"digest": name, "size_bytes": size, "path": f"~/home/layers/{name}.extracted", **more}
        for name, size in (("BASE", 1634), ("TOP", 372))
    ]


def fields(*, fetched: int = 0, present: bool = True, changed: bool = False, dry_run: bool = False):
    """One image of the document, without the seconds."""
    sizes = [1634, 372] if fetched else [0, 0]
    layers = [
        {**layer, "fetched_bytes": size, "present": present, "reused": False}
        for layer, size in zip(layer_fields(), sizes, strict=True)
    ]
    return {
        "status": "ok", "image": IMAGE, "reference": IMAGE, "pinned": PINNED.strip(), "digest": "IMAGE",
        "platform": "linux/amd64", "size_bytes": 2006, "fetched_bytes": fetched, "changed": changed,
        "dry_run": dry_run, "layers": layers,
    }  # fmt: skip


def without_seconds(document):
    for image in document["images"]:
        if image["status"] == "ok":
            assert isinstance(image.pop("seconds"), float)
    return document


def test_the_life_of_an_image(place):
    """Dry run, pull, pull again, all four policies, force, quiet: the machine line is always the same."""
    would = f"{RESOLVING}Would fetch 2.0 kB in 2 of 2 layers for {IMAGE} (linux/amd64)\n"
    absent = failure(f"{IMAGE}: not in the store", None, "pull it without `--policy never`")
    assert place.run("pull", "--dry-run", IMAGE) == Said(0, PINNED, would)
    assert place.run("pull", "--policy", "never", IMAGE) == Said(3, "", absent)
    assert not place.home.exists()
    assert place.run(IMAGE) == Said(0, PINNED, PULLED)
    asked = place.registry.count()
    for words in (["pull"], ["--policy", "missing"], ["pull", "--policy", "never"], ["pull", "-n"]):
        assert place.run(*words, IMAGE) == Said(0, PINNED, HERE)
    assert place.run("-q", IMAGE, IMAGE) == Said(0, PINNED * 2, "")
    assert place.registry.count() == asked
    assert place.run("pull", "--policy", "always", IMAGE) == Said(0, PINNED, RESOLVING + HERE)
    assert place.registry.count("/manifests/") == 3
    assert place.run("pull", "--policy", "newer", IMAGE) == Said(0, PINNED, RESOLVING + HERE)
    assert place.run("pull", "--force", "--jobs", "1", IMAGE) == Said(0, PINNED, PULLED)
    assert place.registry.count("/blobs/BASE".replace("BASE", place.added.layer_digests[0])) == 2
    place.registry.always("/manifests/", Fault(drop=True))
    kept = f"{RESOLVING}warning: {IMAGE}: no answer from HOST; keeping the local image\n{HERE}"
    assert place.run("pull", "--policy", "newer", IMAGE) == Said(0, PINNED, kept)
    assert place.run("pull", "-q", "--policy", "newer", IMAGE) == Said(0, PINNED, kept.splitlines(keepends=True)[1])


def test_documents(place):
    """One document for success, dry run, and failure; the same keys whatever has happened."""
    form = ("--format", "json", "-q")
    done = place.run("pull", "-n", *form, IMAGE)
    expected = fields(present=False, changed=True, dry_run=True)
    assert without_seconds(done.document) == {"status": "ok", "images": [expected]}
    done = place.run(*form, IMAGE)
    assert without_seconds(done.document) == {
        "status": "ok",
        "images": [fields(fetched=2006, present=False, changed=True)],
    }
    done = place.run("pull", *form, "HOST/acme/none:1", UNREACHABLE, IMAGE)
    lost = {
        "code": 3, "kind": "not-found", "message": "HOST/acme/none:1: not found",
        "cause": "registry answered 404 MANIFEST_UNKNOWN: not here", "hint": CHECK_NAME,
    }  # fmt: skip
    silent = {
        "code": 5, "kind": "network", "message": f"{UNREACHABLE}: no answer from 127.0.0.1:1",
        "cause": "connection refused", "hint": "check the address and the network",
    }  # fmt: skip
    both = {
        "code": 1, "kind": "failure", "message": "2 of 3 images failed, for different reasons",
        "cause": None, "hint": None,
    }  # fmt: skip
    assert (done.code, done.error) == (1, unknown("HOST/acme/none:1") + NO_ANSWER)
    assert without_seconds(done.document) == {
        "status": "failed",
        "images": [
            {"status": "failed", "image": "HOST/acme/none:1", "error": lost},
            {"status": "failed", "image": UNREACHABLE, "error": silent},
            fields(),
        ],
        "error": both,
    }
    done = place.run("pull", *form, "HOST/acme/none:1")
    assert done.code == 3
    assert done.document == {
        "status": "failed",
        "images": [{"status": "failed", "image": "HOST/acme/none:1", "error": lost}],
        "error": lost,
    }
    done = place.run("pull", *form, "HOST/UPPER:1")
    assert (done.code, done.document["status"], done.document["error"]["code"]) == (2, "failed", 2)


def test_several_images(shared):
    """Each is tried, lines come in the order of the arguments, the code is the common one or 1."""
    two = ["HOST/acme/none:1", "HOST/acme/app:2"]
    resolving = {f"resolving {image}\n" for image in two}
    unknowns = unknown(two[0]) + unknown(two[1])
    done = shared.run("--progress", "none", *two, IMAGE)
    summary = f"Pulled {IMAGE}: 2.0 kB in Ns\n"
    assert done == Said(3, PINNED, summary + unknowns)
    for words, lines in (([two[0], IMAGE, two[1]], {HERE}), (two, set())):
        done = shared.run("pull", *words)
        assert (done.code, done.out) == (3, PINNED if lines else "")
        assert done.error.endswith(unknowns)
        # They are under way at the same time.
        assert {*done.error.removesuffix(unknowns).splitlines(keepends=True)} == resolving | lines
    done = shared.run("-q", UNREACHABLE, two[0])
    assert done == Said(1, "", NO_ANSWER + unknown(two[0]))


def test_several_images_at_once(place):
    """The lines of the result keep the order of the arguments; each other line says which image it is about."""
    added = place.add_later()
    later, short = "HOST/acme/later:1", added.layer_digests[1][7:19]
    done = place.run(later, IMAGE)
    assert (done.code, done.out) == (0, f"{later}@{added.manifest_digest}\n{PINNED}")
    lines = done.error.splitlines()
    assert {*lines[:2]} == {f"resolving {IMAGE}", f"resolving {later}"}
    assert lines[2:] == [
        PULLING.strip(),
        f"{IMAGE}: layer base done 1.6 kB",
        f"{IMAGE}: layer top done 372 B",
        f"Pulled {IMAGE}: 2.0 kB in Ns",
        f"Pulling {later} (linux/amd64, 2 layers, 1.7 kB)",
        f"{later}: layer base already here",
        f"{later}: layer {short} done 106 B",
        f"Pulled {later}: 106 B in Ns, 1 of 2 layers already here",
    ]
    assert place.registry.count("/blobs/" + place.added.layer_digests[0]) == 1
    done = place.run("--format", "json", "-q", later, IMAGE)
    assert [image["image"] for image in done.document["images"]] == [later, IMAGE]


def test_what_is_wrong_here_names_its_image_among_several(place):
    added = place.add_later()
    later, blob = "HOST/acme/later:1", place.layers / ".msb-pull" / "partial" / added.layer_digests[1]
    blob.mkdir(parents=True)
    for words, where in (([later, IMAGE], f"{later}: "), ([later], "")):
        done = place.run("-q", *words)
        assert (done.code, done.out) == (7, PINNED if where else "")
        assert done.error.startswith(f"error: {where}~/home/layers/.msb-pull/partial/{added.layer_digests[1]}: ")


# Words after `pull`, what goes wrong at which path, exit code, error. The image has its place at the end.
FAILURES = [
    pytest.param(["--platform", "linux/riscv64"], {}, 3, failure(
        f"{IMAGE}: no image for linux/riscv64", "the only image is for linux/amd64",
        "pull it with --platform linux/amd64",
    ), id="platform"),
    pytest.param([], {"/manifests/": Fault(status=503)}, 5, failure(
        f"{IMAGE}: HOST reports a server error", "registry answered 503 Service Unavailable", "try again later",
    ), id="503"),
    pytest.param([], {"/manifests/": Fault(drop=True)}, 5, failure(
        f"{IMAGE}: no answer from HOST", "connection reset by peer", "check the address and the network",
    ), id="drop"),
    pytest.param([], {"/manifests/": Fault(status=429)}, 5, failure(
        f"{IMAGE}: HOST is rate limiting requests", "registry answered 429 Too Many Requests",
        "wait and try again, or use a mirror",
    ), id="429"),
    pytest.param([], {"/manifests/": Fault(status=403, body=errors("DENIED"))}, 4, failure(
        f"{IMAGE}: access denied", "registry answered 403 DENIED: no", LOG_IN,
    ), id="403"),
    pytest.param([], {"/manifests/": Fault(status=401, body=errors("UNAUTHORIZED"))}, 4, failure(
        f"{IMAGE}: access denied", "registry answered 401 UNAUTHORIZED: no", LOG_IN,
    ), id="401"),
    pytest.param(["--max-entries", "3"], {}, 6, PULLING + failure(
        f'{IMAGE}: layer base: entry 3 "etc/": more than 3 entries', None, "raise --max-entries if you trust the image",
    ), id="entries"),
    pytest.param(["--max-layer-size", "1k"], {}, 6, PULLING + failure(
        f'{IMAGE}: layer base: entry 22 "usr/lib/libsample.so.1.0": the layer unpacks to more than 1000 bytes', None,
        "raise --max-layer-size if you trust the image",
    ), id="size"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "faults", "code", "error"), FAILURES)
def test_failures(place, words, faults, code, error):
    for match, fault in faults.items():
        place.registry.always(match, fault)
    assert place.run("pull", "-j", "1", *words, IMAGE) == Said(code, "", RESOLVING + error)


def test_content_that_does_not_match(place):
    place.registry.always(place.added.layer_digests[1], Fault(flip=40))
    done = place.run("pull", "-q", IMAGE)
    warning, message, cause, hint = done.error.splitlines()
    assert warning == "warning: blob top does not match its digest; fetching it again from the start"
    assert (done.code, done.out, hint) == (6, "", f"  hint: {CHANGED}"), done.error
    assert message == "error: HOST/acme/app:1: blob top does not match its digest"
    assert cause.startswith("  cause: expected TOP, received sha256:")


# Words, exit code, error without the prefix; none of them asks a registry.
REFUSED = [
    (["pull", "HOST/UPPER/x:1"], 'invalid reference "HOST/UPPER/x:1": "UPPER" must be lower-case', 'write "upper"'),
    (["pull", ""], "invalid reference: it is empty", "name an image, like ubuntu:22.04"),
    (["--platform", "linux/", "x"], "--platform: invalid platform 'linux/'",
     "write OS/ARCH or OS/ARCH/VARIANT, like linux/arm64"),
    (["--ca-cert", "none.pem", IMAGE], "--ca-cert: none.pem: no such file", None),
    (["--as", "a:1", IMAGE], "--as works with exactly one image from a folder or an archive",
     "msb-pull pull oci:DIR --as registry.example.com/name:tag"),
    (["--as", "a:1", "oci:a", "oci:b"], "--as works with exactly one image from a folder or an archive",
     "msb-pull pull oci:DIR --as registry.example.com/name:tag"),
    (["--as", "A", "oci:a"], 'invalid reference "A": "A" must be lower-case', 'write "a"'),
    (["--creds-stdin", "oci-archive:-"], "standard input can only be read once",
     "save the archive to a file and name that file"),
    (["oci-archive:-", "docker-archive:-"], "standard input can only be read once",
     "save the archive to a file and name that file"),
    (["oci:-"], '"oci:-": a layout folder cannot be read from standard input', "use oci-archive:-"),
    (["oci:"], '"oci:": the path is missing', "write oci:PATH or oci:PATH:NAME"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message", "hint"), REFUSED)
def test_refused_before_anything_is_asked(shared, words, message, hint):
    asked = shared.registry.count()
    assert shared.run(*words) == Said(2, "", failure(message, None, hint))
    assert shared.registry.count() == asked


USER = {"MSB_REGISTRY_USERNAME": "bob", "MSB_REGISTRY_PASSWORD": "secret"}
DENIED = failure(f"{IMAGE}: access denied", "authentication required for HOST", LOG_IN)
REFUSED_TWICE = failure(f"{IMAGE}: access denied", "registry answered 401 UNAUTHORIZED: no", WRONG)


def test_credentials(place):
    """Standard input, variables, a file by option or variable, nobody; a dry run needs them as a pull does."""
    require_basic(place.registry, {"bob": "secret"})
    auth = base64.b64encode(b"bob:secret").decode()
    (place.folder / "auth.json").write_text(json.dumps({"auths": {place.registry.host: {"auth": auth}}}))
    good = Said(0, PINNED, "")
    one_line = failure("--creds-stdin: standard input must be user:password")
    half = failure("MSB_REGISTRY_PASSWORD is not set", None, "set both MSB_REGISTRY_USERNAME and MSB_REGISTRY_PASSWORD")
    no_file = failure("~/none.json: No such file or directory", None, "name a file that `docker login` wrote")
    file = {"REGISTRY_AUTH_FILE": "auth.json"}
    cases = [
        ([], "", {}, Said(4, "", DENIED)),
        (["--creds-stdin"], "bob:secret\n", {}, good),
        (["--creds-stdin"], "bob:secret\n", {"MSB_REGISTRY_TOKEN": "wrong"}, good),
        (["--creds-stdin"], "bob:wrong\n", {}, Said(4, "", REFUSED_TWICE)),
        (["--creds-stdin"], "bob\n", {}, Said(2, "", one_line)),
        (["--creds-stdin"], "", {}, Said(2, "", one_line)),
        ([], "", USER, good),
        (["--anonymous"], "", USER, Said(4, "", DENIED)),
        ([], "", {"MSB_REGISTRY_TOKEN": "wrong"}, Said(4, "", REFUSED_TWICE)),
        ([], "", {"MSB_REGISTRY_USERNAME": "bob"}, Said(2, "", half)),
        (["--authfile", "auth.json"], "", {}, good),
        ([], "", file, good),
        (["--anonymous"], "", file, Said(4, "", DENIED)),
        (["--authfile", "auth.json"], "", {"REGISTRY_AUTH_FILE": "none.json"}, good),
        (["--authfile", "none.json"], "", file, Said(2, "", no_file)),
    ]
    for words, stdin, env, expected in cases:
        assert place.run("-q", "-n", *words, IMAGE, stdin=stdin, env=env) == expected, (words, stdin, env)


def test_local_images(place, tmp_path):
    """A layout, both kinds of archive, standard input, names; what is not there is 3."""
    layout = f"oci:{REPOSITORY / 'tests' / 'sample'}"
    digest = json.loads((REPOSITORY / "tests" / "sample" / "index.json").read_text())["manifests"][0]["digest"]
    pinned = f"docker.io/library/s:1@{digest}\n"
    assert place.run("-q", f"{layout}:1", "--as", "s:1") == Said(0, pinned, "")
    assert place.run("-q", layout, "--as", "s:1") == Said(0, pinned, "")
    assert place.run("-q", layout) == Said(0, f"localhost/sample:1@{digest}\n", "")
    for kind in ("oci", "docker"):
        assert place.run("save", "-q", "s:1", "-o", f"{kind}.tar", "--format", kind) == Said(0, "", "")
        archive = f"{kind}-archive:{kind}.tar"
        by_name = place.run("-q", archive)
        # The first archive's manifest is not the registry's; the second one's is the first one's.
        replaced = by_name.error.startswith(
            f"warning: its name is docker.io/library/s:1, which is already here as {digest}"
        )
        assert (by_name.code, replaced, bool(by_name.error)) == (0, kind == "oci", kind == "oci")
        assert by_name.out.startswith("docker.io/library/s:1@sha256:")
        named = place.run("-q", archive, "--as", "t:1")
        assert named == Said(0, by_name.out.replace("s:1", "t:1"), "")
        with (place.folder / f"{kind}.tar").open("rb") as stdin:
            piped = subprocess.run(
                place.argv("-q", f"{kind}-archive:-", "--as", "t:1"),
                env=place.environment(), stdin=stdin, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
        assert (piped.returncode, piped.stdout, piped.stderr) == (0, named.out, "")
    for words, message, cause in (
        (f"{layout}:2", f"{layout}: it has no image '2'", "it holds 1"),
        ("oci:nowhere:1", "oci:nowhere: no such folder", None),
        ("oci-archive:nowhere.tar", "oci-archive:nowhere.tar: no such file", None),
        ("docker-archive:nowhere.tar", "docker-archive:nowhere.tar: no such file", None),
    ):
        assert place.run("-q", words) == Said(3, "", failure(message, cause))


def test_an_image_that_is_incomplete_or_of_another_platform(place):
    assert place.run("-q", IMAGE).code == 0
    hint = "pull it without `--policy never`"
    words = ("pull", "--policy", "never", IMAGE)
    other = failure(f"{IMAGE}: not in the store", "the store has it for linux/amd64", hint)
    assert place.run(*words, "--platform", "linux/arm64") == Said(3, "", other)
    (place.layers / f"{place.added.layer_digests[1]}.extracted").rename(place.folder / "away")
    assert place.run(*words) == Said(3, "", failure(f"{IMAGE}: not in the store", "1 of 2 layers missing", hint))
    completed = f"{RESOLVING}{PULLING}layer base already here\nlayer top done 372 B\n"
    completed += f"Pulled {IMAGE}: 372 B in Ns, 1 of 2 layers already here\n"
    assert place.run(IMAGE) == Said(0, PINNED, completed)


def test_a_blob_that_the_registry_lacks(place):
    """The name was right: its config or a layer is missing."""
    for digest in (place.added.layer_digests[0], place.added.config_digest):
        place.registry.always("/blobs/" + digest, Fault(status=404))
        done = place.run("pull", IMAGE)
        short = place.alike(digest.partition(":")[2][:12])
        assert done.code == 3
        assert f"error: {IMAGE}: blob {short} is not at HOST\n" in done.error
        assert "it has to be pushed again" in done.error


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals(place, number, code):
    """In the middle of a layer; also as a document, and for all images, which are told of once."""
    place.registry.add_image("acme/other", "1", [])
    place.registry.always("/acme/other/manifests/", Fault(stall_after=10))
    place.registry.always("/blobs/" + place.added.layer_digests[0], Fault(stall_after=100))
    process = place.start("--format", "json", IMAGE, "HOST/acme/other:1")
    seen = [process.stderr.readline() for _ in range(3)]
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == code
    hint = "what was downloaded is kept; run the same command again to continue"
    interrupted = {"code": code, "kind": "cancelled", "message": "interrupted", "cause": None, "hint": hint}
    assert {*place.alike("".join(seen)).splitlines(keepends=True)} == {
        RESOLVING, PULLING, "resolving HOST/acme/other:1\n",
    }  # fmt: skip
    assert place.alike(error) == failure("interrupted", None, hint)
    assert json.loads(place.alike(out)) == {
        "status": "failed",
        "images": [
            {"status": "failed", "image": image, "error": interrupted} for image in (IMAGE, "HOST/acme/other:1")
        ],
        "error": interrupted,
    }
