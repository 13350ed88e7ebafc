"""The wheel and the sdist as users get them: what they hold, that anybody can build the same, and that they work.

No network: what a new environment needs beside the wheel is taken from the environment of the tests, and it is only
what the wheel itself asks for.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import msb_pull
from tests.conftest import REPOSITORY, program_environment

SAMPLE = REPOSITORY / "tests" / "sample"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHARED = {
    "share/bash-completion/completions/msb-pull": "completions/msb-pull.bash",
    "share/zsh/site-functions/_msb-pull": "completions/_msb-pull",
    "share/fish/vendor_completions.d/msb-pull.fish": "completions/msb-pull.fish",
    "share/man/man1/msb-pull.1": "docs/msb-pull.1",
}
KEPT_OUT = {
    ".git",
    ".venv",
    "dist",
    "build",
    "__pycache__",
    ".hypothesis",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
}


def build(source: Path, out: Path, *kinds: str, umask: int = 0o022) -> Path:
    """Builds in ``source`` without a network; without ``kinds`` the sdist, and the wheel from that."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", str(out), str(source)],
        env={**program_environment(), "PYTHONPATH": ""}, capture_output=True, text=True, timeout=100, umask=umask,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the checkout, since other tests may write into it meanwhile."""
    copy = tmp_path_factory.mktemp("source") / "msb-pull"
    shutil.copytree(REPOSITORY, copy, ignore=lambda folder, names: KEPT_OUT & {*names})
    return copy


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> Path:
    return build(source, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [x for x in archive.namelist() if x.endswith(".dist-info/METADATA")]
        return HeaderParser().parsestr(archive.read(name).decode())


def test_names(built):
    version = msb_pull.__version__
    assert sorted(checksums(built)) == [f"msb_pull-{version}-py3-none-any.whl", f"msb_pull-{version}.tar.gz"]


def test_the_same_every_time(source, built, tmp_path):
    """Another folder, other times, other permissions, straight from the checkout: byte by byte the same."""
    other = tmp_path / "elsewhere"
    shutil.copytree(source, other, copy_function=shutil.copyfile)
    for script in ("tests/setup.sh", "examples/ci.sh", ".ci/run"):
        (other / script).chmod(0o700)
    for path in other.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert checksums(build(other, tmp_path / "out", "--sdist", "--wheel", umask=0o077)) == checksums(built)


def test_metadata(metadata):
    assert metadata["Name"] == "msb-pull"
    assert metadata["Version"] == msb_pull.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert 20 < len(metadata["Summary"]) < 120
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (REPOSITORY / "README.md").read_text(encoding="utf-8").strip()
    classifiers = metadata.get_all("Classifier")
    assert "Typing :: Typed" in classifiers
    assert f"Programming Language :: Python :: 3.{sys.version_info.minor}" in classifiers
    assert metadata["Keywords"]


def test_wheel_holds_the_package_its_types_completions_and_manual(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        shared = {name.partition(".data/data/")[2]: name for name in names if ".data/data/" in name}
        for place, file in SHARED.items():
            assert archive.read(shared[place]) == (REPOSITORY / file).read_bytes()
    assert set(shared) == {*SHARED}
    package = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "msb_pull").rglob("*.py")}
    assert {name for name in names if not re.match(r"msb_pull-[^/]+/|msb_pull-[^/]+\.data/", name)} == {
        *package,
        "msb_pull/py.typed",
    }


def test_sdist_holds_what_the_tests_need(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert {
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "LICENSE",
        "pyproject.toml",
        ".ci/run",
        "docs/usage.md",
        "docs/edge-cases.md",
        "tests/setup.sh",
        "tests/sample/index.json",
    } <= names
    assert {*SHARED.values(), "examples/ci.sh"} <= names
    assert not [name for name in names if re.search(r"\.pyc$|\.git/|\.cache|\.venv|\.egg-info", name)]
    assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "")}


def needed_by(requirements: list[str], found: dict[str, importlib.metadata.Distribution]) -> None:
    """Adds to ``found`` what the requirements mean on this machine, and what that needs in turn."""
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[name] = importlib.metadata.distribution(name)
        needed_by(found[name].requires or [], found)


@pytest.fixture(scope="module")
def installed(wheel, metadata, tmp_path_factory) -> Path:
    """The ``bin`` of a new environment with the wheel and what it asks for, and nothing else."""
    place = tmp_path_factory.mktemp("venv") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True, timeout=60)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--python", str(python)]
    # No cache, no index, no check of what is missing: what it needs is laid beside it below.
    done = subprocess.run(
        [*pip, "install", "-q", "--no-index", "--no-deps", "--no-cache-dir", str(wheel)],
        env=program_environment(PYTHONPATH=""), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (site,) = place.glob("lib/python*/site-packages")
    found: dict[str, importlib.metadata.Distribution] = {}
    needed_by(metadata.get_all("Requires-Dist"), found)
    assert not {"pytest", "mypy", "cryptography", "hypothesis"} & {*found}
    for distribution in found.values():
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            target = site / top
            if not target.exists():
                target.symlink_to(distribution.locate_file(top))
    return place / "bin"


def run(installed: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(installed / "msb-pull"), *words],
        env=program_environment(PYTHONPATH="", **more), cwd="/", capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_the_installed_program_works(installed, tmp_path):
    done = run(installed, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"msb-pull {msb_pull.__version__}\n", "")
    home = ["--home", str(tmp_path / "home")]
    done = run(installed, "pull", f"oci:{SAMPLE}:1", "--as", "sample:1", "--platform", "linux/amd64", *home)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"docker\.io/library/sample:1@sha256:[0-9a-f]{64}\n", done.stdout)
    for words in (["ls", "-q"], ["inspect", "--lowerdir", "sample:1"], ["verify"]):
        assert run(installed, *words, *home).returncode == 0
    done = run(installed, "save", "sample:1", "-o", str(tmp_path / "saved.tar"), *home)
    assert done.returncode == 0, done.stderr
    done = run(installed, "--home", str(tmp_path / "second"), f"oci-archive:{tmp_path}/saved.tar")
    assert done.returncode == 0, done.stderr
    assert run(installed, "rm", "sample:1", *home).returncode == 0


def test_the_installed_program_reaches_registries(installed, tmp_path):
    """All that pulling from a registry loads is there."""
    done = run(installed, "127.0.0.1:1/a:1", "--home", str(tmp_path), "--debug")
    assert done.returncode == 5, done.stderr
    assert "ModuleNotFoundError" not in done.stderr and "refused" in done.stderr


def test_every_module_can_be_imported_without_what_only_tests_need(installed):
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for path in sorted((REPOSITORY / "msb_pull").rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
    ]
    code = f"import importlib, pathlib\nfor name in {modules!r}: importlib.import_module(name)\n"
    code += "import msb_pull\nprint(msb_pull.__file__)"
    done = subprocess.run(
        [str(installed / "python"), "-c", code],
        env=program_environment(PYTHONPATH=""), cwd="/", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)


def test_completions_and_manual_are_where_shells_and_man_look(installed):
    for place in SHARED:
        assert (installed.parent / place).is_file()


def test_the_dependencies_are_those_that_are_imported():
    """What the package imports is asked for by name, and nothing that it does not import."""
    imported = set()
    for path in (REPOSITORY / "msb_pull").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module)
    tops = {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"msb_pull", "compression"}
    extras = PROJECT["optional-dependencies"]
    every = (*PROJECT["dependencies"], *extras["sign"], *extras["sigstore"])
    asked = {Requirement(text).name.partition(".")[0] for text in every} - {PROJECT["name"]}
    assert tops == asked
