#!/bin/sh
# slim.sh system | packages FOLDER | compile FOLDER: takes out of an image what it does without, and puts byte code in.
#
# Both ways to build one use it, Dockerfile and build.sh. `system` runs as root inside of the image that is being made, after
# the last Debian package, and so does `compile`; `packages` works on installed Python packages, wherever they lie. The root
# is read-only when rooms run: without byte code each of them would compile hundreds of modules at every start, those of
# Python's own library included.
set -eu

system() {
    # For people at a console, and for package managers.
    rm -rf /debootstrap /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/cache/ldconfig /var/log/* /root/.cache \
        /usr/share/doc /usr/share/man /usr/share/locale /usr/share/info /usr/share/lintian /usr/share/bash-completion \
        /usr/share/bug /usr/share/i18n /usr/share/zoneinfo/right /usr/lib/*-linux-gnu/gconv
    rm -f /etc/.pwd.lock /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /var/lib/dpkg/*-old \
        /var/lib/dpkg/available /var/lib/apt/extended_states /etc/ca-certificates.conf.dpkg-old
    # PostgreSQL compiles long queries where it finds these; a ledger's are short, and they are half of its image.
    rm -rf /usr/lib/postgresql/*/lib/bitcode /usr/lib/postgresql/*/lib/llvmjit* /usr/lib/*-linux-gnu/libLLVM* \
        /usr/lib/*-linux-gnu/libz3.so*
    find /usr -name __pycache__ -prune -exec rm -rf {} +
    for library in /usr/lib/python3.*; do
        [ -e "$library/os.py" ] || continue
        rm -rf "$library/test" "$library/pydoc_data" "$library/lib2to3"
        compile "$library"
    done
}

packages() { # commands nobody calls, tests, sources of extensions, and symbols for debuggers, which are an eighth
    rm -rf "$1/bin"
    find "$1" -type d -name testing -prune -exec rm -rf {} +
    find "$1" -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.c' -o -name '*.h' \) -delete
    find "$1" -type f -name '*.so*' -exec strip --strip-unneeded {} +
}

compile() { # FOLDER: byte code beside the modules; the same every time, by the Python that will run it
    PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash "$1"
}

"$@"
