"""One ``msb load``: fed, ended, and what is said of a program that does something else."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from types import SimpleNamespace

import pytest

from msb_pull.ground.errors import Cancelled, LocalError, UsageError
from msb_pull.ground.running import Cancel
from msb_pull.work.microsandbox.program import Loading, find_msb, has_image
from tests.support.counting import wait_for

LARGE = bytes(4 << 20)


@pytest.fixture
def program(tmp_path):
    """Makes a program of some lines of Python."""

    def make(text: str) -> str:
        path = tmp_path / "msb"
        path.write_text(f"#!{sys.executable} -IS\nimport os, signal, subprocess, sys, time\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return make


def feed(program: str, data: bytes = LARGE, **options) -> None:
    with Loading(program, None, Cancel(), **options) as loading:
        assert loading.write(data) == len(data)
        loading.finish()


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_all_of_it_arrives(program, tmp_path):
    out = tmp_path / "out"
    data = os.urandom(3 << 20)
    feed(program(f"open({str(out)!r}, 'wb').write(sys.stdin.buffer.read())"), data)
    assert out.read_bytes() == data


def test_it_is_asked_to_be_quiet_and_to_keep_what_it_reads_in_a_folder(program, tmp_path):
    out = tmp_path / "out"
    text = f"open({str(out)!r}, 'w').write(repr((sys.argv[1:], os.environ['TMPDIR']))); sys.stdin.buffer.read()"
    with Loading(program(text), tmp_path / "spool", Cancel()) as loading:
        loading.finish()
    assert out.read_text() == repr((["load", "--quiet"], str(tmp_path / "spool")))


@pytest.mark.parametrize(
    ("text", "message", "cause", "hint"),
    [
        ("sys.exit('first\\nerror: no room')", "msb load failed (status 1)", "error: no room", None),
        ("sys.stdin.buffer.read(); sys.exit('at the end')", "msb load failed (status 1)", "at the end", None),
        ("sys.exit(3)", "msb load failed (status 3)", None, None),
        ("print('usage', file=sys.stderr); sys.exit(2)", "msb load failed (status 2)", "usage", "0.5"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "msb load was killed by signal 9", None, None),
        ("sys.stderr.write('x' * 1_000_000); sys.exit(1)", "msb load failed (status 1)", "x" * 4096, None),
        ("sys.stderr.buffer.write(b'bad \\xff text'); sys.exit(1)", "msb load failed (status 1)", "bad � text", None),
    ],
)
def test_its_last_words(program, text, message, cause, hint):
    with pytest.raises(LocalError) as caught:
        feed(program(text))
    assert (caught.value.message, caught.value.cause) == (message, cause)
    assert caught.value.hint is None if hint is None else hint in caught.value.hint


def test_of_much_that_it_says_the_end_is_kept_and_it_is_never_kept_waiting(program):
    text = "sys.stderr.write('line\\n' * 1_000_000); sys.stderr.flush(); sys.stdin.buffer.read(); sys.exit('the end')"
    with Loading(program(text), None, Cancel()) as loading:
        loading.write(LARGE)
        with pytest.raises(LocalError) as caught:
            loading.finish()
        assert len(loading._said) <= 64 << 10
    assert caught.value.cause == "the end"


def test_one_that_closes_its_standard_error_is_fed_to_the_end(program, tmp_path):
    out = tmp_path / "out"
    feed(program(f"os.close(2); open({str(out)!r}, 'wb').write(sys.stdin.buffer.read())"))
    assert out.read_bytes() == LARGE


def test_a_failure_is_noticed_though_its_child_holds_the_pipe(program):
    """The end of the pipe that is read stays open with the child."""
    text = "subprocess.Popen(['sleep', '30'], stdout=2); sys.exit('left a child')"
    with pytest.raises(LocalError, match="status 1"):
        feed(program(text))


def test_one_that_has_closed_its_input_is_ended(program, tmp_path):
    note = tmp_path / "pid"
    text = f"open({str(note)!r}, 'w').write(str(os.getpid())); os.close(0); time.sleep(60)"
    with pytest.raises(LocalError, match="msb load stopped reading"):
        feed(program(text))
    assert gone(int(note.read_text()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a pipe be made larger")
def test_a_mebibyte_waits_in_the_pipe(program):
    """A pipe of 64 KiB would be filled, and found to be stuck."""
    with Loading(program("time.sleep(60)"), None, Cancel(), patience=0.5) as loading:
        assert loading.write(bytes(1 << 20)) == 1 << 20


def test_one_that_reads_no_more_is_ended(program):
    with pytest.raises(LocalError, match="msb load takes no more"):
        feed(program("time.sleep(60)"), patience=0.2)


def test_an_interruption_ends_it_while_it_does_not_read(program, tmp_path):
    note, cancel = tmp_path / "pid", Cancel()
    text = f"open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    threading.Timer(0.3, cancel.set).start()
    with pytest.raises(Cancelled), Loading(program(text), None, cancel) as loading:
        loading.write(LARGE)
    assert not note.exists() or gone(int(note.read_text()))


def test_an_interruption_ends_it_while_it_works(program, tmp_path):
    note, cancel = tmp_path / "pid", Cancel()
    text = f"sys.stdin.buffer.read(); open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(Cancelled), Loading(program(text), None, cancel) as loading:
        loading.write(b"all")
        threading.Timer(0.3, cancel.set).start()
        loading.finish()
    assert not note.exists() or gone(int(note.read_text()))


def test_it_does_not_hear_of_an_end_when_it_is_ended(program, tmp_path):
    """Killed first: what it has read might pass for an archive."""
    note = tmp_path / "read"
    with (
        pytest.raises(ValueError, match="trouble"),
        Loading(program(f"sys.stdin.buffer.read(); open({str(note)!r}, 'w')"), None, Cancel()) as loading,
    ):
        loading.write(b"part")
        raise ValueError("trouble")
    assert not note.exists()


def test_no_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("msb", "/no/such/msb", str(tmp_path)):
        with pytest.raises(UsageError, match="no such program") as caught:
            find_msb(name)
        assert "install" in caught.value.hint and "--msb" in caught.value.hint


def test_programs_are_found_by_name_and_by_path(program, tmp_path, monkeypatch, clean_environment):
    made = program("")
    assert find_msb(made) == made
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_msb("msb") == made
    monkeypatch.setenv("PATH", "/nowhere")
    there = clean_environment / ".microsandbox" / "bin"
    there.mkdir(parents=True)
    (there / "msb").symlink_to(made)
    assert find_msb("msb") == str(there / "msb")


def test_what_cannot_be_run(tmp_path):
    path = tmp_path / "msb"
    path.write_bytes(b"\x7fELF no program")
    path.chmod(0o755)
    for call in (lambda: feed(str(path)), lambda: has_image(str(path), "a/b:1", "sha256:1", Cancel())):
        with pytest.raises(LocalError, match="cannot be run"):
            call()


@pytest.mark.parametrize(
    ("listed", "there"),
    [
        ('[{"reference": "docker.io/library/app:1", "digest": "sha256:1"}]', True),
        ('[{"reference": "app:1", "digest": "sha256:1"}]', True),
        ('[{"reference": "app", "digest": "sha256:1"}, {"reference": "app:1", "digest": "sha256:1"}]', True),
        ('[{"reference": "app", "digest": "sha256:1"}]', False),
        ('[{"reference": "app:1", "digest": "sha256:2"}]', False),
        ('[{"reference": "NOT A NAME", "digest": "sha256:1"}, {"reference": 7, "digest": "sha256:1"}]', False),
        ('[{"reference": "app:1"}]', None),
        ('{"reference": "app:1"}', None),
        ("[" * 100_000, None),
        ("", None),
    ],
)
def test_what_it_lists(program, listed, there):
    assert has_image(program(f"print({listed!r})"), "docker.io/library/app:1", "sha256:1", Cancel()) is there


def test_one_that_lists_nothing(program):
    assert (
        has_image(program("sys.exit('error: unknown command')"), "docker.io/library/app:1", "sha256:1", Cancel())
        is None
    )


def test_one_that_says_too_much_says_nothing(program, monkeypatch):
    monkeypatch.setattr("msb_pull.work.microsandbox.program._ANSWER_LIMIT", 1 << 16)
    made = program("while True: sys.stdout.write('[' * 4096)")
    assert has_image(made, "docker.io/library/app:1", "sha256:1", Cancel()) is None


@pytest.mark.parametrize("interrupted", [True, False])
def test_one_that_does_not_answer_ends_with_all_that_it_started(program, tmp_path, monkeypatch, interrupted):
    pids = tmp_path / "pids"
    made = program(
        "child = subprocess.Popen(['sleep', '100'])\n"
        f"open({str(pids)!r} + '.new', 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(pids)!r} + '.new', {str(pids)!r}); time.sleep(100)"
    )
    cancel = Cancel()
    if interrupted:
        threading.Thread(target=lambda: (wait_for(pids.exists), cancel.set())).start()
    else:
        # All its time has passed at the first look after both run.
        looks = itertools.count()
        clock = SimpleNamespace(monotonic=lambda: 1000.0 if next(looks) and pids.exists() else 0.0)
        monkeypatch.setattr("msb_pull.work.microsandbox.program.time", clock)
    with pytest.raises(Cancelled if interrupted else LocalError):
        has_image(made, "docker.io/library/app:1", "sha256:1", cancel)
    wait_for(lambda: all(gone(int(pid)) for pid in pids.read_text().split()))
