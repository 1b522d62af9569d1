#!/usr/bin/env bash
# [WORKERS=3] tests.sh ARGUMENTS...: run pytest on so many workers. What fails runs once more, alone, when the rest is
# over: many tests are about deadlines, and a machine with other work can make any of them late. What passes then is told
# as UNSTEADY and is to be mended, but fails nothing; what fails twice does, and so do more than three failures. Generated
# examples are the same each time; others come where tests are run by hand.
set -uo pipefail
cd "$(dirname "$0")/.."
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
pytest() { .venv/bin/pytest -q -o cache_dir="$cache" --hypothesis-profile=steady "$@"; }

pytest -n "${WORKERS:-3}" --dist loadfile --no-loadscope-reorder "$@"
status=$?
[ "$status" = 1 ] || exit "$status"
mapfile -t failed < <(.venv/bin/python -c 'import json, sys; print(*json.load(open(sys.argv[1])), sep="\n")' \
    "$cache/v/cache/lastfailed")
if [ "${#failed[@]}" -gt 3 ]; then
    echo "tests: ${#failed[@]} failed"
    exit 1
fi
echo "tests: once more, alone: ${failed[*]}"
pytest --last-failed --last-failed-no-failures none "$@" || exit 1
echo "tests: UNSTEADY, passed when run alone: ${failed[*]}"
