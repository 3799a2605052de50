"""What undoes all that a lease has done to a session, and leaves the driver's own statements."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenletio import _pg

__all__ = ("RESET_TIMEOUT", "UNDO", "may_prepare", "reset_script")

#: Seconds that a reset may take before its connection is given up.
RESET_TIMEOUT = 10.0

# As DISCARD ALL, but for DEALLOCATE ALL and DISCARD PLANS, and with what that forgets: a role that
# is the user's default. One round trip; a part that fails is the end of the connection.
UNDO = (
    "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; "
    "SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD SEQUENCES; DISCARD TEMP"
)


_PREPARE = re.compile(r"\bprepare\s", re.IGNORECASE)


def reset_script(con: _pg.Connection, prepared: bool = False) -> str:
    """The script for a connection that has nothing under way.

    `prepared`: statements by SQL's PREPARE, too, and with them the driver's, which it must forget.
    """
    transaction_status = con._transaction_status
    if con._pooler:  # its session is not ours, but for a transaction that is open
        return "ROLLBACK" if transaction_status else ""
    script = f"ROLLBACK; {UNDO}" if transaction_status else UNDO
    return f"{script}; DEALLOCATE ALL" if prepared else script


def may_prepare(sql: object) -> bool:
    """Whether a query may be SQL's PREPARE. The server knows, but asking it costs more than all."""
    likely = isinstance(sql, str) and ("PREPARE" in sql or "repare" in sql)
    return likely and _PREPARE.search(str(sql)) is not None
