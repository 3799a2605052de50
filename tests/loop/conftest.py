"""Fixtures that the tests of the loop share."""

from fix_tls import authority, connect, contexts, peer  # noqa: F401
from fix_transports import sockets  # noqa: F401
