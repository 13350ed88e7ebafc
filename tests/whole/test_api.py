"""What ``import msb_pull`` offers to programs: its names, its examples, its types, and what it costs."""

from __future__ import annotations

import ast
import doctest
import importlib
import platform
import re
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

import msb_pull
from msb_pull.api import lock, pull
from msb_pull.api import store as store_module
from msb_pull.ground import errors, events
from tests.conftest import REPOSITORY, lacking, program, program_environment
from tests.support.fault_registry import Fault, FaultRegistry
from tests.support.make_sample import file, layer_tar
from tests.support.stores import set_used

SAMPLE = REPOSITORY / "tests" / "sample"
SOURCE = REPOSITORY / "msb_pull" / "__init__.py"


@pytest.fixture
def store(tmp_path):
    return msb_pull.Store.open(tmp_path / "store")


@pytest.fixture
def registry():
    with FaultRegistry() as registry:
        registry.add_image("acme/app", "1", [layer_tar([file("a", "x" * 5000)]), layer_tar([file("b", "y" * 5000)])])
        yield registry


@pytest.mark.parametrize("module", [msb_pull, lock, pull, store_module])
def test_examples_in_docstrings_are_true(module, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    found = doctest.testmod(module, extraglobs={name: getattr(msb_pull, name) for name in msb_pull.__all__})
    assert found.attempted >= 3
    assert found.failed == 0


@pytest.mark.parametrize("page", ["README.md", "docs/usage.md"])
def test_examples_are_true(registry, monkeypatch, capsys, page):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    (example,) = re.findall(r"## From Python\n.*?```python\n(.*?)```", text, re.DOTALL)
    image = f"{registry.host}/acme/app:1"
    exec(compile(example.replace("ubuntu:22.04", image), page, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    if page == "README.md":
        assert lines[0].startswith(f"{image}@sha256:") and lines[0].count(".extracted") == 2
        return
    assert [line.split()[0] for line in lines[:2]] == ["layer", "layer"]
    assert lines[2].startswith(f"{image}@sha256:")
    assert lines[3].count(".extracted") == 2 and lines[4].count(":") == 1
    # The store is the one that the command line uses.
    listed = subprocess.run([*program(), "ls", "-q"], env=program_environment(), capture_output=True, text=True)
    assert listed.stdout == f"{image}\n", listed.stderr


def test_every_public_name_is_there():
    assert msb_pull.__all__ == sorted(msb_pull.__all__)
    for name in msb_pull.__all__:
        assert getattr(msb_pull, name) is not None
    assert set(msb_pull.__all__) <= set(dir(msb_pull))
    namespace: dict[str, object] = {}
    exec("from msb_pull import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(msb_pull.__all__)
    with pytest.raises(AttributeError, match="'msb_pull' has no attribute 'nonsense'"):
        _ = msb_pull.nonsense
    with pytest.raises(ImportError):
        importlib.import_module("msb_pull.nonsense")


def test_type_checkers_see_the_same_names():
    block = next(node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {*typed, "__version__"} == set(msb_pull.__all__)
    for name, module in typed.items():
        holder = importlib.import_module(module)
        assert getattr(msb_pull, name) is getattr(holder, name)


def test_every_error_is_public():
    kinds = {name for name, x in vars(errors).items() if isinstance(x, type) and issubclass(x, Exception)}
    assert kinds <= set(msb_pull.__all__)


def test_everything_public_is_documented():
    silent = []
    for name in msb_pull.__all__:
        value = getattr(msb_pull, name)
        members = (
            {} if isinstance(value, str) else {key: x for key, x in vars(value).items() if not key.startswith("_")}
        )
        ours = [x for x in members.values() if callable(x) and x.__module__.startswith("msb_pull")]
        silent += [x.__qualname__ for x in (value, *ours) if not isinstance(x, str) and not (x.__doc__ or "").strip()]
    assert not silent


def modules_after(code: str) -> set[str]:
    code = f"import sys\nbefore = {{*sys.modules}}\n{code}\nprint(*{{*sys.modules}} - before)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=program_environment(), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_import_loads_nothing_else():
    assert modules_after("import msb_pull") == {"msb_pull"}
    ours = {name for name in modules_after("from msb_pull import __version__, __all__") if name.startswith("msb_pull")}
    assert ours == {"msb_pull", "msb_pull.ground", "msb_pull.ground.version"}
    assert not modules_after("from msb_pull import Store, pull_image, PullOptions") & {"requests", "sqlite3", "rich"}
    # A process that unpacks a layer loads the package as well.
    assert "typing" not in modules_after("import msb_pull.ground.errors")


def test_pull_from_a_registry(store, registry):
    seen = []
    image = f"{registry.host}/acme/app:1"
    options = msb_pull.PullOptions(platform=msb_pull.Platform.parse("linux/amd64"))
    result = msb_pull.pull_image(image, store, options, observer=seen.append)
    assert (result.reference, result.changed, result.platform) == (image, True, "linux/amd64")
    told = [type(x) for x in seen]
    assert (told[0], told[-1], told.count(events.LayerDone)) == (events.Resolving, events.ImageDone, 2)
    assert [x.reference for x in store.images()] == [image]
    assert [str(path) for path in store.layers(image)] == [layer.path for layer in result.layers]
    asked = len(registry.requests)
    again = msb_pull.pull_image(image, store, options)
    assert (again.pinned, again.changed, len(registry.requests)) == (result.pinned, False, asked)


def test_every_connection_is_closed(store, registry):
    for _ in range(2):
        always = msb_pull.PullOptions(policy=msb_pull.Policy.ALWAYS, platform=msb_pull.Platform("linux", "amd64"))
        msb_pull.pull_image(f"{registry.host}/acme/app:1", store, always)
    # filterwarnings = error: an open socket would be a ResourceWarning.


@pytest.mark.parametrize(
    ("image", "fault", "kind"),
    [
        ("acme/none:1", None, msb_pull.NotFoundError),
        ("acme/app:1", Fault(status=403), msb_pull.AccessError),
        ("acme/app:1", Fault(status=503), msb_pull.NetworkError),
        ("acme/app:1", Fault(status=200, body=b"{}"), msb_pull.ContentError),
    ],
)
def test_errors(store, registry, image, fault, kind):
    if fault:
        registry.script("/manifests/", fault)
    with pytest.raises(kind):
        msb_pull.pull_image(f"{registry.host}/{image}", store, registries=msb_pull.RegistryOptions(retries=0))
    assert store.images() == []


def test_bad_names_are_usage_errors(store):
    for call in (store.layers, store.lowerdir, lambda name: msb_pull.pull_image(name, store)):
        with pytest.raises(msb_pull.UsageError):
            call("Not A Name")
    with pytest.raises(msb_pull.NotFoundError):
        store.layers("none:1")


def test_values_of_the_wrong_type(store):
    """A program hears at once, and in the words of its call."""
    for arguments in ((3,), (b"x",), ("x", 3)):
        with pytest.raises(TypeError, match=r"^(home|layers_dir) must be a path, not (int|bytes)$"):
            msb_pull.Store.open(*arguments)
    for arguments in (("",), (store.home, "")):
        with pytest.raises(msb_pull.UsageError, match=r"^(home|layers_dir): must not be empty$"):
            msb_pull.Store.open(*arguments)
    for call in (store.layers, store.lowerdir, lambda image: msb_pull.pull_image(image, store)):
        with pytest.raises(TypeError, match=r"^image must be text, not int$"):
            call(3)
    with pytest.raises(TypeError, match=r"^store must be a msb_pull.Store, not str$"):
        msb_pull.pull_image("x", "y")
    with pytest.raises(TypeError, match=r"^platform must be a msb_pull.Platform, not str$"):
        msb_pull.PullOptions(platform="linux/amd64")
    with pytest.raises(ValueError, match=r"'often' is not a valid Policy"):
        msb_pull.PullOptions(policy="often")
    assert msb_pull.PullOptions(policy="never").policy is msb_pull.Policy.NEVER


def several_calls(store, path):
    return (
        lambda images: msb_pull.pull_images(images, store),
        lambda images: list(msb_pull.pull_and_lock(path, store, images).outcomes.values()),
        lambda images: list(msb_pull.pull_locked(path, store, images).values()),
        lambda images: [store.show_in_podman(images)],
    )


def test_one_name_is_not_several_of_one_letter(store, tmp_path):
    for call in several_calls(store, tmp_path / "images.lock"):
        for one in ("ubuntu", b"ubuntu", 3, None):
            with pytest.raises(TypeError, match=r"^images must be a list or the like, not (str|bytes|int|NoneType)$"):
                call(one)
        with pytest.raises(TypeError, match=r"^image must be text, not int$"):
            call([3])
    for platforms in ("linux/arm64", msb_pull.Platform("linux", "arm64")):
        with pytest.raises(TypeError, match=r"^platforms must be a list or the like, not (str|Platform)$"):
            msb_pull.pull_and_lock(tmp_path / "images.lock", store, ["x"], platforms=platforms)
    with pytest.raises(TypeError, match=r"^platform must be a msb_pull.Platform, not str$"):
        msb_pull.pull_and_lock(tmp_path / "images.lock", store, ["x"], platforms=["linux/arm64"])
    assert not (tmp_path / "images.lock").exists()


def test_names_may_come_from_a_generator(store, registry, tmp_path):
    """It gives each name once."""
    name = f"{registry.host}/acme/app:1"
    pull, and_lock, locked, _ = several_calls(store, tmp_path / "images.lock")
    for call in (pull, and_lock, locked):
        (result,) = call(each for each in [name])
        assert result.reference == name
    (shown,) = several_calls(store, tmp_path)[-1](each for each in [name])
    assert shown.images == (name,)


def test_cancel(store, registry):
    cancel = threading.Event()
    registry.script("/blobs/", Fault(stall_after=10), times=8)
    threading.Timer(0.3, cancel.set).start()
    with pytest.raises(msb_pull.Cancelled):
        msb_pull.pull_image(
            f"{registry.host}/acme/app:1", store, msb_pull.PullOptions(platform=msb_pull.Platform("linux", "amd64")),
            cancel=cancel,
        )  # fmt: skip


def test_given_credentials_are_used(store, registry):
    asked = []

    class Book(msb_pull.CredentialStore):
        def find(self, registry, repository, **more):
            asked.append((registry, repository))
            return msb_pull.Credential(username="bob", password="sesame")

    def guard(request):
        if request.headers.get("authorization", "").startswith("Basic "):
            return None
        return Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    registry.authorize = guard
    options = msb_pull.PullOptions(platform=msb_pull.Platform("linux", "amd64"))
    assert msb_pull.pull_image(f"{registry.host}/acme/app:1", store, options, credentials=Book()).changed
    assert asked[0] == (registry.host, "acme/app")


def test_settings_of_the_command_line_count(registry, clean_environment, tmp_path, monkeypatch):
    config = tmp_path / "config.toml"
    config.write_text(f'home = "{tmp_path}/chosen"\ndefault_registry = "{registry.host}"\n')
    monkeypatch.setenv("MSB_PULL_CONFIG", str(config))
    monkeypatch.delenv("MICROSANDBOX_HOME")
    store = msb_pull.Store.open()
    assert store.home == tmp_path / "chosen"
    options = msb_pull.PullOptions(platform=msb_pull.Platform("linux", "amd64"))
    assert msb_pull.pull_image("acme/app:1", store, options).reference == f"{registry.host}/acme/app:1"
    assert len(store.layers("acme/app:1")) == 2


def test_the_budget_of_the_configuration_file_counts(registry, clean_environment, tmp_path, monkeypatch):
    """What a program asks for is a use, and what it has pulled stays."""
    for name in ("one", "two", "three"):
        registry.add_image("acme/app", name, [layer_tar([file(name, name * 30_000)])])
    config = tmp_path / "config.toml"
    config.write_text(f'home = "{tmp_path}/home"\ndefault_registry = "{registry.host}"\n')
    monkeypatch.setenv("MSB_PULL_CONFIG", str(config))
    monkeypatch.delenv("MICROSANDBOX_HOME")
    options = msb_pull.PullOptions(platform=msb_pull.Platform("linux", "amd64"))
    store = msb_pull.Store.open()
    names = [f"{registry.host}/acme/app:{name}" for name in ("one", "two", "three")]
    for when, name in enumerate(names[:2]):
        msb_pull.pull_image(name, store, options)
        set_used(store._place, name, 1_700_000_000 + when)
    store.layers(names[0])
    config.write_text(config.read_text() + '[store]\nkeep = "300kB"\n')
    warnings = []
    result = msb_pull.pull_image(names[2], msb_pull.Store.open(), options, observer=warnings.append)
    assert result.changed
    assert [image.reference for image in store.images()] == sorted([names[0], names[2]])
    assert not [x for x in warnings if isinstance(x, events.Warned) and "budget" in x.text]


USER = """
import msb_pull
from msb_pull import Store, pull_image

store = Store.open("x")
result = pull_image("a:1", store, msb_pull.PullOptions(), jobs=2)
reveal_type(result.pinned)
reveal_type(store.layers("a:1"))
reveal_type(msb_pull.events.Retrying)
msb_pull.nonsense
pull_image(1, store)
"""


def test_users_of_mypy_see_types(tmp_path):
    if importlib.util.find_spec("mypy") is None:
        lacking("not installed: mypy, which setup.sh --dev brings")
    (tmp_path / "user.py").write_text(USER)
    options = ["--strict", "--config-file", "", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "user.py"],
        cwd=tmp_path, env=program_environment(), capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    said = done.stdout
    assert 'Revealed type is "str"' in said or 'Revealed type is "builtins.str"' in said, said + done.stderr
    assert re.search(r'Revealed type is "(builtins\.)?list\[pathlib\.(_local\.)?Path\]"', said), said
    assert "Retrying" in said
    assert 'Module has no attribute "nonsense"' in said
    assert 'Argument 1 to "pull_image" has incompatible type "int"' in said
    assert said.count(" error: ") == 2, said


def test_several_images_each_with_its_outcome(store, registry):
    names = [f"{registry.host}/acme/{image}" for image in ("none:1", "app:1", "app:1")]
    options = msb_pull.PullOptions(platform=msb_pull.Platform("linux", "amd64"))
    lost, made, again = msb_pull.pull_images(names, store, options)
    assert isinstance(lost, msb_pull.NotFoundError)
    assert (made.changed, again.changed, made.pinned) == (True, False, again.pinned)
    assert msb_pull.pull_images([], store) == []
    with pytest.raises(msb_pull.UsageError):
        msb_pull.pull_images([names[1], "Not A Name"], store)


def locked_text(name, digest) -> str:
    return f'version = 1\n\n[images."{name}"]\n"linux/amd64" = "{digest}"\n'


def test_what_is_pulled_is_locked_and_pulled_again_elsewhere(store, registry, tmp_path):
    name, path = f"{registry.host}/acme/app:1", tmp_path / "images.lock"
    options = msb_pull.PullOptions(platform=msb_pull.Platform("linux", "amd64"))
    first = msb_pull.pull_and_lock(path, store, [name, f"{registry.host}/acme/none:1"], options)
    assert isinstance(first.outcomes[f"{registry.host}/acme/none:1"], msb_pull.NotFoundError)
    digest = first.outcomes[name].digest
    assert [(x.image, x.platform, x.old, str(x.new)) for x in first.changes] == [(name, "linux/amd64", None, digest)]
    assert path.read_text().endswith(locked_text(name, digest).partition("\n\n")[2])
    assert msb_pull.pull_and_lock(path, store, [name], options).changes == ()
    # The tag moves, and the file goes on to say what it said.
    registry.add_image("acme/app", "1", [layer_tar([file("c", "z" * 5000)])])
    other = msb_pull.Store.open(tmp_path / "other")
    (outcome,) = msb_pull.pull_locked(str(path), other, (), options).values()
    assert (outcome.digest, outcome.changed) == (digest, True)
    asked = len(registry.requests)
    again = msb_pull.pull_locked(path, other, [name], options)[name]
    assert (again.changed, len(registry.requests)) == (False, asked)
    renewed = msb_pull.pull_and_lock(path, other, [], replace(options, dry_run=True), upgrade=True)
    assert [str(x.old) for x in renewed.changes] == [digest] and digest in path.read_text()
    renewed = msb_pull.pull_and_lock(path, other, [], options, upgrade=True)
    assert renewed.outcomes[name].changed and digest not in path.read_text()


def test_what_cannot_be_locked(store, registry, tmp_path):
    name, path = f"{registry.host}/acme/app:1", tmp_path / "images.lock"
    with pytest.raises(msb_pull.UsageError, match=r"Policy\.NEVER"):
        msb_pull.pull_and_lock(path, store, [name], msb_pull.PullOptions(policy=msb_pull.Policy.NEVER))
    with pytest.raises(msb_pull.UsageError, match=r"^oci:.*: only images from registries"):
        msb_pull.pull_and_lock(path, store, [f"oci:{SAMPLE}:1"])
    path.write_text(locked_text(name, "sha256:" + 64 * "0"))
    with pytest.raises(msb_pull.UsageError, match=r"not in .*images\.lock for linux/s390x"):
        msb_pull.pull_locked(path, store, [name], msb_pull.PullOptions(platform=msb_pull.Platform("linux", "s390x")))
    with pytest.raises(msb_pull.UsageError, match=r"not in .*images\.lock$"):
        msb_pull.pull_locked(path, store, ["other:1"])
    with pytest.raises(TypeError, match=r"^lock must be a path, not NoneType$"):
        msb_pull.pull_locked(None, store)
    with pytest.raises(TypeError, match=r"^store must be a msb_pull.Store, not list$"):
        msb_pull.pull_and_lock(path, [name], store)
    assert not registry.requests


def test_one_password_is_not_for_two_registries(store, registry, monkeypatch):
    monkeypatch.setenv("MSB_REGISTRY_USERNAME", "bob")
    monkeypatch.setenv("MSB_REGISTRY_PASSWORD", "sesame")
    with pytest.raises(msb_pull.UsageError, match="one registry"):
        msb_pull.pull_images([f"{registry.host}/acme/app:1", "localhost:1/acme/app:1"], store)
    assert not registry.requests
