#!/bin/sh
# slim.sh system | packages FOLDER: what an image does without. Both ways to build one, Dockerfile and build.sh, use it.
#
# `system` runs as root inside of the image that is being made, after the last Debian package; `packages` works on a folder
# of installed Python packages, wherever it lies. Byte code of Python's own library is made here, because the root is
# read-only when rooms run: without it each of them would compile hundreds of modules at every start.
set -eu

system() {
    # For people at a console, and for package managers.
    rm -rf /debootstrap /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/cache/ldconfig /var/log/* /root/.cache \
        /usr/share/doc /usr/share/man /usr/share/locale /usr/share/info /usr/share/lintian /usr/share/bash-completion \
        /usr/share/bug /usr/share/i18n /usr/share/zoneinfo/right /usr/lib/*-linux-gnu/gconv
    rm -f /etc/.pwd.lock /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /var/lib/dpkg/*-old
    # PostgreSQL compiles long queries where it finds these; a ledger's are short, and they are half of its image.
    rm -rf /usr/lib/postgresql/*/lib/bitcode /usr/lib/postgresql/*/lib/llvmjit* /usr/lib/*-linux-gnu/libLLVM* \
        /usr/lib/*-linux-gnu/libz3.so*
    find /usr -name __pycache__ -prune -exec rm -rf {} +
    for library in /usr/lib/python3.*; do
        [ -e "$library/os.py" ] || continue
        rm -rf "$library/test" "$library/pydoc_data" "$library/lib2to3"
        python3 -m compileall -q --invalidation-mode unchecked-hash "$library"
    done
}

packages() { # commands nobody calls, tests, sources of extensions, and symbols for debuggers, which are an eighth
    rm -rf "$1/bin"
    find "$1" -type d -name testing -prune -exec rm -rf {} +
    find "$1" -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.c' -o -name '*.h' \) -delete
    find "$1" -type f -name '*.so*' -exec strip --strip-unneeded {} +
}

"$@"
