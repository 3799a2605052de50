#!/bin/sh
# Installs what some tests start beside the embedded PostgreSQL, and what no build needs: Debian's
# PostgreSQL (with TLS), pgTAP and PgBouncer. For machines that run the tests and nothing else.
# Without these, the tests say what they miss.
set -eu

missing=
[ -n "$(ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null)" ] || missing="postgresql"
[ -n "$(ls /usr/share/postgresql/*/extension/pgtap.control 2>/dev/null)" ] || missing="$missing pgtap"
[ -x /usr/sbin/pgbouncer ] || missing="$missing pgbouncer"
if [ -z "$missing" ]; then exit 0; fi

apt-get update -q
# In run level 1 no service is started.
# shellcheck disable=SC2086 # words of their own
RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing
