"""The application in Flask, by as_asgi; as many requests at once as the others have threads."""

from benchmarks.served.flask_app import flask
from greenletio.integrations.asgi import as_asgi

app = as_asgi(flask, limit=40)
