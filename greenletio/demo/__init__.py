"""``python -m greenletio demo``: one synchronous program, run three ways inside one event loop.

``cli`` reads the options, ``conductor`` starts the server and a process for each
way, ``worker`` is that process, ``client`` sends it HTTP requests, ``report`` and
``page`` show the figures. The program itself is ``program`` (SQLAlchemy on
psycopg2) behind ``app`` (ASGI); ``ways`` is all that differs between the three.
"""
