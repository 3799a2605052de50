"""The application in Flask, by as_asgi."""

from benchmarks.served.flask_app import flask
from greenletio.integrations.asgi import as_asgi

app = as_asgi(flask)
