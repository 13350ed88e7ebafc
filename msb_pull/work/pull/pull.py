"""Pull one image: look at home first, else resolve it and hand it to the transfer."""

from __future__ import annotations

import contextlib
import time
from importlib import import_module
from typing import TYPE_CHECKING

from msb_pull.ground.errors import NetworkError, NotFoundError, UsageError
from msb_pull.ground.sizes import counted
from msb_pull.image.reference import Reference
from msb_pull.work.pull.plan import LayerOutcome, Policy, PullOptions, PullResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from msb_pull.ground.running import Job
    from msb_pull.image.reference import ImageArgument
    from msb_pull.source.interface import ResolvedImage, Source
    from msb_pull.source.registry.registry import RegistryClient
    from msb_pull.store.index.stored import StoredImage
    from msb_pull.store.store import Store
    from msb_pull.work.pull.receiving import Receive
    from msb_pull.work.pull.sharing import Together


def pull_image(
    argument: ImageArgument,
    store: Store,
    client: Callable[[], RegistryClient],
    options: PullOptions,
    job: Job,
    together: Together | None = None,
    receive: Receive | None = None,
) -> PullResult:
    """Brings one image into the store and records it; does nothing where the policy and the store allow that.

    ``client`` is called only when a registry must be asked. ``together`` is what it shares with other images, if there
    are any; ``receive`` is entered once the image is resolved. Raises the errors of ``msb_pull.errors``; after any of
    them the store holds what it held before, and at most more of a partial download.
    """
    started = time.monotonic()
    if options.force and options.policy is Policy.NEVER:
        raise UsageError("--force and --policy never exclude each other: one fetches in any case, the other in none")
    local = find_local(argument, store, options)
    if local is not None and not options.force and options.policy in (Policy.MISSING, Policy.NEVER):
        return _unchanged(local, store, started)
    if options.policy is Policy.NEVER:
        hint = "pull it without `--policy never`"
        raise NotFoundError(f"{argument.text}: not in the store", cause=_what_is_there(argument, store), hint=hint)
    # What follows needs the whole pipeline; a pull that has nothing to do must not pay for loading it.
    from msb_pull.ground.events import Resolving
    from msb_pull.ground.running import start_thread
    from msb_pull.image.manifest import check_image
    from msb_pull.work.pull.open import open_source

    def warn(text: str) -> None:
        job.warn(argument.text, text)

    if argument.reference is not None and argument.reference.doubt is not None:
        warn(argument.reference.doubt)
    opened = open_source(argument, client, name=options.name, scratch=store.places.folder, job=job)
    with contextlib.closing(opened) as source:
        job.tell(Resolving(argument.text))
        start_thread(_load_transfer, "loading")
        try:
            resolved = source.resolve(options.wanted, explicit=options.platform is not None)
        except NetworkError as error:
            if options.policy is Policy.NEWER and local is not None:
                job.warn(argument.text, f"{error.message}; keeping the local image")
                return _unchanged(local, store, started)
            raise
        check_image(resolved.manifest, str(resolved.reference))
        if argument.reference is None:
            local = _find(resolved.reference, store)
            if options.name is None:
                _warn_of_replacing(local, resolved, warn)
            if local is not None and _is_same(local, resolved, options) and _is_complete(local, store):
                # A pull that was killed may have left something; in a store that cannot be written it stays.
                with contextlib.suppress(OSError):
                    store.sweep()
                with receive(resolved, source, job) if receive else contextlib.nullcontext():
                    return _unchanged(local, store, started)
        return _transfer(resolved, source, store, options, job, together, receive, started)


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
    from msb_pull.work.pull.transfer import Transfer

    if options.dry_run:
        return Transfer(resolved, source, store, options, job).plan_only(started)
    if receive is None:
        return Transfer(resolved, source, store, options, job, together=together).run(started)
    with receive(resolved, source, job) as taking:
        transfer = Transfer(resolved, source, store, options, taking.job, together=together, arrived=taking.arrived)
        return transfer.run(started)


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
    if image.digest is None:
        held = options.policy is Policy.NEVER and all(store.has_directory(x.key) for x in image.layers)
        return image if held else None
    wanted = image.platform is not None and options.wanted.accepts(image.platform)
    return image if wanted and _is_complete(image, store) else None


def _is_complete(image: StoredImage, store: Store) -> bool:
    return all(store.has_layer(layer.key) for layer in image.layers)


def _find(reference: Reference | None, store: Store) -> StoredImage | None:
    if reference is None or not store.has_images:
        return None
    with store.database(create=False) as database:
        return database.find(str(reference))


def _what_is_there(argument: ImageArgument, store: Store) -> str | None:
    """Why an image that the store knows is not taken; None when it does not know it."""
    image = _find(argument.reference, store)
    if image is None:
        return None
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
