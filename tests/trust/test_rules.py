"""Which rule an image falls under, and which rules make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from msb_pull.config import settings as config
from msb_pull.config.signatures import SignatureRule
from msb_pull.ground.errors import SignatureError, UsageError
from msb_pull.image.reference import Reference
from msb_pull.trust.rules import Wanted, matching, requirements

KEY = (Path("a.pub"),)


def rule(images: str, **fields) -> SignatureRule:
    return SignatureRule(images=images, **(fields or {"keys": KEY}))


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*", "ubuntu", True),
        ("docker.io/library/ubuntu", "ubuntu:22.04", True),
        ("docker.io/library/ubuntu", "ubuntu@sha256:" + "a" * 64, True),
        ("docker.io/library/ubuntu:22.04", "ubuntu:22.04", True),
        ("docker.io/library/ubuntu:22.04", "ubuntu:24.04", False),
        ("docker.io/library/ubuntu", "ubuntu-core", False),
        ("docker.io/*", "index.docker.io/library/ubuntu", True),
        ("ghcr.io/acme/*", "ghcr.io/acme/app:1", True),
        ("ghcr.io/acme/*", "ghcr.io/acme/team/app:1", True),
        ("ghcr.io/acme/*", "ghcr.io/acmeevil/app:1", False),
        ("ghcr.io/acme/*", "evil.com/ghcr.io/acme/app:1", False),
        # Other spellings of one host are no way around a rule.
        ("ghcr.io/acme/*", "GHCR.io/acme/app:1", True),
        ("GHCR.IO/acme/*", "ghcr.io/acme/app:1", True),
        ("ghcr.io/acme/*", "ghcr.io:443/acme/app:1", True),
        ("reg.example.com:500/acme/*", "reg.example.com:0500/acme/app:1", True),
        ("ghcr.io/acme/*", "ghcr.io:0443/acme/app:1", True),
        ("ghcr.io/acme/*", "ghcr.io:80/acme/app:1", False),
        ("10.0.0.5:5000/*", "10.5:5000/app", True),
        ("10.0.0.5:5000/*", "10.0.0.6:5000/app", False),
        ("127.0.0.1:5000/*", "2130706433:5000/app", True),
        ("[fd00::1]:5000/acme/*", "[fd00::1]:5000/acme/app:1", True),
        ("[fd00::1]:5000/acme/*", "[FD00:0::1]:5000/acme/app:1", True),
        ("[fd00::1]:*/acme/*", "[fd00::1]:5000/acme/app:1", True),
        ("[fd00::1]/acme/*", "[fd00::2]/acme/app:1", False),
        ("docker.io/*", "registry.hub.docker.com/library/ubuntu", True),
        # What Docker calls its official images.
        ("docker.io/ubuntu", "ubuntu:22.04", True),
        ("docker.io/ubuntu:*", "docker.io/library/ubuntu:22.04", True),
        ("docker.io/acme", "docker.io/acme/app", False),
        ("ghcr.io/ubuntu", "ghcr.io/library/ubuntu", False),
        ("*/app:[A-Z]*", "ghcr.io/acme/app:Dev", True),
        ("ghcr.io/acme/app:V1", "ghcr.io/acme/app:V1", True),
        ("ghcr.io/*:V1", "ghcr.io/acme/app:V1", True),
        ("ghcr.io/acme/app@sha256:*", "ghcr.io/acme/app:1@sha256:" + "a" * 64, True),
        ("docker.io/library/*", "registry-1.docker.io/library/ubuntu", True),
        ("index.docker.io/library/*", "ubuntu", True),
        ("ghcr.io/acme/app:[0-9]*", "ghcr.io/acme/app:1", True),
        ("ghcr.io/acme/app:[0-9]*", "ghcr.io/acme/app:dev", False),
        ("localhost/*", "localhost/app", True),
        ("localhost:5000/app", "localhost:5000/app", True),
    ],
)
def test_which_images_a_glob_means(pattern, name, matches):
    wanted = rule(pattern)
    assert (matching(Reference.parse(name), [wanted]) is wanted) == matches


def test_the_first_rule_that_matches_counts():
    first, second, last = rule("ghcr.io/acme/free*", accept=True), rule("ghcr.io/acme/*"), rule("*", reject=True)
    rules = Wanted((first, second, last))
    assert requirements(Reference.parse("ghcr.io/acme/free:1"), rules) == []
    assert requirements(Reference.parse("ghcr.io/acme/app:1"), rules) == [second]
    with pytest.raises(SignatureError, match="not signed as required") as refused:
        requirements(Reference.parse("ubuntu"), rules)
    assert "takes no such image" in (refused.value.cause or "")


def test_keys_of_one_run_are_wanted_beside_the_rules():
    accepting, wanting = rule("ghcr.io/free/*", accept=True), rule("ghcr.io/acme/*")
    wanted = Wanted((accepting, wanting), keys=(Path("mine.pub"),))
    assert [x.keys for x in requirements(Reference.parse("ghcr.io/free/app"), wanted)] == [(Path("mine.pub"),)]
    assert [x.keys for x in requirements(Reference.parse("ghcr.io/acme/app"), wanted)] == [KEY, (Path("mine.pub"),)]
    assert len(requirements(Reference.parse("ubuntu"), wanted)) == 1


def test_going_without_a_check_lifts_no_rule():
    rules = (rule("ghcr.io/free/*", accept=True), rule("ghcr.io/acme/*"))
    wanted = Wanted(rules, unchecked=True)
    assert requirements(Reference.parse("ghcr.io/free/app"), wanted) == []
    assert requirements(Reference.parse("ubuntu"), wanted) == []
    with pytest.raises(SignatureError) as refused:
        requirements(Reference.parse("ghcr.io/acme/app"), wanted)
    assert "--no-signature-check does not lift that" in (refused.value.cause or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("signatures = 1", "must be tables"),
        ("signatures = [1]", "must be tables"),
        ('[signatures]\nimages = "*"', "must be tables"),
        ('[[signatures]]\nkey = "a.pub"', "images is missing"),
        ('[[signatures]]\nimages = "*"', "says nothing"),
        ('[[signatures]]\nimages = ""\nkey = "a"', "must not be empty"),
        ('[[signatures]]\nimages = ["*"]\nkey = "a"', "is not text"),
        ('[[signatures]]\nimages = "ubuntu"\nkey = "a"', "names no registry"),
        ('[[signatures]]\nimages = "ubuntu*"\nkey = "a"', "names no registry"),
        ('[[signatures]]\nimages = "ubuntu:22.04"\nkey = "a"', "names no registry"),
        ('[[signatures]]\nimages = "acme/app"\nkey = "a"', "names no registry"),
        ('[[signatures]]\nimages = "https://ghcr.io/acme/*"\nkey = "a"', "matches no image"),
        ('[[signatures]]\nimages = "docker://ghcr.io/acme/*"\nkey = "a"', "matches no image"),
        ('[[signatures]]\nimages = "ghcr.io/acme/"\nkey = "a"', "matches no image"),
        ('[[signatures]]\nimages = "ghcr.io//acme"\nkey = "a"', "matches no image"),
        ('[[signatures]]\nimages = "ghcr.io/Acme/*"\nkey = "a"', "matches no image"),
        ('[[signatures]]\nimages = " ghcr.io/acme/*"\nkey = "a"', "matches no image"),
        ('[[signatures]]\nimages = "ghcr.io/acme/*\\n"\nkey = "a"', "matches no image"),
        ('[[signatures]]\nimages = "ghcr.io/acme/{a,b}"\nkey = "a"', "matches no image"),
        ('[[signatures]]\nimages = "*"\nkey = []', "at least one file"),
        ('[[signatures]]\nimages = "*"\nkey = [""]', "must not be empty"),
        ('[[signatures]]\nimages = "*"\nkey = 1', "is not text"),
        ('[[signatures]]\nimages = "*"\nkeys = "a"', "unknown key keys"),
        ('[[signatures]]\nimages = "*"\naccept = false', "can only be true"),
        ('[[signatures]]\nimages = "*"\nreject = "yes"', "neither true nor false"),
        ('[[signatures]]\nimages = "*"\naccept = true\nreject = true', "more than one thing"),
        ('[[signatures]]\nimages = "*"\nkey = "a"\naccept = true', "more than one thing"),
        ('[[signatures]]\nimages = "*"\nkey = "a"\nissuer = "b"', "more than one thing"),
        ('[[signatures]]\nimages = "*"\nissuer = "a"\nidentity = "b"', "go together"),
        ('[[signatures]]\nimages = "*"\nissuer = "a"\ntrust_root = "b"', "go together"),
        ('[[signatures]]\nimages = "*"\nidentity = "a"\ntrust_root = "b"', "go together"),
    ],
)
def test_rules_that_make_no_sense_are_errors(tmp_path, text, message):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as wrong:
        config.load({"config": str(path)}, {})
    assert str(path) in wrong.value.message


@pytest.mark.parametrize("what", ["a folder", "a symlink to nothing", "in a folder that is one", "a loop"])
def test_a_file_that_cannot_be_read_switches_no_rule_off(tmp_path, what):
    path = tmp_path / "msb-pull" / "config.toml"
    if what == "in a folder that is one":
        path.parent.symlink_to("gone")
    else:
        path.parent.mkdir()
        path.mkdir() if what == "a folder" else path.symlink_to("gone" if what.endswith("nothing") else path)
    settings = config.load({"home": str(tmp_path)}, {"XDG_CONFIG_HOME": str(tmp_path)})
    assert [str(path) in text for text in settings.warnings] == [True]
    with pytest.raises(UsageError, match="may hold rules about signatures") as refused:
        _ = settings.rules
    assert str(path) in refused.value.message and "--config" in (refused.value.hint or "")


def test_a_file_that_is_not_there_has_no_rules(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "msb-pull").symlink_to("elsewhere")
    for base in (tmp_path, tmp_path / "none"):
        settings = config.load({"home": str(tmp_path)}, {"XDG_CONFIG_HOME": str(base)})
        assert (settings.rules, settings.warnings) == ((), ())


def test_paths_begin_at_the_file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[[signatures]]\nimages = "*"\nkey = ["a.pub", "/etc/b.pub", "~/c.pub"]\n')
    (found,) = config.load({"config": str(path)}, {}).signatures
    assert found.keys == (tmp_path / "a.pub", Path("/etc/b.pub"), Path("~/c.pub").expanduser())
    assert str(found) == f'{path}: signatures[1] (images = "*")'
