#!/bin/sh
# Installs what some tests start beside the embedded PostgreSQL, and what no build needs: Debian's
# PostgreSQL (with TLS), pgTAP, PgBouncer, HAProxy, and wrk for `make bench-apps`. For machines that
# run the tests and nothing else. Without these, the tests say what they miss.
set -eu

missing=
[ -n "$(ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null)" ] || missing="postgresql"
[ -n "$(ls /usr/share/postgresql/*/extension/pgtap.control 2>/dev/null)" ] || missing="$missing pgtap"
[ -x /usr/sbin/pgbouncer ] || missing="$missing pgbouncer"
[ -x /usr/bin/wrk ] || missing="$missing wrk"
[ -x /usr/sbin/haproxy ] || missing="$missing haproxy"
if [ -z "$missing" ]; then exit 0; fi

# No service is started: invoke-rc.d asks this program, which is here for so long only. One that the
# machine has keeps its place, and its word.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT HUP TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

# A mirror that does not answer costs a minute, not the rest of the day.
timeout 120 apt-get -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o Acquire::Retries=1 update -q
# In run level 1 no service is started, by systemd's units either.
# shellcheck disable=SC2086 # words of their own
RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive timeout 600 apt-get -o DPkg::Lock::Timeout=60 \
    -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 install -y --no-install-recommends $missing
