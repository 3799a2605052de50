"""The application in Flask for gunicorn's gevent worker, whose psycopg2 psycogreen makes green."""

from psycogreen.gevent import patch_psycopg

patch_psycopg()

from benchmarks.served.flask_app import flask  # noqa: E402, F401
