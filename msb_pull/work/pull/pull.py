"""Pull one image: look at home first, else resolve it and hand it to the transfer."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from msb_pull.ground.errors import NetworkError, NotFoundError, SignatureError, UsageError, memory_is_limited
from msb_pull.ground.sizes import counted
from msb_pull.image.reference import Reference
from msb_pull.work.claims import contradicts
from msb_pull.work.pull.plan import LayerOutcome, Pin, Policy, PullOptions, PullResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from msb_pull.ground.running import Job
    from msb_pull.image.reference import ImageArgument
    from msb_pull.source.interface import ResolvedImage, Source
    from msb_pull.source.registry.registry import RegistryClient
    from msb_pull.store.index.stored import StoredImage
    from msb_pull.store.store import Store
    from msb_pull.store.uses import InUse
    from msb_pull.work.pull.receiving import Receive
    from msb_pull.work.pull.sharing import Together
    from msb_pull.work.pull.signatures import Gate


def pull_image(
    argument: ImageArgument,
    store: Store,
    client: Callable[[], RegistryClient],
    options: PullOptions,
    job: Job,
    together: Together | None = None,
    in_use: InUse | None = None,
    receive: Receive | None = None,
) -> PullResult:
    """Brings one image into the store and records it; does nothing where the policy and the store allow that.

    ``client`` is called only when a registry must be asked. ``together`` is what it shares with other images, if there
    are any; ``in_use`` keeps the image from being pruned while the command goes on; ``receive`` is entered once the
    image is resolved, and signed as it must be. Raises the errors of ``msb_pull.errors``; after any of them the store
    holds what it held before, and at most more of a partial download.
    """
    started = time.monotonic()
    if options.force and options.policy is Policy.NEVER:
        raise UsageError("--force and --policy never exclude each other: one fetches in any case, the other in none")
    named = argument.reference or (Reference.parse(options.name) if options.name else None)
    gate = _gate(named, options, job)
    local = find_local(argument, store, options)
    pin = _pin_of(argument, options)
    if pin is not None and gate is not None:
        # Most are signed under the index.
        pin = replace(pin, by_index=True)
    settled = pin is None or not pin.also
    enough = local is not None and settled and not options.force and options.policy in (Policy.MISSING, Policy.NEVER)
    if enough and local is not None and (gate is None or gate.holds_for(local, store)):
        return _unchanged(local, store, started)
    if options.policy is Policy.NEVER:
        if local is not None and gate is not None:
            raise gate.refuse_unkept()
        raise _absent(argument, store, pin)
    # What follows needs the whole pipeline; a pull that has nothing to do must not pay for loading it.
    from msb_pull.ground.events import Resolving
    from msb_pull.ground.running import start_thread

    # What is here, and what a signature or a lock file may yet refuse, is not asked for before that is known.
    early = local is None and gate is None and pin is None and not options.dry_run
    opened = _open(argument, store, client, options, job, pin, together, early=early)
    with contextlib.closing(opened) as source:
        job.tell(Resolving(argument.text))
        if enough and local is not None and gate is not None:
            return _signed_at_home(gate, local, source, store, options, started)
        # A thread that finds no memory for letting go of the lock of a module leaves everybody waiting for it.
        if not memory_is_limited():
            start_thread(_load_transfer, "loading")
        try:
            resolved, also = _resolve(argument, source, client, options, pin)
        except NetworkError as error:
            if options.policy is Policy.NEWER and local is not None and (not gate or gate.holds_for(local, store)):
                job.warn(argument.text, f"{error.message}; keeping the local image")
                return _unchanged(local, store, started)
            raise
        if argument.reference is None:
            gate = gate or _gate(resolved.reference, options, job)
        result = _move(argument, resolved, source, gate, store, options, job, together, in_use, receive, started)
    return replace(result, also=also) if also else result


def _open(
    argument: ImageArgument,
    store: Store,
    client: Callable[[], RegistryClient],
    options: PullOptions,
    job: Job,
    pin: Pin | None,
    together: Together | None,
    *,
    early: bool,
) -> Source:
    """The source of an image; ``early`` has it ask for layers beside the config."""
    from msb_pull.work.pull.coming import Allowance, expected
    from msb_pull.work.pull.open import open_source

    if argument.reference is not None and argument.reference.doubt is not None:
        job.warn(argument.text, argument.reference.doubt)
    expect = None
    if early and argument.reference is not None:
        allowance = together.allowance if together is not None else Allowance(job)
        expect = expected(store, allowance, force=options.force, need_xattrs=not options.allow_no_xattr)
    return open_source(
        argument, client, name=options.name, scratch=store.places.folder, job=job, pin=pin, expect=expect
    )


def _move(
    argument: ImageArgument,
    resolved: ResolvedImage,
    source: Source,
    gate: Gate | None,
    store: Store,
    options: PullOptions,
    job: Job,
    together: Together | None,
    in_use: InUse | None,
    receive: Receive | None,
    started: float,
) -> PullResult:
    """Brings an image that was found into the store, once its signatures are as they must be."""
    from msb_pull.image.manifest import check_image

    check_image(resolved.manifest, str(resolved.reference))
    if in_use is not None:
        in_use.add(str(resolved.reference))
    local = _find(resolved.reference, store) if argument.reference is None else None
    if argument.reference is None and options.name is None:
        _warn_of_replacing(local, resolved, lambda text: job.warn(argument.text, text))
    proof = gate.check(source, resolved) if gate is not None else None
    if local is not None and _is_same(local, resolved, options) and _is_complete(local, store):
        # A pull that was killed may have left something; in a store that cannot be written it stays.
        with contextlib.suppress(OSError):
            store.sweep()
        with receive(resolved, source, job) if receive else contextlib.nullcontext():
            result = _unchanged(local, store, started)
    else:
        result = _transfer(resolved, source, store, options, job, together, receive, started)
    if gate is not None and not options.dry_run:
        gate.keep(proof, store, needed=result.changed)
    return result


def _transfer(
    resolved: ResolvedImage,
    source: Source,
    store: Store,
    options: PullOptions,
    job: Job,
    together: Together | None,
    receive: Receive | None,
    started: float,
) -> PullResult:
    try:
        from msb_pull.work.pull.transfer import Transfer
    except ImportError:
        # Python hands over the half of a module that another thread was loading and had no memory to finish.
        from msb_pull.work.pull.transfer import Transfer

    if options.dry_run:
        return Transfer(resolved, source, store, options, job).plan_only(started)
    store.begin()
    if receive is None:
        return Transfer(resolved, source, store, options, job, together=together).run(started)
    with receive(resolved, source, job) as taking:
        transfer = Transfer(resolved, source, store, options, taking.job, together=together, arrived=taking.arrived)
        return transfer.run(started)


def _gate(reference: Reference | None, options: PullOptions, job: Job) -> Gate | None:
    """What the rules about signatures want of an image; None without rules, or while its name is not known."""
    if reference is None or not options.checks_signatures:
        return None
    from msb_pull.work.pull.signatures import gate_for

    return gate_for(reference, options, job)


def _signed_at_home(
    gate: Gate, image: StoredImage, source: Source, store: Store, options: PullOptions, started: float
) -> PullResult:
    """Asks for nothing but the signature of an image that is complete here, and keeps it; raises SignatureError."""
    assert image.digest is not None
    try:
        proof = gate.check_stored(source, image.digest)
    except SignatureError:
        # Most are signed under the index that the name stands for. If that is another one by now, it proves nothing.
        resolved = source.resolve(options.wanted, explicit=options.platform is not None)
        if resolved.digest != image.digest or not resolved.indexes:
            raise
        proof = gate.check(source, resolved)
    if not options.dry_run:
        gate.keep(proof, store, needed=False)
    return _unchanged(image, store, started)


def _pin_of(argument: ImageArgument, options: PullOptions) -> Pin | None:
    return options.pins.get(str(argument.reference)) if options.pins and argument.reference else None


def _resolve(
    argument: ImageArgument, source: Source, client: Callable[[], RegistryClient], options: PullOptions, pin: Pin | None
) -> tuple[ResolvedImage, Mapping[str, str]]:
    """The image that a source has, and the digests of the manifests that are to be looked up beside it."""
    try:
        resolved = source.resolve(options.wanted, explicit=options.platform is not None)
    except NotFoundError as error:
        if pin is not None and pin.target is not None:
            error.hint = "if the registry no longer has it, renew the lock file with --lock FILE --upgrade"
        raise
    if pin is None:
        return resolved, {}
    if argument.reference is not None and pin.doubts(resolved.config.platform):
        with contextlib.closing(client().source(argument.reference, pin.index)) as index:
            # Raises where the index has another manifest for that platform.
            _resolve(argument, index, client, options, replace(pin, by_index=True))
    return resolved, _look_up(source, resolved, pin)


def _look_up(source: Source, resolved: ResolvedImage, pin: Pin) -> dict[str, str]:
    """The manifests for further platforms; raises UsageError where what was found is not what the pin says."""
    if pin.manifest not in (None, resolved.digest):
        raise UsageError(
            f"{resolved.reference}: {pin.manifest} is not its manifest for one platform",
            cause=f"{pin.target} leads to {resolved.digest}",
            hint="renew what pins it, as with --lock FILE --upgrade",
        )
    also = {}
    for platform in pin.also:
        try:
            also[str(platform)] = str(source.resolve(platform, explicit=True).digest)
        except NotFoundError as error:
            error.hint = f"it was to be locked for {platform} as well: leave that out, or its line in the lock file"
            raise
    return also


def _load_transfer() -> None:
    """Takes 20 ms, and an answer of a registry often as long."""
    # What is missing is so again for who needs it.
    with contextlib.suppress(ImportError, OSError, MemoryError):
        import_module("msb_pull.work.pull.transfer")


def _is_same(image: StoredImage, resolved: ResolvedImage, options: PullOptions) -> bool:
    """Whether the store has just what a folder or an archive holds, and no policy asks for more than that."""
    held = image.digest, image.platform, image.source
    wanted = options.policy is Policy.MISSING and not options.force and not options.dry_run
    return wanted and held == (resolved.digest, resolved.platform, resolved.source)


def _warn_of_replacing(image: StoredImage | None, resolved: ResolvedImage, warn: Callable[[str], None]) -> None:
    """The name in a folder or an archive is its maker's choice, and may be that of an image from elsewhere."""
    if image is not None and image.digest != resolved.digest:
        held = image.digest or "an image without a digest"
        warn(f"its name is {resolved.reference}, which is already here as {held}; that becomes {resolved.digest}")


def find_local(argument: ImageArgument, store: Store, options: PullOptions) -> StoredImage | None:
    """The image as the database has it, if it is complete in the store and for the wanted platform, else None.

    An image that only Microsandbox has recorded has no digest and no proof: it counts for ``never`` alone.
    """
    reference = argument.reference
    if reference is None and options.policy is Policy.NEVER and options.name:
        # A folder or archive may have changed, and looking costs no request: only `never` takes the store's word.
        reference = Reference.parse(options.name)
    image = _find(reference, store)
    if image is None:
        return None
    pin = _pin_of(argument, options)
    if pin is not None and (pin.manifest is None or image.digest != pin.manifest):
        return None
    if image.digest is None:
        held = options.policy is Policy.NEVER and all(store.has_directory(x.key) for x in image.layers)
        return image if held else None
    wished = options.wanted if pin is None else pin.platform
    wanted = wished is None or (image.platform is not None and wished.accepts(image.platform))
    return image if wanted and _is_complete(image, store) else None


def _is_complete(image: StoredImage, store: Store) -> bool:
    # What lies there may be what another image has said of the same blob.
    return all(store.has_layer(x.key) and not contradicts(store, x.key, x.diff_id) for x in image.layers)


def _find(reference: Reference | None, store: Store) -> StoredImage | None:
    if reference is None or not store.has_images:
        return None
    with store.database(create=False) as database:
        return database.find(str(reference))


def _absent(argument: ImageArgument, store: Store, pin: Pin | None) -> NotFoundError:
    """What is said where only the store may be asked, and does not have the image."""
    message = f"{argument.reference or argument.text}: not in the store"
    return NotFoundError(message, cause=_what_is_there(argument, store, pin), hint="pull it without `--policy never`")


def _what_is_there(argument: ImageArgument, store: Store, pin: Pin | None) -> str | None:
    """Why an image that the store knows is not taken; None when it does not know it."""
    image = _find(argument.reference, store)
    if image is None:
        return None
    if pin is not None and pin.manifest not in (None, image.digest):
        return f"the store has it as {image.digest}, wanted is {pin.manifest}"
    missing = [layer for layer in image.layers if not store.has_directory(layer.key)]
    if missing:
        return f"{len(missing)} of {counted(len(image.layers), 'layer')} missing"
    return f"the store has it for {image.platform}" if image.platform is not None else None


def _unchanged(image: StoredImage, store: Store, started: float) -> PullResult:
    reference = Reference.parse(image.reference)
    if image.digest is not None:
        # Where nothing can be written, this pull has done its work all the same.
        with contextlib.suppress(OSError):
            store.make_links(layer.key for layer in image.layers)
    layers = tuple(LayerOutcome(str(x.digest), x.size, 0, True, str(store.layer_dir(x.key))) for x in image.layers)
    return PullResult(
        reference=image.reference,
        pinned=reference.pinned(image.digest) if image.digest else image.reference,
        digest=str(image.digest) if image.digest else None,
        platform=str(image.platform or ""),
        layers=layers,
        # Microsandbox's rows count the configuration too; a pull counts what its layers weigh.
        size=sum({x.digest: x.size for x in image.layers}.values()),
        fetched=0,
        seconds=time.monotonic() - started,
        changed=False,
    )
