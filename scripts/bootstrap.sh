#!/bin/sh
# Makes everything ready to run: scripts/bootstrap.sh [extra of pyproject.toml ...]
#
# Installs what the system lacks (asking for root only then), makes a virtual environment, installs
# the extras into it and builds the checkout. What is up to date already is not touched: a second
# run takes a fraction of a second.
#
#   PYTHON=python3.13     the interpreter to use; otherwise the first fitting one is found
#   VENV=folder           where the virtual environment goes (.venv)
#   GREENLETIO_WERROR=1   warnings of the C compiler are errors
#   PG_CONFIG=path        the pg_config of the libpq to build with; otherwise the system's
set -eu
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
STAMPS=$VENV/greenletio-stamps
OLDEST=10 # of Python 3

# What the system must have, beside Python: Debian's package for each is below, Fedora's here.
DNF_PACKAGES="gcc python3-devel libpq-devel libevent-devel openssl-devel"

say() { echo "greenletio: $*" >&2; }
fail() {
    say "$*"
    exit 1
}

# --- Python ------------------------------------------------------------------------------------

fits() { "$1" -c "import sys; sys.exit(sys.version_info < (3, $OLDEST))" 2>/dev/null; }

# Sets PYTHON to an interpreter that fits, or to nothing.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" || fail "PYTHON=$PYTHON does not run, or is older than 3.$OLDEST: name another one."
        return
    fi
    for PYTHON in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if fits "$PYTHON"; then return; fi
    done
    PYTHON=
}

ask_python() { "$PYTHON" -c "import sys, sysconfig; print($1)"; }

# --- what the system lacks ---------------------------------------------------------------------

has_header() {
    for folder in $2 /usr/include /usr/local/include; do
        if [ -f "$folder/$1" ]; then return 0; fi
    done
    return 1
}

includes() { pkg-config --cflags-only-I "$1" 2>/dev/null | sed 's/-I//g' || true; }

# Sets MISSING to Debian packages.
find_missing() {
    MISSING=
    if [ -z "$PYTHON" ]; then
        MISSING="python3 python3-venv python3-dev"
    else
        # Debian cuts these off its own Python; any other that lacks them was built without.
        name=python$(ask_python '"%d.%d" % sys.version_info[:2]')
        "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || MISSING="$MISSING $name-venv"
        [ -f "$(ask_python 'sysconfig.get_path("include")')/Python.h" ] || MISSING="$MISSING $name-dev"
    fi
    if ! echo 'int main(void) { return 0; }' | "${CC:-cc}" -x c -o /dev/null - 2>/dev/null; then
        MISSING="$MISSING gcc libc6-dev"
    fi
    has_header libpq-fe.h "$("${PG_CONFIG:-pg_config}" --includedir 2>/dev/null) /usr/include/postgresql $(includes libpq)" ||
        MISSING="$MISSING libpq-dev"
    has_header event2/event.h "$(includes libevent)" || MISSING="$MISSING libevent-dev"
    has_header openssl/ssl.h "$(includes openssl)" || MISSING="$MISSING libssl-dev"
    MISSING=${MISSING# }
}

install_missing() {
    if ! command -v apt-get >/dev/null; then
        fail "missing (names of Debian): $MISSING. Fedora: dnf install $DNF_PACKAGES."
    fi
    install="apt-get install -y --no-install-recommends $MISSING"
    if [ "$(id -u)" = 0 ]; then
        root="env"
    elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        root="sudo env"
    else
        fail "missing: $MISSING. Have root run: apt-get update && $install"
    fi
    say "missing: $MISSING. Installing them: ${root%env}$install"
    # Words of their own.
    # shellcheck disable=SC2086
    { $root apt-get update -q && $root DEBIAN_FRONTEND=noninteractive $install; } >&2 ||
        fail "apt-get failed, see above. Without a network or a mirror, install by hand: $MISSING."
}

# --- the virtual environment ---------------------------------------------------------------------

# A stamp holds what a step was done with; the step is due again when that has changed.
is_done() { [ "$(cat "$STAMPS/$1" 2>/dev/null)" = "$2" ]; }
mark_done() { echo "$2" >"$STAMPS/$1"; }

# Interpreter and place; scripts in a virtual environment hold absolute paths.
venv_key() { "$1" -c "import sys; print(sys.base_prefix, *sys.version_info[:2])" && pwd; }

venv_fits() {
    key=$(venv_key "$VENV/bin/python" 2>/dev/null) && is_done venv "$key" || return 1
    [ -z "${PYTHON:-}" ] || [ "$(venv_key "$PYTHON" 2>/dev/null)" = "$key" ]
}

make_venv() {
    [ "$(uname)" = Linux ] || fail "greenletio runs on Linux alone, so far: docs/install.md says why."
    find_python
    find_missing
    if [ -n "$MISSING" ]; then
        install_missing
        if [ -z "$PYTHON" ]; then PYTHON=python3; fi
        fits "$PYTHON" || fail "Python 3.$OLDEST or newer is needed, this system has none: install one and name it by PYTHON=."
        find_missing
        [ -z "$MISSING" ] || fail "still missing after the installation: $MISSING. Is $PYTHON the one you want? PYTHON= names another."
    fi
    say "making $VENV with Python $(ask_python '"%d.%d.%d" % sys.version_info[:3]')"
    "$PYTHON" -m venv --clear "$VENV" || fail "$PYTHON could not make $VENV, see above."
    mkdir -p "$STAMPS"
    mark_done venv "$(venv_key "$VENV/bin/python")"
}

pip_install() {
    "$VENV/bin/python" -m pip install -q --disable-pip-version-check "$@" >&2 ||
        fail "that failed, see above. If it was the network: PIP_INDEX_URL or PIP_FIND_LINKS name a mirror."
}

# --- the build -----------------------------------------------------------------------------------

# Changes with the C code, and when a Python file comes or goes: an editable build links them. A
# build for the sanitizers is a copy instead, to stand beside the usual one.
if [ "${GREENLETIO_SANITIZE:-}" = 1 ]; then
    target=.
    is_copied='*.py*'
else
    target="--config-settings editable_mode=strict -e ."
    is_copied=
fi

build_key() {
    {
        echo "${GREENLETIO_WERROR:-}${PG_CONFIG:-}${CFLAGS:-}"
        find csrc setup.py -type f -exec cksum {} + | sort
        find greenletio green pg -type f -name '*.py*' ! -name '*.pyc' | sort
        find greenletio green pg -type f -name "$is_copied" -exec cksum {} + | sort
    } | cksum
}

venv_fits || make_venv

requirements=$(cksum <pyproject.toml)
sources=$(build_key)
extras=
for extra; do
    is_done "extra-$extra" "$requirements" || extras="$extras${extras:+,}$extra"
done
dependencies=
if [ -z "$extras" ] && is_done base "$requirements"; then
    if is_done build "$sources"; then exit 0; fi
    dependencies=--no-deps
fi

rm -f "$STAMPS/build"
if [ -z "$dependencies" ]; then
    say "installing what it needs${extras:+ for: $extras}"
    pip_install 'setuptools>=77' 'greenlet>=3.1'
fi
say "building"
# The target is words of their own.
# shellcheck disable=SC2086
pip_install --no-build-isolation $dependencies $target"${extras:+[$extras]}"

mark_done base "$requirements"
for extra; do mark_done "extra-$extra" "$requirements"; done
mark_done build "$sources"
