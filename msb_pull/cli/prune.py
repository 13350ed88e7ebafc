"""The ``prune`` and ``rm`` commands behind their options, which show in the same way what was removed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import UsageError
from msb_pull.ground.sizes import counted, format_size
from msb_pull.ground.text import visible
from msb_pull.work.prune.apply import apply_prune, prune_to_fit
from msb_pull.work.prune.budget import Budget, Fit
from msb_pull.work.prune.plan import plan_prune, plan_to_fit
from msb_pull.work.prune.remove import remove_images
from msb_pull.work.select import parse_filters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.cli.run import Run
    from msb_pull.work.prune.plan import PrunePlan

# Images named before the question; `--dry-run` names all.
_MOST_NAMED = 15
_WHAT_IS_LEFT = "`msb-pull ls` shows which images are left, `msb-pull prune` removes layers that none of them needs"


def prune_store(run: Run, filters: Sequence[str], *, everything: bool, yes: bool, dry_run: bool, wait: bool) -> None:
    """Plans, asks, removes; prints one line for each thing removed or, in a dry run, to be removed."""
    run.session.next_step = "nothing was removed"
    fit = _fit(run, filters, everything=everything)
    store = run.store(create=False)
    if not dry_run:
        store.register(needed=False)
    plan = plan_to_fit(store, fit) if fit else plan_prune(store, parse_filters(filters) if everything else None)
    for remark in plan.remarks:
        run.warn(remark)
    if plan.empty and not dry_run:
        store.sweep_locks()
    if plan.empty or dry_run:
        run.write(_removed_document(plan, dry_run=dry_run), _removed_lines(plan))
        would = f"Would remove {_contents(plan)} ({format_size(plan.size)})."
        run.display.note("Nothing to remove." if plan.empty else would)
        _warn_if_over(run, plan)
        return
    if not yes and not _agreed(run, plan):
        run.write(_removed_document(type(plan)((), (), (), (), 0), dry_run=False), "")
        run.display.note("Nothing removed.")
        return
    run.session.next_step = "run the same command again to remove what is left"
    if fit is None:
        _show_removed(run, apply_prune(store, plan, run.job, wait=wait))
        return
    # Whoever was asked has agreed to these alone.
    removed = prune_to_fit(store, fit if yes else replace(fit, only=frozenset(plan.images)), run.job, wait=wait)
    _show_removed(run, removed)
    _warn_if_over(run, removed)


def _fit(run: Run, filters: Sequence[str], *, everything: bool) -> Fit | None:
    """How the store is to be made to fit; None where nothing limits it. Raises UsageError."""
    budget = Budget(run.settings.keep, run.settings.min_free)
    given = [run.settings.origins.get(name, "") for name in ("keep", "min_free")]
    if everything:
        for place in given:
            if place.startswith("--"):
                hint = f"{place} removes as many images as it must, --all all that match"
                raise UsageError(f"--all and {place}: choose one", hint=hint)
        return None
    if filters and not budget:
        raise UsageError(
            "--filter only works together with --all, --keep or --min-free",
            hint="msb-pull prune --all --filter until=720h",
        )
    return Fit(budget, parse_filters(filters)) if budget else None


def say_what_fits(run: Run, removed: PrunePlan) -> None:
    """Says what a pull removed so that the store fits its budget, and who else loses by that."""
    for remark in removed.remarks:
        run.warn(remark)
    if not removed.empty:
        left = f"the store now takes {format_size(removed.left or 0)}"
        run.display.note(f"Removed {_contents(removed)}, freed {format_size(removed.size)}; {left}", done=True)
    _warn_if_over(run, removed)


def _warn_if_over(run: Run, plan: PrunePlan) -> None:
    if plan.over:
        run.warn(
            f"{format_size(plan.over)} more would have to go: what is left is in use, was left out, is shown to "
            "podman, or belongs to Microsandbox, to another home or to another program"
        )


def remove_from_store(run: Run, images: Sequence[str]) -> None:
    """Removes images and what only they need; prints one line for each thing removed."""
    names = run.names(images)
    run.session.next_step = _WHAT_IS_LEFT
    removed = remove_images(run.store_with(names), names, run.job)
    for remark in removed.remarks:
        run.warn(remark)
    _show_removed(run, removed)


def _show_removed(run: Run, removed: PrunePlan) -> None:
    """Writes what was removed, and how much space that freed."""
    run.write(_removed_document(removed, dry_run=False), _removed_lines(removed))
    run.display.note(f"Removed {_contents(removed)}, freed {format_size(removed.size)}", done=True)


def _agreed(run: Run, plan: PrunePlan) -> bool:
    if not run.display.can_ask:
        raise UsageError(
            "prune: cannot ask for confirmation without a terminal",
            hint="use --yes to remove without asking, or --dry-run to see what would go",
        )
    for reference in plan.images[:_MOST_NAMED]:
        run.display.note(f"image {reference}")
    if len(plan.images) > _MOST_NAMED:
        run.display.note(f"and {counted(len(plan.images) - _MOST_NAMED, 'more image')}")
    return run.display.ask(f"Remove {_contents(plan)} ({format_size(plan.size)})?")


def _contents(plan: PrunePlan) -> str:
    """``3 images and 7 layers``."""
    parts = [
        (plan.images, "image"),
        (plan.layers, "layer"),
        (plan.partials, "unfinished download"),
        (plan.records, "stray record"),
        (range(plan.leftovers), "leftover"),
    ]
    shown = [counted(len(items), noun) for items, noun in parts if items]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown) or "nothing"


def _removed_lines(plan: PrunePlan) -> str:
    lines = [f"image {visible(reference)}" for reference in plan.images]
    lines += [f"layer {layer.name} {format_size(layer.size)}" for layer in plan.layers]
    lines += [f"file {visible(file.name)} {format_size(file.size)}" for file in (*plan.partials, *plan.records)]
    return "\n".join(lines)


def _removed_document(plan: PrunePlan, *, dry_run: bool) -> dict[str, Any]:
    return {
        "status": "ok",
        "dry_run": dry_run,
        "images": list(plan.images),
        # A layer that looks different on another base has a name of its own: its digest, "+", a part of that base's.
        "layers": [
            {"name": layer.name, "digest": layer.name.partition("+")[0], "size_bytes": layer.size}
            for layer in plan.layers
        ],
        "files": [{"name": file.name, "size_bytes": file.size} for file in (*plan.partials, *plan.records)],
        "leftovers": plan.leftovers,
        "freed_bytes": plan.size,
        **({} if plan.left is None else {"left_bytes": plan.left, "over_bytes": plan.over}),
    }
