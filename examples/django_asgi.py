"""A Django application, sync and async views, sync middleware and the ORM, in an ASGI server.

    pip install "greenletio[django]" uvicorn
    DATABASE_URL=postgresql://postgres@127.0.0.1/test uvicorn django_asgi:app

Every request runs in greenlets: hundreds wait for the database at once, in one thread.
"""

import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import connection, models, transaction
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
    StreamingHttpResponse,
)
from django.urls import path

from greenletio import async_

url = urlsplit(os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test"))

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "greenletio.integrations.django",
            "HOST": url.hostname or "",
            "PORT": url.port or "",
            "USER": unquote(url.username or ""),
            "PASSWORD": unquote(url.password or ""),
            "NAME": url.path.strip("/"),
            "OPTIONS": {"pool": {"max_size": 10}, "application_name": "django_asgi"},
        }
    },
    INSTALLED_APPS=["greenletio.integrations.django"],  # sync code runs in greenlets
    MIDDLEWARE=[f"{__name__}.where"],
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    SECRET_KEY="of an example",
)
django.setup()


class Note(models.Model):
    text = models.TextField()

    class Meta:
        app_label = "django_asgi"


# What any Django application has: none of it knows of loops, or waits in a thread.


def where(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    """Middleware of the synchronous kind: tells the thread."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers["X-Thread"] = threading.current_thread().name
        return response

    return middleware


def notes(request: HttpRequest) -> HttpResponseBase:
    if request.method == "POST":
        with transaction.atomic():
            note = Note.objects.create(text=request.POST["text"])
        return JsonResponse({"id": note.pk})
    return JsonResponse({"notes": list(Note.objects.order_by("pk").values_list("text", flat=True))})


def in_the_database(seconds: float) -> str:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s), pg_backend_pid()", [seconds])
        return str(cursor.fetchone()[1])


def sleep(request: HttpRequest, seconds: str) -> HttpResponseBase:
    """Ask for many of these at once: they take as long as one."""
    return HttpResponse(in_the_database(float(seconds)))


# Asynchronous views, which call the same code.


async def sleep_async(request: HttpRequest, seconds: str) -> HttpResponseBase:
    return HttpResponse(await async_(in_the_database)(float(seconds)))


async def first(request: HttpRequest) -> HttpResponseBase:
    note = await Note.objects.order_by("pk").afirst()
    return HttpResponse("" if note is None else note.text)


async def export(request: HttpRequest) -> HttpResponseBase:
    """Note after note, as fast as the client takes them."""

    async def lines() -> AsyncIterator[str]:
        async for note in Note.objects.order_by("pk").aiterator(chunk_size=10):
            yield f"{note.text}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


urlpatterns = [
    path("notes", notes),
    path("sleep/<str:seconds>", sleep),
    path("sleep_async/<str:seconds>", sleep_async),
    path("first", first),
    path("export", export),
]


def create_tables() -> None:
    """Of a real application: python manage.py migrate."""
    if Note._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Note)
    connection.close()  # back to the pool: the task that has called us lives as long as the server


application = get_asgi_application()


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "lifespan":
        await application(scope, receive, send)
        return
    await receive()
    await async_(create_tables)()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
