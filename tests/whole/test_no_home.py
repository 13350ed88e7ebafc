"""Users without a home folder, with one that is none, or with that of somebody else: containers, CI, sudo."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from msb_pull.config import settings as config
from msb_pull.ground import places
from msb_pull.ground.errors import UsageError
from msb_pull.source.login.credentials import CredentialStore
from tests.conftest import REPOSITORY, program, program_environment
from tests.support.unprivileged import NOBODY, as_nobody, folder_of_nobody

SAMPLE = f"oci:{REPOSITORY / 'tests' / 'sample'}:1"
NOWHERE = {"HOME": "/dev/null", "XDG_CONFIG_HOME": "/dev/null", "XDG_RUNTIME_DIR": "/dev/null"}


def nobody_has_a_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.fixture
def homeless(monkeypatch):
    """As for a uid that the list of users does not know, without HOME."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", nobody_has_a_home)


def test_a_named_store_needs_no_home(homeless, tmp_path):
    assert places.home({}) is None and places.config_home({}) is None
    settings = config.load({"home": str(tmp_path)}, {})
    assert (settings.home, settings.config, settings.warnings) == (tmp_path, None, ())
    assert config.load({}, {"MICROSANDBOX_HOME": str(tmp_path)}).home == tmp_path


def test_without_a_home_the_store_must_be_named(homeless):
    with pytest.raises(UsageError) as caught:
        config.load({}, {})
    assert "no home" in caught.value.message and "--home" in (caught.value.hint or "")


def test_without_a_home_there_are_no_credentials_to_find(homeless, tmp_path):
    warnings: list[str] = []
    assert CredentialStore(environment={}).find("ghcr.io", "acme/app", warn=warnings.append) is None
    (tmp_path / "config.json").write_text('{"auths": {"ghcr.io": {"username": "bob", "password": "x"}}}')
    found = CredentialStore(environment={"DOCKER_CONFIG": str(tmp_path)}).find("ghcr.io", "acme/app")
    assert found is not None and found.username == "bob" and warnings == []


def test_folders_that_are_none_hold_no_configuration_and_no_credentials(tmp_path):
    settings = config.load({"home": str(tmp_path)}, NOWHERE)
    assert (settings.config, settings.warnings) == (None, ())
    warnings: list[str] = []
    environment = NOWHERE | {"DOCKER_CONFIG": "/dev/null"}
    assert CredentialStore(environment=environment).find("ghcr.io", "acme/app", warn=warnings.append) is None
    assert warnings == []


def pulled(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """The environment may hold "" for what is not set."""
    kept = {name: value for name, value in program_environment(**environment).items() if value}
    return subprocess.run(command, env=kept, capture_output=True, text=True, timeout=60)


def command(store: Path | str | None = None) -> list[str]:
    return [*program(), "pull", *(["--home", str(store)] if store else []), "--as", "s:1", SAMPLE]


@pytest.mark.parametrize("variables", [NOWHERE, {"HOME": ""}, {"HOME": "/nonexistent"}])
def test_the_program_pulls_into_a_named_store(tmp_path, variables):
    done = pulled(command(tmp_path / "store"), **variables)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr


def test_a_default_store_below_no_folder_is_trouble_of_this_machine():
    done = pulled(command(), **NOWHERE, MICROSANDBOX_HOME="")
    assert done.returncode == 7
    assert "/dev/null" in done.stderr and "--home" in done.stderr and "bug in msb-pull" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_home_of_somebody_else_is_passed_over_with_a_warning(tmp_path):
    with folder_of_nobody() as mine:
        closed, none = mine / "home-of-root", ("--config", "/dev/null")
        (closed / ".config/msb-pull").mkdir(parents=True)
        (closed / ".config/msb-pull/config.toml").write_text("no toml")
        (closed / ".docker").mkdir()
        os.chmod(closed, 0o700)
        assert closed.stat().st_uid != NOBODY
        store = mine / "store"
        ignored = f"{closed}/.config/msb-pull/config.toml cannot be read and is ignored: Permission denied"
        refused = pulled(as_nobody(command(store), [REPOSITORY]), HOME=str(closed))
        assert (refused.returncode, "may hold rules about signatures" in refused.stderr) == (2, True), refused.stderr
        done = pulled(as_nobody([*command(store), *none], [REPOSITORY]), HOME=str(closed))
        assert done.returncode == 0, done.stderr
        listed = pulled(as_nobody([*program(), "ls", "--home", str(store)], [REPOSITORY]), HOME=str(closed))
        assert (listed.returncode, ignored in listed.stderr) == (0, True), listed.stderr
        default = pulled(as_nobody([*command(), *none], [REPOSITORY]), HOME=str(closed))
        assert default.returncode == 7 and "Permission denied" in default.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_uid_that_no_list_of_users_knows_and_no_home():
    unknown = "12345"
    with folder_of_nobody() as mine:
        os.chown(mine, int(unknown), int(unknown))
        words = [unknown if word == str(NOBODY) else word for word in as_nobody(command(mine / "store"), [REPOSITORY])]
        done = pulled(words, HOME="")
        assert done.returncode == 0, done.stderr
        words = [unknown if word == str(NOBODY) else word for word in as_nobody(command(), [REPOSITORY])]
        done = pulled(words, HOME="", MICROSANDBOX_HOME="")
        assert (done.returncode, done.stderr.count("\n")) == (2, 2)
        assert "this user has no home" in done.stderr
