"""The ``pull`` command behind its options: several images at the same time, with one client for all."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msb_pull.cli.run import LazyClient, hosts_of
from msb_pull.ground.errors import Cancelled, ContentError, LocalError, MsbPullError, UsageError
from msb_pull.ground.sizes import counted, format_size
from msb_pull.ground.text import visible
from msb_pull.image.platform import Platform
from msb_pull.image.reference import ImageArgument, Reference, parse_argument
from msb_pull.store.uses import InUse
from msb_pull.work.pull import images as work
from msb_pull.work.pull.plan import Policy, PullOptions
from msb_pull.work.pull.pull import pull_image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from msb_pull.cli.run import Access, Run, Session
    from msb_pull.ground.events import Event, Observer
    from msb_pull.work.prune.plan import PrunePlan
    from msb_pull.work.pull.locked import LockPlan
    from msb_pull.work.pull.plan import Delivered, PullResult

_KEPT = "what was downloaded is kept; run the same command again to continue"
_FINISHED = "finished layers are kept; run the same command again to continue"


class Wishes(NamedTuple):
    """What is to be done with the images, beside what settings say."""

    force: bool = False
    name: str | None = None
    to: str | None = None
    dry_run: bool = False
    allow_no_xattr: bool = False


class Signing(NamedTuple):
    """What was asked for on signatures, beside the rules of the settings."""

    keys: tuple[str, ...] = ()
    unchecked: bool = False


class LockChoice(NamedTuple):
    """The lock file that is to be written (``lock``) or obeyed (``locked``), and how."""

    lock: str | None = None
    locked: str | None = None
    upgrade: bool = False
    platforms: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises UsageError for options that do not go together."""
        if self.lock is not None and self.locked is not None:
            raise UsageError("--lock and --locked: choose one", hint="--lock adds what --locked would refuse")
        for option, given in ("--upgrade", self.upgrade), ("--lock-platform", self.platforms):
            if given and self.lock is None:
                raise UsageError(f"{option} only works together with --lock FILE")

    def path(self) -> Path:
        """The one file that was named; raises UsageError."""
        from msb_pull.config.table import to_path

        try:
            return to_path(self.locked if self.lock is None else self.lock)
        except ValueError as error:
            raise UsageError(f"{'--locked' if self.lock is None else '--lock'}: {error}") from None


def pull_images(
    run: Run,
    images: Sequence[str],
    access: Access,
    *,
    wishes: Wishes,
    choice: LockChoice,
    signing: Signing,
) -> None:
    """Pulls the images, prints the line of each as soon as its turn has come, and shows failures at the end."""
    settings = run.settings
    platform = Platform.parse(settings.platform) if settings.platform else None
    plan = _lock_plan(run, choice, images, platform or Platform.host())
    arguments = [parse_argument(text, settings.default_registry) for text in (plan.images if plan else images)]
    _check(arguments, access, wishes.name)
    run.display.several = len(arguments) > 1
    options = PullOptions(
        policy=Policy(settings.policy),
        force=wishes.force,
        platform=platform,
        limits=settings.limits,
        allow_no_xattr=wishes.allow_no_xattr,
        name=wishes.name,
        dry_run=wishes.dry_run,
        signatures=settings.rules,
        require_signature=signing.keys,
        no_signature_check=signing.unchecked,
        to=wishes.to,
        msb=settings.msb,
        pins=plan.pins if plan else {},
    )
    pull = _pull_of(options)
    with contextlib.closing(LazyClient(run, arguments, access)) as client:
        outcomes, pruned = _pull(run, arguments, client, options, pull)
    paired = list(zip(arguments, outcomes, strict=True))
    locked, unwritten = {}, None
    try:
        locked = _write_lock(run, plan, paired, write=not wishes.dry_run) if plan else {}
    except MsbPullError as error:
        # The images are here all the same, and what became of each must still be said.
        unwritten = error
    _finish(run, paired, {**_pruned_fields(pruned), **locked}, unwritten)


def _pruned_fields(pruned: PrunePlan | None) -> dict[str, Any]:
    """What went so that the store fits, for the document."""
    if pruned is None:
        return {}
    return {"pruned": {"images": list(pruned.images), "freed_bytes": pruned.size, "left_bytes": pruned.left}}


def _lock_plan(run: Run, choice: LockChoice, images: Sequence[str], platform: Platform) -> LockPlan | None:
    """What a lock file says for this pull; None without one. Raises UsageError, LocalError."""
    choice.check()
    settings = run.settings
    if choice.lock is None and choice.locked is None:
        return None
    from msb_pull.work.pull.locked import plan_locked, plan_locking

    path = choice.path()
    if choice.lock is None:
        return plan_locked(path, images, platform, settings.default_registry)
    if settings.policy == Policy.NEVER:
        raise UsageError("--lock and --policy never exclude each other: only a registry says what is to be locked")
    also = [Platform.parse(text) for text in choice.platforms]
    return plan_locking(path, images, platform, also, settings.default_registry, upgrade=choice.upgrade)


def _write_lock(
    run: Run, plan: LockPlan, outcomes: Sequence[tuple[ImageArgument, PullResult | MsbPullError]], *, write: bool
) -> dict[str, Any]:
    """Puts what was pulled into the lock file, says what is new in it, and returns that for the document."""
    if plan.locking is None:
        return {}
    from msb_pull.work.lockfile import update

    pulled = {str(x.reference): result for x, result in outcomes if not isinstance(result, MsbPullError)}
    changes = update(plan.path, plan.locking.found(pulled), write=write)
    shown = visible(str(plan.path))
    for change in changes:
        run.display.note(str(change))
    if changes:
        run.display.note(f"{'Wrote' if write else 'Would write'} {shown}", done=write)
    elif pulled:
        run.display.note(f"{shown} is up to date")
    listed = [
        {"image": x.image, "platform": x.platform, "old": x.old and str(x.old), "new": x.new and str(x.new)}
        for x in changes
    ]
    return {"lock": {"file": str(plan.path), "changes": listed}}


def _pull_of(options: PullOptions) -> work.Pull:
    if options.to is None:
        return pull_image
    from msb_pull.work.microsandbox.pull import pull_into

    return pull_into(options)


class _Report:
    """Says how each image ended, and prints the lines of the result in the order of the command line."""

    def __init__(self, run: Run, arguments: Sequence[ImageArgument]) -> None:
        self._run = run
        self._arguments = arguments
        self._outcomes: dict[int, PullResult | MsbPullError] = {}
        self._printed = 0

    def ended(self, number: int, outcome: PullResult | MsbPullError) -> None:
        """Takes what became of the image at one position."""
        self._outcomes[number] = outcome
        if isinstance(outcome, MsbPullError):
            self._explain(self._arguments[number], outcome)
            # Whoever has mistyped one of many names need not wait for the others to hear of it.
            if len(self._outcomes) < len(self._arguments) and not isinstance(outcome, Cancelled):
                name, message = self._arguments[number].text, outcome.message
                self._run.display.failed(message if name in message else f"{name}: {message}")
        else:
            self._summarize(outcome)
        # A script puts the lines beside its arguments.
        while (following := self._outcomes.get(self._printed)) is not None:
            self._printed += 1
            if not isinstance(following, MsbPullError) and self._run.display.format == "text":
                self._run.display.result(following.pinned)

    def _explain(self, argument: ImageArgument, error: MsbPullError) -> None:
        self._run.display.settle()
        # A layer's digest does not say which image it belongs to, and nor does a file of the store.
        nameless = isinstance(error, ContentError) or (isinstance(error, LocalError) and len(self._arguments) > 1)
        if nameless and argument.text not in error.message:
            error.message = f"{argument.text}: {error.message}"
        elif isinstance(error, Cancelled):
            error.hint = self._run.session.next_step

    def _summarize(self, result: PullResult) -> None:
        if result.digest is None:
            text = "was pulled by another program: its layers cannot be verified, and there is no digest to pin"
            self._run.warn(f"{result.reference} {text}")
        if result.delivered is not None and result.delivered.recreated:
            self._run.warn(recreated(result.reference))
        self._run.display.note(_summary(result), done=not result.dry_run)


def _pull(
    run: Run, arguments: Sequence[ImageArgument], client: LazyClient, options: PullOptions, pull: work.Pull
) -> tuple[list[PullResult | MsbPullError], PrunePlan | None]:
    report = _Report(run, arguments)
    remote = any(argument.reference for argument in arguments)
    run.session.next_step = None if options.dry_run else _KEPT if remote else _FINISHED
    writes = not options.dry_run and options.policy is not Policy.NEVER
    try:
        store = run.store(create=writes)
    except MsbPullError as error:
        return [error for _ in arguments], None
    job = replace(run.job, observer=_without_plans(run.job.observer)) if options.dry_run else run.job
    with InUse(store.uses, job) as in_use:
        outcomes = work.pull_images(arguments, store, client, options, job, report.ended, in_use, pull)
        settings = run.settings
        pruned = work.prune_after(store, outcomes, job, keep=settings.keep, min_free=settings.min_free)
    if pruned is not None:
        from msb_pull.cli.prune import say_what_fits

        say_what_fits(run, pruned)
    return outcomes, pruned


def _without_plans(observe: Observer) -> Observer:
    """For a dry run, whose plan is its result."""
    from msb_pull.ground.events import PullPlanned

    def observer(event: Event) -> None:
        if not isinstance(event, PullPlanned):
            observe(event)

    return observer


def _finish(
    run: Run,
    outcomes: Sequence[tuple[ImageArgument, PullResult | MsbPullError]],
    more: Mapping[str, Any],
    other: MsbPullError | None,
) -> None:
    errors = [outcome for _, outcome in outcomes if isinstance(outcome, MsbPullError)]
    errors += [other] if other is not None else []
    # One interruption ends many images, and one bad store is that of all.
    for error in {(error.kind if isinstance(error, Cancelled) else id(error)): error for error in errors}.values():
        run.session.tell(error)
    if run.display.format == "json":
        run.write({**_document(run.session, outcomes, errors), **more}, "")
    if errors:
        run.fail(errors)


def _check(arguments: Sequence[ImageArgument], access: Access, name: str | None) -> None:
    """Raises UsageError for options that do not go together."""
    local = [x for x in arguments if x.reference is None]
    if name is not None and (len(arguments) > 1 or not local):
        raise UsageError(
            "--as works with exactly one image from a folder or an archive",
            hint="msb-pull pull oci:DIR --as registry.example.com/name:tag",
        )
    if name is not None:
        Reference.parse(name)
    if access.ca_cert is not None and not Path(access.ca_cert).expanduser().exists():
        # Said here, since a registry that is reached by plain HTTP never comes to read it.
        raise UsageError(f"--ca-cert: {access.ca_cert}: no such file")
    if sum(x.path == "-" for x in local) + access.creds_stdin > 1:
        raise UsageError("standard input can only be read once", hint="save the archive to a file and name that file")
    hosts = hosts_of(arguments)
    if not access.anonymous and (access.creds_stdin or len(hosts) > 1):
        from msb_pull.source.login.credentials import check_given

        check_given(hosts, stdin=access.creds_stdin)


def _summary(result: PullResult) -> str:
    layers = {layer.digest: layer for layer in result.layers}
    present = sum(layer.present for layer in layers.values())
    name = result.reference
    if result.dry_run:
        missing = [layer for layer in layers.values() if not (layer.present or layer.reused)]
        size = format_size(sum(layer.size for layer in missing))
        what = f"{size} in {len(missing)} of {counted(len(layers), 'layer')}" if missing else "nothing"
        return f"Would fetch {what} for {name} ({result.platform})"
    elsewhere = _elsewhere(result.delivered)
    if not result.changed:
        # With more, longer names would not fit into a line of a terminal.
        return f"{name} is already here ({counted(len(layers), 'layer')}){elsewhere}"
    here = f", {present} of {counted(len(layers), 'layer')} already here" if present else ""
    reused = sum(layer.reused for layer in layers.values())
    made = f", {reused} of {counted(len(layers), 'layer')} made from others already here" if reused else ""
    return f"Pulled {name}: {format_size(result.fetched)} in {result.seconds:.1f}s{here}{made}{elsewhere}"


def _elsewhere(delivered: Delivered | None) -> str:
    if delivered is None:
        return ""
    return "; loaded into Microsandbox" if delivered.changed else "; Microsandbox has it already"


def _document(
    session: Session,
    outcomes: Sequence[tuple[ImageArgument, PullResult | MsbPullError]],
    errors: Sequence[MsbPullError],
) -> dict[str, Any]:
    images = [
        {"status": "failed", "image": argument.text, "error": session.document_of(outcome)}
        if isinstance(outcome, MsbPullError)
        else {"status": "ok", "image": argument.text, **_fields(outcome)}
        for argument, outcome in outcomes
    ]
    if not errors:
        return {"status": "ok", "images": images}
    return {"status": "failed", "images": images, "error": session.document_of(_common(errors, images))}


def _common(errors: Sequence[MsbPullError], images: Sequence[Mapping[str, Any]]) -> MsbPullError:
    """What all errors of a run come to: the code in the document is the one that the process ends with."""
    interrupted = [error for error in errors if isinstance(error, Cancelled)]
    if interrupted or len({error.exit_code for error in errors}) == 1:
        return (interrupted or errors)[0]
    failed = sum(image["status"] == "failed" for image in images)
    if failed < len(errors):
        return MsbPullError(f"{failed} of {counted(len(images), 'image')} failed, and the lock file was not written")
    return MsbPullError(f"{failed} of {counted(len(images), 'image')} failed, for different reasons")


def _fields(result: PullResult) -> dict[str, Any]:
    elsewhere = {"delivered": delivered_fields(result.delivered)} if result.delivered else {}
    return {
        "reference": result.reference,
        "pinned": result.pinned,
        "digest": result.digest,
        "platform": result.platform,
        "size_bytes": result.size,
        "fetched_bytes": result.fetched,
        "seconds": round(result.seconds, 3),
        "changed": result.changed,
        "dry_run": result.dry_run,
        **elsewhere,
        "layers": [
            {
                "digest": layer.digest,
                "size_bytes": layer.size,
                "fetched_bytes": layer.fetched,
                "present": layer.present,
                "reused": layer.reused,
                "path": layer.path,
            }
            for layer in result.layers
        ],
    }


def recreated(name: str) -> str:
    """What to say of an image that another program has, but not as its registry does."""
    return f"{name}: its layers were made again from the store, so its digest is not the registry's"


def delivered_fields(delivered: Delivered) -> dict[str, Any]:
    """What a document says of an image that another program has now."""
    return {
        "place": delivered.place,
        "digest": delivered.digest,
        "changed": delivered.changed,
        "recreated": delivered.recreated,
        "seconds": round(delivered.seconds, 3),
    }
