"""A run of the program: from the options to settings, store and display, and from any error to an exit code."""

from __future__ import annotations

import contextlib
import errno
import itertools
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from msb_pull.config import settings as config
from msb_pull.config.table import TABLE
from msb_pull.display.display import Display, error_document
from msb_pull.display.streams import OutputClosed, Streams, give_up, is_terminal, output_error, read_secret
from msb_pull.ground.errors import (
    Cancelled,
    ExitCode,
    LocalError,
    MsbPullError,
    NotFoundError,
    UsageError,
    exhausted,
    find_room,
    local_error,
)
from msb_pull.ground.running import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from msb_pull.cli.signals import Interrupts
    from msb_pull.config.settings import Settings
    from msb_pull.image.reference import ImageArgument
    from msb_pull.source.login.credentials import CredentialStore
    from msb_pull.source.registry.registry import RegistryClient, RegistryOptions
    from msb_pull.store.store import Store

# What a shell reports for a program that SIGPIPE ended, as `yes | head` does.
_PIPE_CLOSED = 141
# Bytes of the address space that the modules take which speak HTTP and TLS.
_TO_SPEAK = 16 << 20
_BUG = "this is a bug in msb-pull; run the same command with --debug to see where"


class Session:
    """What exists before the options are understood; commands find it in Typer's context."""

    def __init__(self, streams: Streams, interrupts: Interrupts, argv: Sequence[str]) -> None:
        self.display = Display(streams, color=config.color_choice())
        self.interrupts = interrupts
        # Errors in the options themselves must obey these two as well.
        self.debug = "--debug" in argv
        self.display.format = "json" if _asks_for_json(argv) else "text"
        self.code = ExitCode.OK
        self.document_written = False
        # What an interruption leaves and how to go on: true at any moment until the command says otherwise.
        self.next_step: str | None = None
        self._farewell_said = False

    def begin(self, values: Mapping[str, Any]) -> Run:
        """Reads the settings and makes the display ready; raises UsageError."""
        form = values.get("form") or "text"
        if isinstance(form, list):
            form = "json" if "json" in form else "text"
        if form not in ("text", "json"):
            raise UsageError(f"--format: {form!r} is not one of text, json")
        settings = config.load({name: values[name] for name in values if name in TABLE})
        _check(settings)
        self.display.configure(settings, form=form, quiet=values["quiet"], verbosity=values["verbose"])
        run = Run(self, settings)
        for text in settings.warnings:
            run.warn(text)
        return run

    def guard(self, work: Callable[[], None]) -> int:
        """Runs ``work``, shows any error and returns the exit code; nothing else makes errors into one."""
        try:
            work()
        except OutputClosed:
            return _PIPE_CLOSED
        except MsbPullError as error:
            return self._told(error)
        except OSError as error:
            return self._told(local_error(error, _place_of(error)).with_traceback(error.__traceback__))
        except Exception as error:  # noqa: BLE001 - the last resort: a person gets a sentence, not a traceback
            if spent := exhausted(error):
                return self._told(spent.with_traceback(error.__traceback__))
            bug = MsbPullError(f"{type(error).__name__}: {error}", hint=_BUG)
            return self._told(bug.with_traceback(error.__traceback__))
        return self.interrupts.exit_code if self.interrupts.number else self.code

    def say_farewell(self) -> None:
        """The last words of a process that a signal ends before it could stop by itself."""
        if not self._farewell_said:
            self.display.error(Cancelled("interrupted", hint=self.next_step))

    def _code_of(self, error: MsbPullError) -> int:
        return self.interrupts.exit_code if isinstance(error, Cancelled) else error.exit_code

    def _told(self, error: MsbPullError) -> int:
        """Shows an error, and as a document too where that was asked for; returns its exit code."""
        self.tell(error)
        if self.display.format == "json" and not self.document_written:
            try:
                self.display.document({"status": "failed", "error": self.document_of(error)})
            except OutputClosed:
                return _PIPE_CLOSED
            except LocalError as unwritten:
                self.tell(unwritten)
        return self._code_of(error)

    def document_of(self, error: MsbPullError) -> dict[str, Any]:
        """An error as it stands in a JSON document, with the exit code that the process will have."""
        return error_document(error) | {"code": self._code_of(error)}

    def tell(self, error: MsbPullError) -> None:
        """Shows an error on standard error, with its traceback if asked for."""
        self._farewell_said = isinstance(error, Cancelled)
        if self._farewell_said:
            error.hint = error.hint or self.next_step
        if self.debug and not isinstance(error, Cancelled):
            self.display.trace("".join(traceback.format_exception(error)))
        self.display.error(error)


class Run:
    """One command at work: its settings, display and store."""

    def __init__(self, session: Session, settings: Settings) -> None:
        self.session = session
        self.settings = settings
        self.display = session.display
        self.job = Job(session.display.observe, session.interrupts.cancel, settings.jobs, own_process=True)

    def store(self, *, create: bool = True) -> Store:
        """Opens the store; with ``create`` False nothing is made that is not there."""
        from msb_pull.store.store import Store

        settings = self.settings
        return Store.open(settings.home, settings.layers_dir, create=create, sync=settings.sync, warn=self.warn)

    def filled_store(self) -> Store | None:
        """The store, ready to be locked; None where there is none. Asking for one must not make one."""
        store = self.store(create=False)
        return self.store() if store.has_images else None

    def store_with(self, names: Sequence[str]) -> Store:
        """The store that has the images ``names``; raises NotFoundError when there is none, so that it has none."""
        store = self.filled_store()
        if store is None:
            raise NotFoundError(f"{names[0]}: not in the store", cause=f"there is no store in {self.settings.home}")
        return store

    def names(self, images: Sequence[str]) -> list[str]:
        """The canonical names of what was typed, each once; raises UsageError."""
        from msb_pull.image.reference import Reference

        return list(dict.fromkeys(str(Reference.parse(text, self.settings.default_registry)) for text in images))

    def warn(self, text: str) -> None:
        """Tells the person something, once."""
        self.job.warn("", text)

    def write(self, document: Any, text: str) -> None:
        """Writes the result to standard output in the form that was asked for."""
        if self.display.format == "json":
            self.session.document_written = True
            self.display.document(document)
        else:
            self.display.result(text)

    @contextlib.contextmanager
    def binary_output(self, command: str, what: str) -> Iterator[BinaryIO]:
        """Standard output for ``what`` a command writes that is no text.

        Raises UsageError where it is no place for that, OutputClosed, LocalError.
        """
        if is_terminal(self.display.streams.stdout):
            raise UsageError(
                f"{command}: refusing to write {what} to a terminal",
                hint=f"msb-pull {command} IMAGE -o - > FILE, or -o FILE",
            )
        if self.display.format == "json":
            raise UsageError(
                f"{command}: standard output cannot carry {what} and a document", hint="name a file with -o"
            )
        out = self.display.streams.stdout.buffer
        try:
            yield out
            out.flush()
        except BrokenPipeError:
            give_up(self.display.streams.stdout)
            raise OutputClosed from None
        except OSError as error:
            if error.filename is not None:
                raise
            give_up(self.display.streams.stdout)
            raise output_error(error) from error

    def fail(self, errors: Sequence[MsbPullError]) -> None:
        """Sets the exit code for errors that were told already: their common one, or 1 when they differ."""
        codes = {error.exit_code for error in errors}
        self.session.code = codes.pop() if len(codes) == 1 else ExitCode.FAILURE


class Access(NamedTuple):
    """How the registries of the named images are to be reached."""

    plain_http: bool = False
    tls_no_verify: bool = False
    ca_cert: str | None = None
    creds_stdin: bool = False
    anonymous: bool = False


class LazyClient:
    """One registry client for the whole run, made when the first registry must be asked (it loads requests)."""

    def __init__(self, run: Run, arguments: Sequence[ImageArgument], access: Access) -> None:
        self._run = run
        self._hosts = hosts_of(arguments)
        self._access = access
        self._client: RegistryClient | None = None

    def __call__(self) -> RegistryClient:
        if self._client is None:
            find_room(_TO_SPEAK)
            from msb_pull.source.registry.registry import RegistryClient

            self._client = RegistryClient(self._options(), self._credentials(), self._run.job)
        return self._client

    def close(self) -> None:
        """Closes the connections, if there are any."""
        if self._client is not None:
            self._client.close()

    def _options(self) -> RegistryOptions:
        from msb_pull.api.clients import registry_options

        access, listed = self._access, registry_options(self._run.settings)
        return replace(
            listed,
            plain_http=listed.plain_http | (self._hosts if access.plain_http else set()),
            tls_no_verify=listed.tls_no_verify | (self._hosts if access.tls_no_verify else set()),
            ca_certs={**listed.ca_certs, **(dict.fromkeys(self._hosts, access.ca_cert) if access.ca_cert else {})},
        )

    def _credentials(self) -> CredentialStore:
        from msb_pull.source.login.credentials import CredentialStore, check_given

        if self._access.anonymous:
            return CredentialStore.nobody()
        check_given(self._hosts, stdin=self._access.creds_stdin)
        host = next(iter(self._hosts)) if len(self._hosts) == 1 else None
        if self._access.creds_stdin:
            return CredentialStore.from_text(read_secret(self._run.display.streams.stdin), host=host)
        return CredentialStore(authfile=self._run.settings.authfile, host=host)


def hosts_of(arguments: Sequence[ImageArgument]) -> frozenset[str]:
    """The registries of the images that come from any."""
    return frozenset(x.reference.registry for x in arguments if x.reference is not None)


def _check(settings: Settings) -> None:
    """Raises UsageError, with the place that gave it, for a value that only the rules of images refuse."""
    if not settings.origins.keys() & {"platform", "default_registry"}:
        return
    from msb_pull.image.platform import Platform
    from msb_pull.image.reference import split_default

    checks: dict[str, Callable[[str], object]] = {"platform": Platform.parse, "default_registry": split_default}
    for name, check in checks.items():
        if name in settings.origins:
            try:
                check(getattr(settings, name))
            except UsageError as error:
                error.message = f"{settings.origins[name]}: {error.message}"
                raise


def _place_of(error: OSError) -> str:
    """What an error is about that may name nothing, as that of getcwd(2) in a folder that has been removed."""
    return error.filename or ("the current folder" if error.errno == errno.ENOENT else "system call")


def _asks_for_json(argv: Sequence[str]) -> bool:
    return "--format=json" in argv or ("--format", "json") in itertools.pairwise(argv)
