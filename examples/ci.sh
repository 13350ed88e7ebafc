#!/usr/bin/env bash
# Brings the images that a CI job needs into a store that the CI keeps between runs.
#
#   examples/ci.sh ghcr.io/acme/app:1.4 postgres:16 …
#
# Prints one line for each image, its name pinned to the digest, and ends with the exit code of the last image that
# failed. Let the cache of the CI keep .cache/msb.tar; CI_CACHE names another folder than .cache,
# PAUSE the seconds before another try.
set -euo pipefail

cache=${CI_CACHE:-$PWD/.cache}
export MICROSANDBOX_HOME="$cache/msb" # every job that names this folder shares its layers
export MSB_PULL_PROGRESS=plain        # one line for each change: a log has no use for bars

# One tar file with attributes, since owners and modes stand in attributes of the files, and the caches of GitHub and
# GitLab would store the folder without them.
mkdir -p "$MICROSANDBOX_HOME"
[ ! -f "$cache/msb.tar" ] || tar --xattrs -xf "$cache/msb.tar" -C "$cache"

# A cache may come from a job that was killed while storing it. It is only a cache: when in doubt, without it.
msb-pull verify --quick || rm -rf "${MICROSANDBOX_HOME:?}"

# Before the pulls: whatever goes here but is still wanted comes again below.
msb-pull prune --yes --all --filter until=720h

pull() {
    local code
    for pause in 0 "${PAUSE:-10}" "${PAUSE:-10}"; do
        sleep "$pause"
        code=0
        msb-pull pull "$1" || code=$?
        [ "$code" -eq 5 ] || break # 5 is network or registry trouble; any other failure would only happen again
    done
    return "$code"
}

# One job for each image; two that want the same layer fetch it once.
jobs=()
for image in "$@"; do
    pull "$image" &
    jobs+=($!)
done
result=0
for job in "${jobs[@]}"; do
    wait "$job" || result=$?
done

# Also after a failure: the next run goes on from what has arrived.
tar --xattrs -cf "$cache/msb.tar.new" -C "$cache" msb
mv "$cache/msb.tar.new" "$cache/msb.tar"
exit "$result"
