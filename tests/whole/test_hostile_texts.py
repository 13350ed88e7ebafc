"""No text of an image reaches a terminal raw, whatever part of it is shown by whichever command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from msb_pull.display.lines import headline
from msb_pull.display.tables import facts, table
from msb_pull.ground import events
from msb_pull.ground.text import clipped, in_ascii, visible, visible_bytes
from tests.support.imagebuild import DockerImage, LayoutBuilder, archive_bytes, docker_archive, regular
from tests.support.program import run_program

# A title, a cleared screen, a colour by its 8-bit code, a line of its own, text that runs backwards, an invisible mark.
EVIL = "x\x1b]0;title\x07\x1b[2J\x9b31m\nerror: forged\r\u202ekcab\u2066\u200b"
HOSTILE = {"\x1b", "\x07", "\x9b", "\r", "\u202e", "\u2066", "\u200b"}


def harmless(*texts: str) -> None:
    for text in texts:
        assert not HOSTILE & set(text), repr(text)
        assert not any(line.startswith("error: forged") for line in text.splitlines()), repr(text)


@pytest.fixture
def layout(tmp_path) -> LayoutBuilder:
    return LayoutBuilder(tmp_path / "layout")


def image(layout: LayoutBuilder, platform: str = "linux/amd64") -> str:
    config = {
        "os.version": EVIL, "created": EVIL, "author": EVIL,
        "config": {"Env": [f"A={EVIL}"], "Cmd": [EVIL], "Entrypoint": [EVIL], "WorkingDir": EVIL, "User": EVIL,
                   "StopSignal": EVIL, "Labels": {EVIL: EVIL}, "ExposedPorts": {EVIL: {}}, "Volumes": {EVIL: {}}},
    }  # fmt: skip
    made = layout.image([archive_bytes([regular("file", b"1")])], config=config, platform=platform)
    layout.add(made | {"annotations": {"org.opencontainers.image.title": EVIL, EVIL: EVIL}})
    return f"oci:{layout.write()}"


def run(*words: str, code: int = 0) -> str:
    """What the program writes to both streams."""
    done = run_program(words, text=False)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, err
    harmless(out, err)
    return out + err


def test_the_parts_of_a_config(layout):
    """Its platform stands in the headline, in lists, in summaries and in documents."""
    reference = image(layout, f"linux/amd64/{EVIL}")
    shown = [
        run("pull", "-n", "--as", "s:1", reference),
        run("pull", "--as", "s:1", reference),
        run("pull", "-vv", "--force", "--as", "s:1", reference),
        run("pull", "--progress", "json", "--force", "--as", "s:1", reference),
        run("pull", "--format", "json", "--force", "--as", "s:1", reference),
        run("ls"), run("ls", "--no-trunc"), run("ls", "--format", "json"),
        run("inspect", "s:1"), run("inspect", "--format", "json", "s:1"), run("inspect", "--files", "s:1"),
        run("verify", "s:1"), run("prune", "-n", "--all"),
    ]  # fmt: skip
    # The platform is shown, so what is tested is there.
    assert "\\x1b]0;title" in shown[1] and "\\x1b]0;title" in shown[5]
    assert json.loads(run("inspect", "--format", "json", "s:1"))["config"]["user"] == EVIL


def test_an_operating_system_that_is_not_ours(layout):
    shown = run("pull", "--as", "s:1", image(layout, f"{EVIL}/{EVIL}"))
    assert "\\x1b]0;title" in shown
    run("ls")
    run("pull", "--policy", "never", "s:1", code=3)


def test_a_platform_that_was_asked_for_and_is_not_there(layout):
    other = {"os": EVIL, "architecture": EVIL, "variant": EVIL}
    made = layout.image([], config={"comment": "1"}) | {"platform": other}
    index = json.dumps({"schemaVersion": 2, "manifests": [made]}).encode()
    layout.add(layout.blob(index, "application/vnd.oci.image.index.v1+json"))
    for options in ([], ["--debug"], ["--format", "json"], ["--progress", "json"]):
        run("pull", "--as", "s:1", *options, f"oci:{layout.write()}", code=3)


@pytest.mark.parametrize("options", [[], ["--debug"], ["--format", "json"]])
def test_types_that_errors_quote(layout, options):
    layout.add(layout.image([], manifest={"artifactType": EVIL}))
    run("pull", "--as", "s:1", *options, f"oci:{layout.write()}", code=6)


def test_names_in_a_layout_and_in_an_archive(layout, tmp_path):
    layout.add(layout.image([]), EVIL)
    layout.add(layout.image([], config={"comment": "2"}), "2" + EVIL)
    for reference in (f"oci:{layout.write()}", f"oci:{layout.folder}:none"):
        run("pull", "--debug", reference, code=3 if reference.endswith("none") else 2)
    archive = docker_archive(tmp_path / "image.tar", DockerImage([], [EVIL]))
    run("pull", "--debug", f"docker-archive:{archive}", code=2)
    run("pull", "--debug", f"docker-archive:{archive}:none", code=3)


def test_names_of_members_of_an_archive(tmp_path):
    path = Path(tmp_path / "image.tar")
    path.write_bytes(archive_bytes([regular(f"{EVIL}/index.json", b"{}")]))
    run("pull", "--debug", "--as", "s:1", f"oci-archive:{path}", code=6)


def test_one_escaper_for_all_rooms():
    for shown in (visible(EVIL), visible_bytes(EVIL.encode()), clipped(EVIL, 200)):
        harmless(shown)
        assert shown == visible(EVIL) and shown.isprintable()
    harmless(clipped(EVIL, 20), in_ascii(EVIL, 20))
    assert len(clipped(EVIL * 1000, 20)) == 20 and visible("häus") == "häus"
    assert visible_bytes(b"\xff") == "\\xff"


def test_what_is_laid_out_is_escaped_where_it_is():
    event = events.PullPlanned(EVIL, EVIL, ())
    for text in (table(["A"], [[EVIL]]), facts([("a", EVIL), ("b", [EVIL, EVIL])]), headline(event)):
        harmless(text)
    assert len(facts([("b", [EVIL, EVIL])]).splitlines()) == 2
