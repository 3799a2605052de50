"""Django on greenletio: the ORM from asynchronous views, sync views and middleware as greenlets.

    DATABASES = {"default": {"ENGINE": "greenletio.integrations.django", "NAME": …}}
    INSTALLED_APPS = ["greenletio.integrations.django", …]

The first is a database backend on greenletio.pg: the sync ORM may be called wherever sync code
runs under ``async_`` or ``spawn``, each task has a connection of its own, out of a pool. The second
has what asgiref's ``sync_to_async`` calls run in a greenlet in place of a thread.
"""

from __future__ import annotations

__all__ = ()
