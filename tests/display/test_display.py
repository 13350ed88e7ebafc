"""Both streams: who gets what, and that nothing from outside can take the terminal over."""

from __future__ import annotations

import io
import json
import os
import threading
import time

import pytest

from msb_pull.config import settings as config
from msb_pull.display import display as drawing
from msb_pull.display.display import Display
from msb_pull.display.lines import PlainRenderer, describe
from msb_pull.display.streams import OutputClosed, Streams, write_out
from msb_pull.ground import events as e
from msb_pull.ground.errors import NetworkError
from msb_pull.ground.text import visible, visible_bytes
from tests.support.counting import wait_for
from tests.support.events import IMAGE, digest, name, planned, progress


class Tty(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def display(*, mode=None, quiet=False, verbosity=0, environ=None, form="text", tty=False):
    stream = Tty if tty else io.StringIO
    it = Display(Streams(io.StringIO(), io.StringIO(), stream()))
    settings = config.load({"progress": mode}, {"LANG": "C.UTF-8", "TERM": "xterm", **(environ or {})})
    it.configure(settings, form=form, quiet=quiet, verbosity=verbosity)
    return it


def shown(it):
    it.close()
    return it.streams.stderr.getvalue()


def tell_a_pull(it):
    it.observe(e.Resolving(IMAGE))
    it.observe(planned(100, 1_200_000, present={0}))
    it.observe(progress(1, 600_000, 1_200_000))
    it.observe(e.Retrying(IMAGE, "blob", "connection reset", 1, 0.5, 5))
    it.observe(e.Warned(IMAGE, "an odd layer"))
    it.observe(e.Warned(IMAGE, "an odd layer"))
    it.observe(e.LayerDone(IMAGE, digest(1), 1_200_000, 1_200_000, present=False))
    it.observe(e.ImageDone(IMAGE, "pinned", 1_200_100, 1_200_000, 2.4, 2, 1))


def test_plain_lines():
    it = display(mode="plain")
    tell_a_pull(it)
    assert shown(it).splitlines() == [
        f"resolving {IMAGE}",
        f"Pulling {IMAGE} (linux/amd64, 2 layers, 1.2 MB)",
        f"layer {name(0)} already here",
        "retrying blob in 0.5s (retry 1 of 5): connection reset",
        "warning: an odd layer",
        f"layer {name(1)} done 1.2 MB",
    ]
    assert it.streams.stdout.getvalue() == ""


def test_quiet_leaves_the_warnings():
    """Somebody who wants no progress still wants to know that the image is not the one that was asked for."""
    it = display(quiet=True, verbosity=2)
    tell_a_pull(it)
    it.observe(e.Logged(IMAGE, 1, "a line of the log"))
    it.note("Pulled", done=True)
    assert shown(it) == "warning: an odd layer\n"


def test_none_keeps_warnings_and_the_summary():
    it = display(mode="none")
    tell_a_pull(it)
    it.note("Pulled")
    assert shown(it) == "warning: an odd layer\nPulled\n"


def test_json_lines():
    it = display(mode="json")
    tell_a_pull(it)
    it.note("not in between")
    it.error(NetworkError("no answer", hint="try again"))
    lines = [json.loads(line) for line in shown(it).splitlines()]
    assert [line["event"] for line in lines] == [
        *("resolving", "pull-planned", "layer-progress", "retrying", "warned", "warned", "layer-done", "image-done"),
        "error",
    ]
    assert lines[1]["layers"][1] == {"digest": digest(1), "size_bytes": 1_200_000, "present": False}
    assert lines[2]["done_bytes"] == 600_000
    assert lines[2]["phase"] == "downloading"
    assert lines[-1]["code"] == 5


def test_events_carry_their_units():
    check = e.CheckProgress(IMAGE, digest(1), 5, 10, "entries")
    assert describe(check) == {
        "event": "check-progress",
        "image": IMAGE,
        "digest": digest(1),
        "done": 5,
        "total": 10,
        "unit": "entries",
    }


def test_a_long_layer_gets_a_line_every_ten_seconds():
    now = 0.0
    lines = []
    renderer = PlainRenderer(lines.append, progress=True, verbosity=0, clock=lambda: now)
    for tenth in range(260):
        now = tenth / 10
        renderer.draw([progress(1, 100_000 * tenth, 100_000_000)])
    assert lines == [
        f"layer {name(1)} 10.0/100.0 MB (10%) 1.0 MB/s",
        f"layer {name(1)} 20.0/100.0 MB (20%) 1.0 MB/s",
    ]


@pytest.mark.parametrize(
    ("mode", "environ", "tty", "verbosity", "expected"),
    [
        (None, {}, True, 0, "bars"),
        (None, {}, False, 0, "plain"),
        (None, {"CI": "true"}, True, 0, "plain"),
        (None, {"TERM": "dumb"}, True, 0, "plain"),
        (None, {}, True, 1, "plain"),
        ("bars", {"CI": "true"}, True, 0, "bars"),
        ("bars", {}, False, 0, "plain"),
        ("bars", {"TERM": "dumb"}, True, 0, "plain"),
        ("none", {}, True, 0, "none"),
        ("json", {}, True, 0, "json"),
        (None, {"MSB_PULL_PROGRESS": "none"}, True, 0, "none"),
    ],
)
def test_mode(mode, environ, tty, verbosity, expected):
    assert display(mode=mode, environ=environ, tty=tty, verbosity=verbosity).mode == expected


def test_log_lines_by_level():
    for verbosity, expected in ((0, ""), (1, "one\n"), (2, "one\ntwo\n")):
        it = display(mode="none", verbosity=verbosity)
        it.observe(e.Logged("", 1, "one"))
        it.observe(e.Logged("", 2, "two"))
        assert shown(it) == expected


def test_log_events_by_level():
    it = display(mode="json", verbosity=1)
    it.observe(e.Logged("", 1, "one"))
    it.observe(e.Logged("", 2, "two"))
    assert [json.loads(line)["text"] for line in shown(it).splitlines()] == ["one"]


def test_errors_in_three_lines():
    it = display()
    it.error(NetworkError("ghcr.io/a/b: no \x1b[31manswer", cause="timed\nout", hint="try again"))
    assert shown(it) == "error: ghcr.io/a/b: no \\x1b[31manswer\n  cause: timed out\n  hint: try again\n"


def test_names_cannot_take_the_terminal_over():
    """A13: control characters, bidi overrides and markup of an image's names."""
    assert visible("[bold]plain[/bold]") == "[bold]plain[/bold]"
    assert visible("a\x1b[2J\x07b") == "a\\x1b[2J\\x07b"
    assert visible("\u202egnp.exe") == "\\u202egnp.exe"
    assert visible_bytes(b"[/bold]\x1b[2Jx\n\xff") == "[/bold]\\x1b[2Jx\\n\\xff"
    assert visible("\ud800") == "\\ud800"
    assert visible("naïve 日本") == "naïve 日本"


def test_d38_a_locale_without_unicode_gets_ascii():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write_out(out, "naïve ✓\n")
    assert out.buffer.getvalue() == b"na\\xefve \\u2713\n"
    it = display(tty=True, environ={"LANG": "", "LC_ALL": "C", "NO_COLOR": "1"})
    tell_a_pull(it)
    it.note("Pulled", done=True)
    text = shown(it)
    assert text.isascii()
    assert f"* {name(1)}    1.2 MB" in text


def test_a_closed_pipe_is_told_once_and_quietly():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as stream:
        with pytest.raises(OutputClosed):
            write_out(stream, "text\n")
        stream.write("again")


def test_a_slow_terminal_does_not_slow_the_work():
    """The stream blocks for good; events are still taken, and the end comes."""
    stuck, drawing = threading.Event(), threading.Event()

    class Stuck(Tty):
        def write(self, text):
            drawing.set()
            stuck.wait()
            return len(text)

    it = Display(Streams(io.StringIO(), io.StringIO(), Stuck()))
    it.configure(config.load({"progress": "plain"}, {}), form="text", quiet=False, verbosity=0)
    for step in range(20_000):
        it.observe(progress(step % 4, step, 20_000))
    it.observe(e.LayerDone(IMAGE, digest(1), 10, 10, present=False))
    assert drawing.wait(20)
    it.observe(e.LayerDone(IMAGE, digest(2), 10, 10, present=False))
    it.close()
    stuck.set()


def test_only_the_newest_progress_of_a_layer_is_drawn():
    it = display(mode="json")
    with it._changed:  # nothing is drawn meanwhile
        for step in range(1, 101):
            it.observe(progress(1, step, 100))
    lines = [json.loads(line) for line in shown(it).splitlines()]
    assert [line["done_bytes"] for line in lines] == [100]


def test_at_most_ten_updates_a_second(monkeypatch):
    """However often something happens between two rests, it is drawn once."""
    assert drawing._INTERVAL >= 0.1
    monkeypatch.setattr(drawing, "_INTERVAL", 1000.0)
    it = display(mode="json")
    it.observe(progress(1, 1, 10_000_000))
    wait_for(it.streams.stderr.getvalue)
    for step in range(2, 300):
        it.observe(progress(1, step, 10_000_000))
        time.sleep(0.0005)
    assert len(shown(it).splitlines()) == 2


def test_rows_go_before_the_result_comes():
    it = display(tty=True)
    it.observe(planned(100))
    it.observe(progress(0, 50, 100))
    it.settle()
    assert it.streams.stderr.getvalue().endswith("\r\x1b[K\x1b7\x1b[B\x1b[J\x1b8")
    it.result("pinned")
    it.close()
    assert it.streams.stdout.getvalue() == "pinned\n"
    # Nothing is drawn again unless something happens.
    assert it.streams.stderr.getvalue().endswith("\r\x1b[K\x1b7\x1b[B\x1b[J\x1b8")


def test_questions():
    for answer, expected in (("y\n", True), ("YES\n", True), ("n\n", False), ("", False), ("yup\n", False)):
        it = display()
        it.streams.stdin.write(answer)
        it.streams.stdin.seek(0)
        assert it.ask("Remove?") is expected
        assert it.streams.stderr.getvalue().startswith("Remove? [y/N] ")


def test_plain_lines_of_several_images_say_which():
    lines: list[str] = []
    renderer = PlainRenderer(lines.append, progress=True, verbosity=0, several=True)
    renderer.draw([
        e.Resolving(IMAGE),
        planned(5, 1_200_000, present={0}),
        e.LayerWaiting(IMAGE, digest(1), "another image of this run"),
        e.LayerDone(IMAGE, digest(1), 1_200_000, 1_200_000, present=False),
        e.Retrying(IMAGE, "blob 1 from example.com", "reset", 2, 1.0, 5),
        e.Warned(IMAGE, "it is odd"),
        e.Warned("", "so is this"),
    ])  # fmt: skip
    assert lines == [
        f"resolving {IMAGE}",
        f"Pulling {IMAGE} (linux/amd64, 2 layers, 1.2 MB)",
        f"{IMAGE}: layer {name(0)} already here",
        f"{IMAGE}: layer {name(1)} waiting for another image of this run",
        f"{IMAGE}: layer {name(1)} done 1.2 MB",
        f"{IMAGE}: retrying blob 1 from example.com in 1.0s (retry 2 of 5): reset",
        f"warning: {IMAGE}: it is odd",
        "warning: so is this",
    ]
