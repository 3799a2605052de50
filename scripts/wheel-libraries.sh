#!/bin/sh
# Builds the libraries that a wheel holds: scripts/wheel-libraries.sh PREFIX
#
# OpenSSL and libpq as shared libraries, libevent as a static one, from their makers' own archives,
# whose checksums are below. Nothing of the system's is replaced; what is in PREFIX already, in these
# versions, is kept. Needs a C compiler, make, perl, bison, flex and, unless the archives are there, curl.
# PREFIX/licenses has what each is licensed under: setup.py puts that into the wheel.
#
# Where the archives cannot be fetched from their makers, Debian's source packages have the same files
# under other names: openssl_3.5.7.orig.tar.gz for openssl-3.5.7.tar.gz.
#
#   SOURCES=folder   where the archives are, or go to (PREFIX/sources)
set -eu
PREFIX=$(mkdir -p "$1" && cd "$1" && pwd)
SOURCES=${SOURCES:-$PREFIX/sources}
JOBS=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

OPENSSL=openssl-3.5.7.tar.gz
OPENSSL_SUM=a8c0d28a529ca480f9f36cf5792e2cd21984552a3c8e4aa11a24aa31aeac98e8
OPENSSL_URL=https://github.com/openssl/openssl/releases/download/openssl-3.5.7/$OPENSSL
LIBEVENT=libevent-2.1.13-stable.tar.gz
LIBEVENT_SUM=f7e9383b8c0baa81b687e5b5eecc01beefaf1b19b64151d95ed61647fe7a315c
LIBEVENT_URL=https://github.com/libevent/libevent/releases/download/release-2.1.13-stable/$LIBEVENT
POSTGRESQL=postgresql-17.11.tar.bz2
POSTGRESQL_SUM=dd27f2b3c59e73ed14aa3324901242bf69a032a6347805f274e6260322d42979
POSTGRESQL_URL=https://ftp.postgresql.org/pub/source/v17.11/$POSTGRESQL

fail() {
    echo "wheel-libraries: $*" >&2
    exit 1
}

for tool in "${CC:-cc}" make perl tar bzip2 bison flex; do
    command -v "$tool" >/dev/null || fail "$tool is missing"
done
mkdir -p "$SOURCES"
SOURCES=$(cd "$SOURCES" && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

# unpack ARCHIVE CHECKSUM URL: and go to its folder
unpack() {
    if [ ! -f "$SOURCES/$1" ]; then
        curl -fsSL --retry 3 -o "$SOURCES/$1.part" "$3" ||
            fail "$1 could not be fetched from $3: put it into $SOURCES by hand"
        mv "$SOURCES/$1.part" "$SOURCES/$1"
    fi
    echo "$2  $SOURCES/$1" | sha256sum -c - >/dev/null ||
        fail "$SOURCES/$1 is not the archive that it should be: remove it"
    mkdir -p "$WORK/$1"
    tar -xf "$SOURCES/$1" -C "$WORK/$1" --strip-components 1
    cd "$WORK/$1"
}

# done_with ARCHIVE: whether PREFIX has it; mark ARCHIVE LICENCE: it has it now, and no other version
licence() { echo "$PREFIX/licenses/${1%.tar.*}.txt"; }
done_with() { [ -f "$(licence "$1")" ] && echo "$1: there already" >&2; }
mark() {
    mkdir -p "$PREFIX/licenses"
    rm -f "$PREFIX/licenses/${1%%-*}"-*
    cp "$WORK/$1/$2" "$(licence "$1")"
    rm -rf "${WORK:?}/$1"
}

# PostgreSQL makes its generated headers in the outermost make alone, which may be ours.
unset MAKELEVEL MAKEFLAGS MFLAGS
export CFLAGS="${CFLAGS:--O2 -fPIC}"

if ! done_with $OPENSSL; then
    unpack $OPENSSL $OPENSSL_SUM $OPENSSL_URL
    # Debian's place for certificates; SSL_CERT_FILE and SSL_CERT_DIR name others.
    ./Configure shared no-tests no-docs no-apps no-legacy --libdir=lib --prefix="$PREFIX" \
        --openssldir=/etc/ssl >"$WORK/log" 2>&1 &&
        make -j"$JOBS" build_sw >>"$WORK/log" 2>&1 &&
        make install_sw >>"$WORK/log" 2>&1 || { tail -40 "$WORK/log" >&2; fail "OpenSSL was not built"; }
    mark $OPENSSL LICENSE.txt
fi

if ! done_with $LIBEVENT; then
    unpack $LIBEVENT $LIBEVENT_SUM $LIBEVENT_URL
    ./configure --prefix="$PREFIX" --libdir="$PREFIX/lib" --disable-shared --enable-static --with-pic \
        --disable-openssl --disable-mbedtls --disable-samples --disable-libevent-regress >"$WORK/log" 2>&1 &&
        make -j"$JOBS" >>"$WORK/log" 2>&1 &&
        make install >>"$WORK/log" 2>&1 || { tail -40 "$WORK/log" >&2; fail "libevent was not built"; }
    mark $LIBEVENT LICENSE
fi

if ! done_with $POSTGRESQL; then
    unpack $POSTGRESQL $POSTGRESQL_SUM $POSTGRESQL_URL
    # libpq alone, and pg_config, which tells where it is.
    CPPFLAGS="-I$PREFIX/include" LDFLAGS="-L$PREFIX/lib -Wl,-rpath,$PREFIX/lib" \
        ./configure --prefix="$PREFIX" --libdir="$PREFIX/lib" --sysconfdir=/etc/postgresql-common \
        --with-openssl --without-readline --without-icu --without-zlib >"$WORK/log" 2>&1 &&
        for part in src/include src/interfaces/libpq src/bin/pg_config; do
            make -j"$JOBS" -C $part install >>"$WORK/log" 2>&1
        done || { tail -40 "$WORK/log" >&2; fail "libpq was not built"; }
    mark $POSTGRESQL COPYRIGHT
fi
