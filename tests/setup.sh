#!/usr/bin/env bash
# Sets up everything the tests want, and runs them. Nothing outside this folder changes but, where apt and root (or
# sudo without a password) are there, the Debian packages below.
#
#   tests/setup.sh [--dev] [--quick] [--no-apt] [--no-run] [pytest arguments …]
#
#   --quick    only the tests that are not marked as slow: less than a minute instead of ten
#   --dev      also ruff and mypy, and run both before the tests
#   --no-apt   install no Debian packages; tests that need them are skipped, and say so
#   --no-run   set up only
#   PYTHON     the interpreter for a new virtual environment (default: python3); VENV its folder (default: .venv)
set -euo pipefail
cd "$(dirname "$0")/.."

dev='' quick='' apt=yes run=yes
while (($#)); do
    case $1 in
        --dev) dev=yes ;;
        --quick) quick=yes ;;
        --no-apt) apt='' ;;
        --no-run) run='' ;;
        *) break ;;
    esac
    shift
done
say() { printf '%s\n' "── $*" >&2; }

# Real registries, readers and shells: the tests talk to them instead of to imitations. package:one of its programs
packages=(
    btrfs-progs:mkfs.btrfs xfsprogs:mkfs.xfs e2fsprogs:mkfs.ext4 dosfstools:mkfs.vfat
    erofs-utils:fsck.erofs squashfs-tools-ng:tar2sqfs
    docker-registry:docker-registry skopeo:skopeo umoci:umoci podman:podman crun:crun
    fuse-overlayfs:fuse-overlayfs uidmap:newuidmap fuse3:fusermount3
    tmux:tmux zsh:zsh fish:fish mandoc:mandoc groff:groff libarchive-tools:bsdtar openssl:openssl
)

install_packages() {
    local missing=() i
    for i in "${packages[@]}"; do
        command -v "${i#*:}" >/dev/null || missing+=("${i%:*}")
    done
    python_can_make_environments || missing+=(python3-venv)
    ((${#missing[@]})) || return 0
    local root=()
    if ((EUID)); then
        sudo -n true 2>/dev/null || { say "no root: without ${missing[*]} some tests are skipped"; return 0; }
        root=(sudo -n)
    fi
    command -v apt-get >/dev/null || { say "no apt: without ${missing[*]} some tests are skipped"; return 0; }
    say "installing ${missing[*]}"
    "${root[@]}" apt-get -qq update || true
    if ! "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" \
        </dev/null >/dev/null; then
        say "together they cannot be installed; trying one by one"
        for i in "${missing[@]}"; do
            "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$i" \
                </dev/null >/dev/null || say "not available: $i"
        done
    fi
}

python=${PYTHON:-python3}
python_can_make_environments() { "$python" -c 'import venv, ensurepip' 2>/dev/null; }

[ -z "$apt" ] || install_packages

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "$python is $("$python" --version 2>&1); msb-pull needs 3.11 or newer (set PYTHON)"
    exit 1
}
venv=${VENV:-.venv}
if [ ! -x "$venv/bin/python" ]; then
    say "making a virtual environment in $venv"
    "$python" -m venv "$venv"
fi
say "installing msb-pull and what its tests need"
"$venv/bin/python" -m pip install -q --disable-pip-version-check -e ".[${dev:+dev,}test]"

[ -n "$run" ] || exit 0
if [ -n "$dev" ]; then
    say "ruff and mypy"
    "$venv/bin/ruff" check .
    "$venv/bin/ruff" format --check .
    "$venv/bin/mypy"
fi
say "tests"
# Two processes for each core, since much of what tests do is waiting; whoever is done takes over tests of the others.
exec "$venv/bin/python" -m pytest -n "$((2 * $(nproc 2>/dev/null || echo 2)))" --dist worksteal ${quick:+-m "not slow"} "$@"
