"""Words, options, variables and the configuration file, through the program: which place wins, and what each does."""

from __future__ import annotations

import json
import signal
import ssl

import pytest
import trustme

from tests.support.contract import IMAGE, LAYERS, PINNED, PULLING, RESOLVING, Said
from tests.support.counting import wait_for
from tests.support.fault_registry import Fault, FaultRegistry
from tests.support.terminal import Terminal, plain


def usage(message: str, hint: str | None = None) -> Said:
    return Said(2, "", f"error: {message}\n" + (f"  hint: {hint}\n" if hint else ""))


def near(word: str, command: str) -> Said:
    offer = f"did you mean `msb-pull {command}`? To pull an image of this name: `msb-pull pull {word}`"
    return usage(f"no such command: {word!r}", offer)


def help_of(command: str) -> str:
    return f"`msb-pull {command} --help` lists the options"


SIZE_HELP = "is not a size; write bytes or something like 50M, 1.5G or 64GiB"
FILTERS = "filters are reference=GLOB, platform=OS/ARCH, until=24h and incomplete=true"
WORDS = {
    "lss": near("lss", "ls"),
    "prun": near("prun", "prune"),
    "-q insepct x": near("insepct", "inspect"),
    "-q ls": usage("-q: options go after the command", "msb-pull ls -q ..."),
    "--home h -j 4 pull y": usage("--home h -j 4: options go after the command", "msb-pull pull --home h -j 4 ..."),
    "-q": usage("pull: no image named", "`msb-pull pull --help` shows examples"),
    "pull": usage("pull: no image named", "`msb-pull pull --help` shows examples"),
    "inspect": usage("inspect: no image named", "`msb-pull inspect --help` shows examples"),
    "rm": usage("rm: no image named", "`msb-pull rm --help` shows examples"),
    "save -o x": usage("save: no image named", "`msb-pull save --help` shows examples"),
    "save x": usage("save: -o is missing", "msb-pull save ubuntu:22.04 -o ubuntu.tar (`-o -` is a pipe)"),
    "save x -o y --format zip": usage("--format: 'zip' is not one of oci, docker"),
    "save x -o y --format oci --format docker": usage("--format: choose one kind of archive, oci or docker"),
    "pull --frce x": usage("no such option: --frce", "did you mean --force?"),
    "ls -z": usage("no such option: -z", help_of("ls")),
    "pull x --jobs": usage("option '--jobs' requires an argument", help_of("pull")),
    "ls --quiet=yes": usage("option '--quiet' does not take a value", help_of("ls")),
    "ls a b": usage("got unexpected extra argument(s) (b)", help_of("ls")),
    "prune x": usage("got unexpected extra argument(s) (x)", help_of("prune")),
    "ls --format yaml": usage("--format: 'yaml' is not one of text, json"),
    "ls --sort colour": usage("--sort: 'colour' is not one of name, size, pulled"),
    "ls --filter size=3": usage("--filter 'size=3': unknown filter", FILTERS),
    "ls --filter reference": usage("--filter 'reference': not KEY=VALUE", FILTERS),
    "ls --filter until=soon": usage("--filter until=soon: not a duration", "write it like 90m, 24h, 7d or 1h30m"),
    "prune --filter until=1h": usage("--filter only works together with --all, --keep or --min-free",
                                     "msb-pull prune --all --filter until=720h"),
    "inspect --layers --files x": usage("--layers and --files: choose one"),
    "inspect --lowerdir --layers x": usage("--layers and --lowerdir: choose one"),
    "verify UPPER": usage('invalid reference "UPPER": "UPPER" must be lower-case', 'write "upper"'),
    "ls --home none --config none.toml": usage("~/none.toml: no such configuration file"),
    "x -j 0": usage("--jobs: '0' is not a number from 1 to 64"),
    "x -j 65": usage("--jobs: '65' is not a number from 1 to 64"),
    "x --jobs=two": usage("--jobs: 'two' is not a number from 1 to 64"),
    "x --limit-rate fast": usage(f"--limit-rate: 'fast' {SIZE_HELP}"),
    "x --limit-rate 0": usage("--limit-rate: must be above 0"),
    "x --max-layer-size -1": usage(f"--max-layer-size: '-1' {SIZE_HELP}"),
    "x --max-entries 0": usage("--max-entries: '0' is not a number above 0"),
    "x --max-window 0": usage("--max-window: must be above 0"),
    "x --max-window 3GiB": usage("--max-window: '3GiB' is more than 2GiB, the largest window there is"),
    "x --policy often": usage("--policy: 'often' is not one of missing, always, newer, never"),
    "x --progress x": usage("--progress: 'x' is not one of auto, bars, plain, json, none"),
    "x --color x": usage("--color: 'x' is not one of auto, always, never"),
}  # fmt: skip


@pytest.mark.parametrize("words", WORDS)
def test_words(shared, words):
    assert shared.run(*words.split()) == WORDS[words]


def test_an_image_called_like_a_command(shared):
    """It is asked for, and not there."""
    for word in ("ls", "prun"):
        done = shared.run("pull", "--policy", "never", word)
        absent = f"error: docker.io/library/{word}:latest: not in the store"
        assert (done.code, done.error.splitlines()[0]) == (3, absent)


JOBS = "'0' is not a number from 1 to 64"
NO_PLATFORM = (
    f"error: {IMAGE}: no image for linux/riscv64\n  cause: the only image is for linux/amd64\n"
    "  hint: pull it with --platform linux/amd64\n"
)
# Setting, its option, its variable, its line in the file, a value that fails, one that works, what is said.
SETTINGS = [
    ("jobs", "--jobs", "MSB_PULL_JOBS", "jobs = {!r}", "0", "3", JOBS),
    ("platform", "--platform", "MSB_PULL_PLATFORM", "platform = {!r}", "linux/riscv64", "linux/amd64", None),
    ("policy", "--policy", None, "[pull]\npolicy = {!r}", "often", "always",
     "'often' is not one of missing, always, newer, never"),
    ("limit_rate", "--limit-rate", None, "[pull]\nlimit_rate = {!r}", "fast", "10M", f"'fast' {SIZE_HELP}"),
    ("progress", "--progress", "MSB_PULL_PROGRESS", None, "fancy", "none",
     "'fancy' is not one of auto, bars, plain, json, none"),
    ("retries", None, None, "[pull]\nretries = {!r}", "many", "2", "'many' is not a number from 0 to 1000"),
    ("timeout", None, None, "[pull]\ntimeout = {!r}", "long", "5", "'long' is not a number of seconds above 0"),
]  # fmt: skip


LIKE = "write it like registry.example.com, or with a port like registry:5000"
# What only makes sense to a later stage is told with its place as well: line in the file, environment, what is said.
LATER = [
    ("", {"MSB_PULL_PLATFORM": "a!"}, "MSB_PULL_PLATFORM: invalid platform 'a!'"),
    ("platform = 'a!'", {"MSB_PULL_PLATFORM": ""}, "~/config.toml: platform: invalid platform 'a!'"),
    ("", {"OCI_REGISTRY_DOMAIN": "a!"}, 'OCI_REGISTRY_DOMAIN: the default registry "a!" is not a host'),
    ("default_registry = 'a!'", {}, '~/config.toml: default_registry: the default registry "a!" is not a host'),
]


@pytest.mark.parametrize(("line", "env", "said"), LATER)
def test_the_place_of_a_platform_or_registry_that_is_none(place, line, env, said):
    place.config.write_text(line)
    hint = "write OS/ARCH or OS/ARCH/VARIANT, like linux/arm64" if "platform" in said else LIKE
    for words in (("pull", "x"), ("ls",)):
        assert place.run(*words, env=env) == usage(said, hint)


@pytest.mark.parametrize(("key", "option", "variable", "line", "wrong", "right", "said"), SETTINGS)
def test_option_before_variable_before_file(place, key, option, variable, line, wrong, right, said):
    """A value that fails is told with its place, unless one of a higher place stands before it."""
    table = "pull." if line and line.startswith("[pull]") else ""
    places = [
        ([option, wrong], {}, "", option),
        ([], {variable: wrong}, "", variable),
        ([], {}, line and line.format(wrong), f"~/config.toml: {table}{key}"),
    ]
    names = (option, variable, line)
    for rank, (words, env, text, name) in enumerate(places):
        if names[rank] is None:
            continue
        place.config.write_text(text or "")
        env = {"MSB_PULL_PLATFORM": "", **env}
        expected = (2, f"error: {name}: {said}\n") if said else (3, NO_PLATFORM)
        done = place.run("pull", "-q", "-n", *words, IMAGE, env=env)
        assert (done.code, done.error) == expected, name
        for better in range(rank):
            if names[better] is not None:
                words_above = [option, right] if better == 0 else []
                env_above = {variable: right} if better == 1 else {}
                done = place.run("pull", "-q", "-n", *words_above, IMAGE, env=env | env_above)
                assert done == Said(0, PINNED, ""), (name, names[better])


def test_folders(place):
    """Home and layers: option, variable, file, built in; --config before its variable."""
    paths = []
    file = place.folder / "other.toml"
    file.write_text('home = "in-file"\nlayers_dir = "layers-in-file"\n')
    none = {"MICROSANDBOX_HOME": "", "MSB_PULL_CONFIG": ""}
    env = {"MICROSANDBOX_HOME": "in-env", "MSB_PULL_LAYERS_DIR": "layers-in-env", "MSB_PULL_CONFIG": "none.toml"}
    cases = [
        (["--home", "h", "--layers-dir", "l", "--config", "other.toml"], env, "~/l"),
        (["--config", "other.toml"], env, "~/layers-in-env"),
        (["--config", "other.toml"], env | {"MSB_PULL_LAYERS_DIR": ""}, "~/layers-in-file"),
        ([], none | {"MSB_PULL_CONFIG": "other.toml", "MICROSANDBOX_HOME": "x"}, "~/layers-in-file"),
        (["--home", "h"], env | {"MSB_PULL_CONFIG": "", "MSB_PULL_LAYERS_DIR": ""}, "~/h/layers"),
        ([], env | {"MSB_PULL_CONFIG": "", "MSB_PULL_LAYERS_DIR": ""}, "~/in-env/layers"),
        ([], none | {"HOME": str(place.folder)}, "~/.microsandbox/layers"),
    ]
    for words, env, folder in cases:
        done = place.run("pull", "-q", "-n", "--format", "json", *words, IMAGE, env=env)
        paths.append((done.document["images"][0]["layers"][0]["path"], f"{folder}/BASE.extracted"))
    assert [found for found, _ in paths] == [expected for _, expected in paths]
    (place.folder / ".config" / "msb-pull").mkdir(parents=True)
    (place.folder / ".config" / "msb-pull" / "config.toml").write_text("jbos = 3\n")
    done = place.run("ls", env={"HOME": str(place.folder), "MSB_PULL_CONFIG": ""})
    assert done == usage("~/.config/msb-pull/config.toml: unknown key jbos", "did you mean jobs?")


def test_default_registry(shared):
    def asked(env, text):
        shared.config.write_text(text)
        return shared.run("inspect", "x:1", env=env).error.split(": not")[0]

    file = 'default_registry = "quay.io"\n'
    assert asked({}, "") == "error: docker.io/library/x:1"
    assert asked({}, file) == "error: quay.io/x:1"
    assert asked({"OCI_REGISTRY_DOMAIN": "ghcr.io"}, file) == "error: ghcr.io/x:1"


FILES = {
    "jbos = 4": ("unknown key jbos", "did you mean jobs?"),
    "limit_rate = 4": ("unknown key limit_rate", "the key is pull.limit_rate"),
    "[pull]\npolcy = 'never'": ("unknown key pull.polcy", "did you mean pull.policy?"),
    '[registries."a.b"]\nmirors = []': (
        'unknown key registries."a.b".mirors', 'did you mean registries."a.b".mirrors?',
    ),
    "sync = 'yes'": ("sync: 'yes' is neither true nor false", None),
    "layers_dir = 3": ("layers_dir: 3 is not text", None),
    '[registries."a"]\nmirrors = "x"': ('registries."a".mirrors: must be a list of addresses', None),
    '[registries."a"]\nplain_http = 1': ('registries."a".plain_http: 1 is neither true nor false', None),
}  # fmt: skip


@pytest.mark.parametrize("text", FILES)
def test_a_wrong_file(shared, text):
    message, hint = FILES[text]
    shared.config.write_text(text)
    said = usage(f"~/config.toml: {message}", hint)
    assert shared.run("ls") == said
    done = shared.run("ls", "--format", "json")
    error = {"code": 2, "kind": "usage", "message": f"~/config.toml: {message}", "cause": None, "hint": hint}
    assert (done.code, done.document, done.error) == (2, {"status": "failed", "error": error}, said.error)


def test_retries_and_timeout(place):
    place.config.write_text("sync = true\n[pull]\nretries = 1\ntimeout = 0.5\n")
    place.registry.script("/manifests/", Fault(status=503), Fault(delay=3))
    done = place.run("pull", "-n", IMAGE)
    assert done == Said(
        5,
        "",
        f"{RESOLVING}retrying manifest of {IMAGE} in Ns (retry 1 of 1): registry answered 503 Service Unavailable\n"
        f"error: {IMAGE}: no answer from HOST\n  cause: no answer for too long (0.5 seconds)\n"
        "  hint: check the address and the network\n",
    )
    assert place.registry.count("/manifests/") == 2
    assert place.run("-q", IMAGE) == Said(0, PINNED, "")


def test_mirrors(place):
    """Tried in order, with the registry's own name; only then the registry."""
    place.registry.add_image("library/app", "1", LAYERS)
    place.config.write_text(
        f'[pull]\nretries = 0\n[registries."docker.io"]\nmirrors = ["http://127.0.0.1:1", "{place.registry.url}"]\n'
    )
    gone = "warning: mirror 127.0.0.1:1: connection refused; continuing without it\n"
    assert place.run("-q", "app:1") == Said(0, "docker.io/library/app:1@IMAGE\n", gone)
    assert place.registry.asked("/manifests/1")[0].query == {"ns": ["docker.io"]}


def test_certificates(place, tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with FaultRegistry(tls=context) as registry:
        registry.add_image("acme/app", "1", LAYERS)
        name = f"{registry.host}/acme/app:1"

        def run(*words, text=""):
            place.configure(text)
            return place.run("-q", "-n", *words, name)

        table = f'[registries."{registry.host}"]\n'
        good = Said(0, f"{name}@IMAGE\n", "")
        refused = run()
        assert (refused.code, refused.out) == (5, "")
        assert refused.error.startswith(f"error: {name}: no answer from {registry.host}\n  cause: ")
        assert "  hint: " in refused.error
        assert run("--tls-no-verify") == good
        assert run(text=table + "tls_no_verify = true\n") == good
        assert run("--ca-cert", "ca.pem") == good
        assert run(text=table + f'ca_cert = "{tmp_path}/ca.pem"\n') == good
        assert run("--plain-http").code == 5
    assert place.run("-q", "-n", "--plain-http", IMAGE) == Said(0, PINNED, "")


@pytest.mark.parametrize("form", ["20k", "20kB", "20000", "20K/s", "19.53125KiB"])
def test_forms_of_a_rate(shared, form):
    assert shared.run("-q", "-n", "--limit-rate", form, IMAGE) == Said(0, PINNED, "")


def test_the_rate_is_kept(place):
    """The registry has sent all, the program has taken a few bytes: either layer would last half a minute and more."""
    process = place.start("-q", "--limit-rate", "10", IMAGE)
    partial = place.layers / ".msb-pull" / "partial"

    def taken():
        return sum(x.stat().st_size for x in partial.glob("*"))

    wait_for(lambda: process.poll() is not None or (taken() >= 5 and place.registry.bytes_sent() > 1900))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert taken() < 300


DONE = "layer base done 1.6 kB\nlayer top done 372 B\n"
SUMMARY = f"Pulled {IMAGE}: 2.0 kB in Ns\n"
PLAIN = RESOLVING + PULLING + DONE + SUMMARY


def test_progress_on_a_pipe(place):
    """Bars need a terminal: what asks for them gets lines. Colour is for those who ask for it."""
    force = ("pull", "-f", "-j", "1")
    cases = [
        ([], {}, PLAIN),
        (["--progress", "auto"], {}, PLAIN),
        (["--progress", "bars"], {}, PLAIN),
        (["--progress", "plain"], {"MSB_PULL_PROGRESS": "none"}, PLAIN),
        (["--progress", "none"], {}, SUMMARY),
        ([], {"MSB_PULL_PROGRESS": "none"}, SUMMARY),
        (["-q"], {}, ""),
        ([], {"CI": "true", "FORCE_COLOR": "1"}, PLAIN),
        (["--color", "always"], {"NO_COLOR": "1"}, PLAIN),
    ]
    for words, env, said in cases:
        assert place.run(*force, *words, IMAGE, env=env) == Said(0, PINNED, said), (words, env)
    done = place.run(*force, "--progress", "json", IMAGE)
    assert (done.code, done.out) == (0, PINNED)
    events = [json.loads(line) for line in done.error.splitlines()]
    kinds = [event["event"] for event in events if event["event"] != "layer-progress"]
    assert kinds == ["resolving", "pull-planned", "layer-done", "layer-done", "image-done"]
    assert isinstance(events[-1].pop("seconds"), float)
    assert events[-1] == {
        "event": "image-done", "image": IMAGE, "pinned": PINNED.strip(), "size_bytes": 2006, "fetched_bytes": 2006,
        "layers": 2, "present": 0,
    }  # fmt: skip
    done = place.run("--progress", "json", "HOST/acme/none:1")
    resolving, error = [json.loads(line) for line in done.error.splitlines()]
    assert (done.code, done.out, resolving) == (3, "", {"event": "resolving", "image": "HOST/acme/none:1"})
    assert error.pop("hint").startswith("check the name")
    assert error == {
        "event": "error", "code": 3, "kind": "not-found", "message": "HOST/acme/none:1: not found",
        "cause": "registry answered 404 MANIFEST_UNKNOWN: not here",
    }  # fmt: skip


def test_verbosity(place):
    """Once: what a person may want to know; twice: the requests, too."""
    once = place.run("pull", "-v", IMAGE).error.splitlines()
    twice = place.run("pull", "-f", "-vv", IMAGE).error.splitlines()
    assert [line for line in once if "unpacked under" in line or "unpacked without" in line] != []
    assert not [line for line in once if line.startswith("GET ")]
    # Both layers come at once, so that either may be first.
    assert sorted(line.partition(" in ")[0] for line in twice if line.startswith("GET ")) == [
        f"GET http://HOST/v2/acme/app/{path}: 200"
        for path in ("blobs/BASE", "blobs/CONFIG", "blobs/TOP", "manifests/1")
    ]


@pytest.mark.parametrize(
    ("words", "env", "red"),
    [
        ([], {}, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
        ([], {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ([], {"NO_COLOR": "", "FORCE_COLOR": "1"}, True),
        ([], {"FORCE_COLOR": "0"}, False),
        (["--color", "never"], {"FORCE_COLOR": "1"}, False),
    ],
)
def test_colour_of_an_error_on_a_pipe(shared, words, env, red):
    error = "\x1b[31merror:\x1b[0m" if red else "error:"
    done = shared.run("inspect", *words, "none:1", env=env)
    assert (done.code, done.out) == (3, "")
    assert done.error.startswith(f"{error} docker.io/library/none:1: not in the store\n")


def test_colour_on_a_terminal(shared):
    """An error in an option comes before the options are understood, and obeys the variables all the same."""
    for words, env, red in (([], {}, True), ([], {"NO_COLOR": "1"}, False), (["--color", "never"], {}, False)):
        with Terminal(shared.argv("inspect", *words, "none:1"), env=shared.environment(**env)) as terminal:
            assert terminal.wait() == 3
        assert ("\x1b[31merror:" in terminal.text) is red
        assert plain(terminal.text).startswith("error: docker.io/library/none:1: not in the store")


def test_debug(shared):
    done = shared.run("--debug", "lss")
    assert (done.code, done.out) == (2, "")
    assert done.error.startswith("Traceback (most recent call last):\n")
    assert done.error.endswith(near("lss", "ls").error)


def test_version(shared):
    done = shared.run("--version")
    assert done == shared.run("-V")
    assert (done.code, done.error) == (0, "")
    name, number = done.out.split()
    assert name == "msb-pull" and number[0].isdigit()
    facts = dict(line.split(maxsplit=1) for line in shared.run("-V", "-v").out.splitlines()[1:])
    assert list(facts) == ["Python", "Platform", "Jail", "Home", "Layers", "Config"]
    assert [facts[x] for x in ("Home", "Layers", "Config")] == ["~/home", "~/home/layers", "~/config.toml"]
    assert facts["Platform"].startswith("linux/")


def test_help(shared):
    done = shared.run()
    assert (done.code, done.error) == (0, "")
    assert done == shared.run("--help") == shared.run("-h")
    assert shared.run("ls", "-h") == shared.run("ls", "--help")
