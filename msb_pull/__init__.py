"""Pull container images into ready-to-mount, verifiable layer directories.

Everything in ``__all__`` may be relied on; all else may change between versions. Names are loaded when they are first
used, so that ``import msb_pull`` costs nothing.

>>> import tempfile, msb_pull
>>> store = msb_pull.Store.open(tempfile.mkdtemp())
>>> result = msb_pull.pull_image("oci:tests/sample:1", store, msb_pull.PullOptions(name="sample:1"))
>>> result.reference, len(result.layers)
('docker.io/library/sample:1', 2)
>>> [image.reference for image in store.images()]
['docker.io/library/sample:1']
"""

# Spelled out, since importing typing takes longer than all else that a start needs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from msb_pull.api.lock import LockResult, pull_and_lock, pull_locked
    from msb_pull.api.pull import pull_image, pull_images
    from msb_pull.api.store import Store
    from msb_pull.config.signatures import SignatureRule
    from msb_pull.ground import errors as errors
    from msb_pull.ground import events as events
    from msb_pull.ground.errors import (
        AccessError,
        Cancelled,
        ContentError,
        ExitCode,
        GivenUp,
        LocalError,
        MsbPullError,
        NetworkError,
        NoMoreTasks,
        NotFoundError,
        SignatureError,
        UsageError,
    )
    from msb_pull.ground.version import __version__
    from msb_pull.image.platform import Platform
    from msb_pull.source.login.auth_file import Credential
    from msb_pull.source.login.credentials import CredentialStore
    from msb_pull.source.registry.registry import RegistryOptions
    from msb_pull.work.export.export import ExportOptions, ExportResult
    from msb_pull.work.listing import ListedImage
    from msb_pull.work.lockfile import LockChange
    from msb_pull.work.podman.export import PodmanExport
    from msb_pull.work.pull.plan import Delivered, LayerOutcome, Policy, PullOptions, PullResult

__all__ = [
    "AccessError",
    "Cancelled",
    "ContentError",
    "Credential",
    "CredentialStore",
    "Delivered",
    "ExitCode",
    "ExportOptions",
    "ExportResult",
    "GivenUp",
    "LayerOutcome",
    "ListedImage",
    "LocalError",
    "LockChange",
    "LockResult",
    "MsbPullError",
    "NetworkError",
    "NoMoreTasks",
    "NotFoundError",
    "Platform",
    "PodmanExport",
    "Policy",
    "PullOptions",
    "PullResult",
    "RegistryOptions",
    "SignatureError",
    "SignatureRule",
    "Store",
    "UsageError",
    "__version__",
    "errors",
    "events",
    "pull_and_lock",
    "pull_image",
    "pull_images",
    "pull_locked",
]

# Module -> the public names that it holds.
_HOLDERS = {
    "api.lock": "LockResult pull_and_lock pull_locked",
    "api.pull": "pull_image pull_images",
    "api.store": "Store",
    "config.signatures": "SignatureRule",
    "ground.errors": "AccessError Cancelled ContentError ExitCode GivenUp LocalError MsbPullError NetworkError "
    "NoMoreTasks NotFoundError SignatureError UsageError",
    "image.platform": "Platform",
    "ground.version": "__version__",
    "work.export.export": "ExportOptions ExportResult",
    "work.listing": "ListedImage",
    "work.lockfile": "LockChange",
    "work.podman.export": "PodmanExport",
    "work.pull.plan": "Delivered LayerOutcome Policy PullOptions PullResult",
    "source.login.auth_file": "Credential",
    "source.login.credentials": "CredentialStore",
    "source.registry.registry": "RegistryOptions",
}

if not TYPE_CHECKING:  # a type checker that saw this would believe in every name

    def __getattr__(name):
        from importlib import import_module

        if name in ("errors", "events"):
            return import_module(f"msb_pull.ground.{name}")
        for module, names in _HOLDERS.items():
            if name in names.split():
                value = getattr(import_module(f"msb_pull.{module}"), name)
                globals()[name] = value
                return value
        raise AttributeError(f"module 'msb_pull' has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})
