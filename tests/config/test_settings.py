"""Settings: order of places, checks with the key's name, unknown keys."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from msb_pull.config import file as config_file
from msb_pull.config import settings as config
from msb_pull.config.table import TABLE
from msb_pull.ground.errors import UsageError
from msb_pull.ground.sizes import Percent, format_size, parse_rate, parse_size


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config" / "msb-pull").mkdir(parents=True)
    return tmp_path / ".config" / "msb-pull"


@pytest.mark.parametrize("variable", [None, "", "/etc/xdg", "relative"])
def test_the_default_file_is_where_platformdirs_says(monkeypatch, variable):
    if variable is not None:
        monkeypatch.setenv("XDG_CONFIG_HOME", variable)
    expected = platformdirs.user_config_path("msb-pull", appauthor=False) / "config.toml"
    assert config_file.default_path(os.environ) == expected


def write(folder: Path, text: str) -> None:
    (folder / "config.toml").write_text(text)


def test_built_in():
    settings = config.load({}, {})
    assert settings.home == Path("~/.microsandbox").expanduser()
    assert settings.layers_dir is None and settings.config is None
    assert settings.jobs is None
    assert (settings.policy, settings.default_registry, settings.retries) == ("missing", "docker.io", 5)


def test_whole_file_of_the_documentation(folder):
    write(
        folder,
        """
home = "~/.microsandbox"
jobs = 8
platform = "linux/amd64"
default_registry = "docker.io"
sync = false
[pull]
policy = "missing"
retries = 5
timeout = 60
limit_rate = "50M"
[registries."docker.io"]
mirrors = ["https://mirror.example.com"]
[registries."localhost:5000"]
plain_http = true
[registries."registry.example.com"]
ca_cert = "/etc/ssl/example.pem"
""",
    )
    settings = config.load({}, {})
    assert settings.home == Path("~/.microsandbox").expanduser()
    assert settings.config == folder / "config.toml"
    assert settings.limit_rate == 50_000_000
    assert settings.registries["docker.io"].mirrors == ("https://mirror.example.com",)
    assert settings.registries["localhost:5000"].plain_http
    assert settings.registries["registry.example.com"].ca_cert == Path("/etc/ssl/example.pem")


def test_option_before_environment_before_file(folder):
    write(folder, "jobs = 3")
    assert config.load({}, {}).jobs == 3
    assert config.load({}, {"MSB_PULL_JOBS": "5"}).jobs == 5
    assert config.load({"jobs": "7"}, {"MSB_PULL_JOBS": "5"}).jobs == 7
    assert config.load({"jobs": None}, {"MSB_PULL_JOBS": ""}).jobs == 3


@pytest.mark.parametrize("key", sorted(x.name for x in TABLE.values() if x.variable))
def test_every_variable_sets_its_key(key, tmp_path):
    values = {"jobs": "2", "progress": "json", "platform": "linux/arm64", "default_registry": "quay.io"}
    value = values.get(key, str(tmp_path / "x.toml"))
    (tmp_path / "x.toml").write_text("")
    assert str(getattr(config.load({}, {TABLE[key].variable: value}), key)) == value


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("jbos = 4", "unknown key jbos", "did you mean jobs?"),
        ("limit_rate = 4", "unknown key limit_rate", "the key is pull.limit_rate"),
        ("retires = 4", "unknown key retires", "did you mean pull.retries?"),
        ("[pull]\npolcy = 'never'", "unknown key pull.polcy", "did you mean pull.policy?"),
        ("[pull]\njobs = 4", "unknown key pull.jobs", "the key is jobs"),
        ("keep = '1GB'", "unknown key keep", "the key is store.keep"),
        ("[pull]\nmin_free = '1GB'", "unknown key pull.min_free", "the key is store.min_free"),
        ("[store]\nretries = 3", "unknown key store.retries", "the key is pull.retries"),
        ("[store]\nkep = '1GB'", "unknown key store.kep", "did you mean store.keep?"),
        ("store = '1GB'", "store: must be a table", ""),
        ("[registries.docker.io]\nmirrors = []", "unknown key registries", "needs quotes"),
        ('[registries."a.b"]\nmirors = []', 'registries."a.b".mirors', 'did you mean registries."a.b".mirrors?'),
        ("zzz = 1", "unknown key zzz", "valid keys: home"),
        ("registries = 3", "registries: must be a table", "quotes"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(folder, text, said, hint):
    write(folder, text)
    with pytest.raises(UsageError) as caught:
        config.load({}, {})
    assert said in caught.value.message
    assert str(folder / "config.toml") in caught.value.message
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("jobs = 0", "jobs: 0 is not a number from 1 to 64"),
        ("jobs = true", "jobs: true is not a number"),
        ("jobs = 2.5", "jobs: 2.5 is not a number"),
        ("home = 3", "home: 3 is not text"),
        ("home = ''", "home: must not be empty"),
        ("sync = 'yes'", "sync: 'yes' is neither true nor false"),
        ("[pull]\npolicy = 'sometimes'", "pull.policy: 'sometimes' is not one of missing, always, newer, never"),
        ("[pull]\ntimeout = 0", "pull.timeout: 0 is not a number of seconds"),
        ("[pull]\ntimeout = nan", "pull.timeout: nan is not a number of seconds"),
        ("[pull]\nlimit_rate = 'fast'", "pull.limit_rate: 'fast' is not a size"),
        ("[pull]\nlimit_rate = 0", "pull.limit_rate: must be above 0"),
        ('[registries."a"]\nmirrors = "x"', 'registries."a".mirrors: must be a list'),
        ('[registries."a"]\nmirrors = ["x"]', "does not start with https://"),
        ('[registries."a"]\nplain_http = 1', 'registries."a".plain_http: 1 is neither true nor false'),
        ('[registries."https://a:5000"]\nplain_http = true', 'registries."https://a:5000": not the host'),
        ('[registries."a:5000/"]\nplain_http = true', 'registries."a:5000/": not the host'),
        ('[registries.""]\nplain_http = true', 'registries."": not the host'),
        ('[registries."a"]\nmirrors = ["https://a\\u0000"]', 'registries."a".mirrors: '),
        ('[registries."a"]\nmirrors = ["https://a b"]', 'registries."a".mirrors: '),
        ('home = "a\\u0000b"', "home: must not hold a NUL character"),
        ("home = ", "not valid TOML"),
        ("home = " + "[" * 3000, "not valid TOML"),
        ("jobs = " + "9" * 6000, "not valid TOML"),
    ],
)
def test_types_are_checked_with_the_name_of_the_key(folder, text, said):
    write(folder, text)
    with pytest.raises(UsageError) as caught:
        config.load({}, {})
    assert said in caught.value.message


def test_bad_option_and_variable_are_named():
    with pytest.raises(UsageError, match=r"--jobs: '65' is not"):
        config.load({"jobs": "65"}, {})
    with pytest.raises(UsageError, match="MSB_PULL_PROGRESS: 'fancy' is not one of auto"):
        config.load({}, {"MSB_PULL_PROGRESS": "fancy"})


def test_named_file_must_exist(tmp_path):
    with pytest.raises(UsageError, match="no such configuration file"):
        config.load({"config": str(tmp_path / "none.toml")}, {})
    with pytest.raises(UsageError, match="cannot read"):
        config.load({}, {"MSB_PULL_CONFIG": str(tmp_path)})


@pytest.mark.parametrize(
    ("option", "environ", "expected"),
    [
        (None, {}, None),
        (None, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        (None, {"NO_COLOR": "", "FORCE_COLOR": "1"}, True),
        (None, {"FORCE_COLOR": "0"}, None),
        ("always", {"NO_COLOR": "1"}, True),
        ("never", {"FORCE_COLOR": "1"}, False),
        (None, {"TERM": "dumb"}, False),
    ],
)
def test_color(option, environ, expected):
    assert config.load({"color": option}, environ).color is expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"LANG": "en_US.UTF-8"}, True),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C"}, False),
        ({"LC_CTYPE": "C.utf8"}, True),
        ({"LANG": "de_DE.ISO-8859-1"}, False),
    ],
)
def test_unicode_follows_the_locale(environ, expected):
    assert config.load({}, environ).unicode is expected


def test_continuous_integration_and_dumb_terminals_are_not_interactive():
    assert config.load({}, {"TERM": "xterm"}).interactive
    assert not config.load({}, {"TERM": "xterm", "CI": "true"}).interactive
    assert not config.load({}, {"TERM": "dumb"}).moving
    assert not config.load({}, {}).moving


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1536, "1.5 kB"), (77_812_345, "77.8 MB"), (999_950, "1.0 MB")],
)
def test_sizes_are_decimal(size, text):
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("1500", 1500), ("50M", 50_000_000), ("1.5 GB", 1_500_000_000), ("64GiB", 64 << 30)],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["10M", "10MB/s", "10M/S", "10 MB /s", "10000000/s"])
def test_rates_are_read(text):
    assert parse_rate(text) == 10**7


@pytest.mark.parametrize("text", ["", "/s", "10M/m", "10M/s/s", "10M/ss"])
def test_bad_rates(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_rate(text)


@pytest.mark.parametrize("name", ["max_layer_size", "max_window", "keep", "min_free"])
def test_a_rate_is_no_size(name):
    with pytest.raises(ValueError, match="'50MB/s' is not a size"):
        TABLE[name].parse("50MB/s")
    assert TABLE["limit_rate"].parse("50MB/s") == 50_000_000


@pytest.mark.parametrize("text", ["", "M", "-5", "5X", "1.2.3", "٣", ".", "1e5", "5M/s", "5MB/S"])
def test_bad_sizes(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "keep", "min_free"),
    [
        ("", None, None),
        ("[store]\nkeep = '20GB'", 20 * 10**9, None),
        ("[store]\nkeep = 5000\nmin_free = '1GiB'", 5000, 2**30),
        ("[store]\nmin_free = '10%'", None, Percent(10)),
        ("[store]\nmin_free = ' 2.5 % '", None, Percent(2.5)),
    ],
)
def test_the_budget_of_the_store(folder, text, keep, min_free):
    write(folder, text)
    settings = config.load({}, {})
    assert (settings.keep, settings.min_free) == (keep, min_free)
    assert config.load({"keep": "1kB", "min_free": "3%"}, {}).min_free == Percent(3)


@pytest.mark.parametrize(("value", "part"), [(10, 100), (0.1, 1), (99.9, 999), (33.3, 333), (12.34, 124)])
def test_a_percentage_is_rounded_up(value, part):
    assert Percent(value).of(1000) == part
