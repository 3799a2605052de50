"""examples/django_asgi.py by WSGI, for test_gunicorn.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "examples"))

import django_asgi
from django.core.wsgi import get_wsgi_application

django_asgi.create_tables()
app = get_wsgi_application()
