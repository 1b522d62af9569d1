#!/usr/bin/env bash
# build.sh OUT: write OCI archives of every image that the chart renders into the folder OUT, under the chart's references.
#
# With docker, podman or buildah from the Dockerfile; where none of them works, or its base image (BASE_IMAGE) is not to be
# had, the same file systems from Debian packages and requirements.lock, by root, with debootstrap (BUILDER=debian chooses
# that way). What does not change is kept in CACHE (default ~/.cache/signalbox-images). TAG (default: the chart's
# appVersion) and REGISTRY (localhost) lead the names.
set -euo pipefail
shopt -s inherit_errexit
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
[ $# = 1 ] || { sed -n '2,/^set/s/^# \?//p' "$0" >&2; exit 2; }
mkdir -p "$1"; OUT=$(cd "$1" && pwd)
CACHE=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/signalbox-images}
TAG=${TAG:-$(sed -n 's/^appVersion: *//p' "$ROOT/deploy/helm/signalbox/Chart.yaml")}
REGISTRY=${REGISTRY:-localhost}
IMAGES=(signalbox signalbox-simulator signalbox-redis signalbox-postgresql)
APP=10001
PATH=$PATH:/usr/sbin:/sbin

log() { echo "images: $*" >&2; }
fail() { log "$*"; exit 1; }
needs() { # needs PACKAGE: install a Debian package
    apt-get install -y -qq "$1" >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq "$1" >/dev/null; } || fail "needs the Debian package $1"
}
reference() { echo "$REGISTRY/$1:$TAG"; }

BASE_IMAGE=${BASE_IMAGE:-$(sed -n 's/^ARG DEBIAN=//p' "$HERE/Dockerfile")}

builder() {
    [ -z "${BUILDER:-}" ] || { echo "$BUILDER"; return; }
    local engine
    for engine in docker podman buildah; do
        "$engine" info >/dev/null 2>&1 || continue
        if has_base "$engine"; then echo "$engine"; return; fi
        log "$engine cannot get $BASE_IMAGE, so they are built from Debian packages, without it"
    done
    echo debian
}

has_base() { # has_base ENGINE: whether the image that all others begin with is there, or comes
    case $1 in
        docker) docker image inspect "$BASE_IMAGE" || timeout 300 docker pull "$BASE_IMAGE" ;;
        podman) podman image exists "$BASE_IMAGE" || timeout 300 podman pull "$BASE_IMAGE" ;;
        buildah) buildah inspect --type image "$BASE_IMAGE" || timeout 300 buildah pull "$BASE_IMAGE" ;;
    esac >/dev/null 2>&1
}

with_containers() { # with_containers docker|podman|buildah
    local image
    for image in "${IMAGES[@]}"; do
        log "building $(reference "$image") with $1"
        case $1 in
            buildah) buildah build --quiet --layers --build-arg "DEBIAN=$BASE_IMAGE" --target "$image" -t "$(reference "$image")" \
                         -f "$HERE/Dockerfile" "$ROOT" >/dev/null
                     buildah push --quiet "$(reference "$image")" "oci-archive:$OUT/$image.tar:$(reference "$image")" ;;
            *) "$1" build --quiet --build-arg "DEBIAN=$BASE_IMAGE" --target "$image" -t "$(reference "$image")" \
                   -f "$HERE/Dockerfile" "$ROOT" >/dev/null
               "$1" save -o "$OUT/$image.tar" "$(reference "$image")" ;;
        esac
    done
}

# ---------------------------------------------------------------- from Debian packages

suite() { # shellcheck disable=SC1091
    . /etc/os-release; [ "$ID" = debian ] && echo "$VERSION_CODENAME" || echo bookworm; }

mirror() { # where apt here finds Debian
    [ -z "${MIRROR:-}" ] || { echo "$MIRROR"; return; }
    apt-get indextargets --format '$(LABEL) $(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v s="$SUITE" '$1 == "Debian" && $2 == s && $3 == "main" {print $4; exit}'
}

security() { # and its security updates, where it does
    apt-get indextargets --format '$(LABEL) $(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v s="$SUITE-security" '$2 == s && $3 == "main" {print $4; exit}'
}

slim() { # slim ROOT: as the Dockerfile does, and without what only a container engine needs to lay over
    inside "$1" sh -s system <"$HERE/slim.sh"
    rm -f "$1"/etc/{resolv.conf,hostname,hosts,apt/sources.list}
    find "$1/dev" "$1/tmp" -xdev -mindepth 1 -delete
}

inside() { # inside ROOT COMMAND...: in a mount namespace of its own, with this machine's resolver
    unshare --mount bash -euc '
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount -t tmpfs tmpfs "$root/dev"
        for d in null zero urandom random; do touch "$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
        cp -L /etc/resolv.conf "$root/etc/resolv.conf"
        export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
        export DEBIAN_FRONTEND=noninteractive PYTHONDONTWRITEBYTECODE=1
        exec chroot "$root" "$@"' - "$@"
}

base() { # prints a tar of Debian without recommended packages, with the user that all images run as
    local tar tmp
    tar=$CACHE/base-$SUITE-$(key base slim </dev/null).tar
    if [ ! -s "$tar" ]; then
        log "debootstrap $SUITE"
        tmp=$(mktemp -d "$CACHE/new.XXXXXX")
        debootstrap --variant=minbase "$SUITE" "$tmp/root" "$(mirror)" >"$tar.log" 2>&1 ||
            { tail -n 5 "$tar.log" >&2; fail "debootstrap failed; see $tar.log"; }
        { echo "deb $(mirror) $SUITE main"; s=$(security); [ -z "$s" ] || echo "deb $s $SUITE-security main"; } >"$tmp/root/etc/apt/sources.list"
        inside "$tmp/root" sh -c 'apt-get update -qq && apt-get upgrade -qq -y' >>"$tar.log" 2>&1 || log "without the newest updates; see $tar.log"
        inside "$tmp/root" apt-get install -qq -y --no-install-recommends ca-certificates >>"$tar.log" 2>&1 ||
            fail "apt-get failed; see $tar.log"
        cp "$tmp/root/etc/apt/sources.list" "$tar.sources"
        inside "$tmp/root" useradd -u $APP -U -d /home/app -m -s /usr/sbin/nologin app
        slim "$tmp/root"
        pack "$tmp/root" "$tar"
        rm -rf --one-file-system "$tmp"
    fi
    echo "$tar"
}

key() { # key FUNCTION...: names what they make, together with what is given on standard input
    { declare -f "$@"; cat "$HERE/slim.sh" -; } | sha256sum | cut -c1-12
}

pack() { # pack ROOT TAR [MEMBER]: the same files give the same bytes
    tar -C "$1" --numeric-owner --sort=name --format=posix --pax-option=delete=atime,delete=ctime -cf "$2.new" "${3:-.}"
    mv "$2.new" "$2"
}

packages() { # packages NAME PACKAGE...: prints a tar of what these Debian packages add to the base
    local name=$1 tar tmp; shift
    tar=$CACHE/$name-$SUITE-$(printf '%s\n' "$BASE" "$@" | key packages slim inside).tar
    if [ ! -s "$tar" ]; then
        log "installing $*"
        tmp=$(mktemp -d "$CACHE/new.XXXXXX"); mkdir "$tmp/root"
        tar -C "$tmp/root" --numeric-owner -xpf "$BASE"
        cp "$BASE.sources" "$tmp/root/etc/apt/sources.list"
        if [ "$name" = postgresql ]; then
            mkdir "$tmp/root/etc/postgresql-common"
            echo "create_main_cluster = false" >"$tmp/root/etc/postgresql-common/createcluster.conf"
        fi
        inside "$tmp/root" sh -c 'apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@"' - "$@" >"$tar.log" 2>&1 ||
            { tail -n 5 "$tar.log" >&2; fail "apt-get failed; see $tar.log"; }
        slim "$tmp/root"
        python3 "$HERE/oci.py" difference "$BASE" "$tmp/root" "$tar.new"
        mv "$tar.new" "$tar"
        rm -rf --one-file-system "$tmp"
    fi
    echo "$tar"
}

dependencies() { # prints a tar of the pinned packages in /opt/signalbox/lib
    local tar tmp tag tags=()
    tar=$CACHE/lock-$PYTHON-$(key dependencies compiled <"$HERE/requirements.lock").tar
    if [ ! -s "$tar" ]; then
        log "installing requirements.lock"
        tmp=$(mktemp -d "$CACHE/new.XXXXXX")
        for tag in 2_36 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do tags+=(--platform "manylinux_${tag}_$(uname -m)"); done
        tool pip install --quiet --no-deps --require-hashes --only-binary :all: --no-compile --implementation cp \
            --python-version "$PYTHON" "${tags[@]}" --platform "manylinux2014_$(uname -m)" \
            --target "$tmp/root/opt/signalbox/lib" -r "$HERE/requirements.lock" >&2
        command -v strip >/dev/null || needs binutils
        sh "$HERE/slim.sh" packages "$tmp/root/opt/signalbox/lib"
        compiled "$tmp/root"
        pack "$tmp/root" "$tar" opt
        rm -rf --one-file-system "$tmp"
    fi
    echo "$tar"
}

tool() { # a Python with pip; what is installed by it is told where to go
    if [ ! -x "$CACHE/tool/bin/python" ]; then
        python3 -c 'import ensurepip' 2>/dev/null || needs python3-venv
        python3 -m venv "$CACHE/tool"
    fi
    "$CACHE/tool/bin/python" -m "$@" || fail "$1 could not do it"
}

compiled() { # compiled ROOT: byte code in ROOT/opt, made by the image's own Python
    local tmp; tmp=$(mktemp -d "$CACHE/new.XXXXXX")
    tar -C "$tmp" --numeric-owner -xpf "$BASE"; tar -C "$tmp" --numeric-owner -xpf "$PYTHON_LAYER"
    mv "$1/opt" "$tmp/"
    inside "$tmp" sh -s compile /opt <"$HERE/slim.sh"
    mv "$tmp/opt" "$1/"; rm -rf --one-file-system "$tmp"
}

code() { # code TAR PACKAGE...: packages of the workspace and their commands
    local tmp out=$1; shift
    tmp=$(mktemp -d "$CACHE/new.XXXXXX")
    python3 "$HERE/collect.py" "$tmp/opt/signalbox" "$@"
    finish "$tmp" "$out"
}

finish() { # finish FOLDER TAR
    compiled "$1"
    find "$1" -exec touch -h -d @1767225600 {} +
    chown -R 0:0 "$1"
    pack "$1" "$2" opt
    rm -rf --one-file-system "$1"
}

archive() { # archive IMAGE [OPTION...] of oci.py
    local image=$1; shift
    python3 "$HERE/oci.py" archive "$(reference "$image")" "$OUT/$image.tar" --user $APP:$APP "$@"
    log "$OUT/$image.tar: $(($(stat -c %s "$OUT/$image.tar") / 1048576)) MiB"
}

from_debian() {
    [ "$(id -u)" = 0 ] || fail "without docker, podman or buildah this needs root"
    # What debootstrap mounts goes with it, whatever ends it.
    [ "${MOUNTS:-}" = own ] || MOUNTS=own BUILDER=debian exec unshare --mount "$HERE/build.sh" "$OUT"
    command -v debootstrap >/dev/null || needs debootstrap
    mkdir -p "$CACHE"
    exec 9>"$CACHE/lock"; flock 9
    rm -rf --one-file-system "$CACHE"/new.*  # of builds that were interrupted
    SUITE=$(suite)
    case $SUITE in bookworm) PYTHON=3.11 POSTGRESQL=15 ;; trixie) PYTHON=3.13 POSTGRESQL=17 ;; *) fail "knows Debian 12 and 13, not $SUITE" ;; esac
    local python_env=(--env PATH=/opt/signalbox/bin:/usr/local/bin:/usr/bin:/bin --env PYTHONPATH=/opt/signalbox/rooms:/opt/signalbox/lib
                      --env PYTHONDONTWRITEBYTECODE=1 --env PYTHONUNBUFFERED=1 --env SIGNALBOX_ADDR=env:)
    local tmp=$CACHE/code redis postgresql; mkdir -p "$tmp"
    tool pip --version >/dev/null
    BASE=$(base)
    PYTHON_LAYER=$(packages python python3)
    DEPENDENCIES=$(dependencies)
    redis=$(packages redis redis-server redis-tools)
    postgresql=$(packages postgresql "postgresql-$POSTGRESQL")
    code "$tmp/rooms.tar" "$ROOT"/{proto,libs/*,services/*,operator,cli}
    code "$tmp/simulator.tar" "$ROOT/tests/simulator"
    archive signalbox --layer "$BASE" --layer "$PYTHON_LAYER" --layer "$DEPENDENCIES" --layer "$tmp/rooms.tar" \
        "${python_env[@]}" --sbom "$TAG" -- signalbox --help
    archive signalbox-simulator --layer "$BASE" --layer "$PYTHON_LAYER" --layer "$DEPENDENCIES" --layer "$tmp/simulator.tar" \
        "${python_env[@]}" --sbom "$TAG" -- signalbox-simulator --host 0.0.0.0 --port 8000
    archive signalbox-redis --layer "$BASE" --layer "$redis" --sbom "$TAG" -- redis-server
    archive signalbox-postgresql --layer "$BASE" --layer "$postgresql" --sbom "$TAG" \
        --env "PATH=/usr/lib/postgresql/$POSTGRESQL/bin:/usr/local/bin:/usr/bin:/bin" --stop-signal SIGINT -- postgres
}

BY=$(builder)
case $BY in
    docker | podman | buildah) with_containers "$BY" ;;
    debian) from_debian ;;
    *) fail "BUILDER=$BY is none of docker, podman, buildah, debian" ;;
esac
