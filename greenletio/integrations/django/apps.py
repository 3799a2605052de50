"""What ``INSTALLED_APPS`` takes."""

from __future__ import annotations

from django.apps import AppConfig

from greenletio.integrations.django.sync import patch_asgiref

__all__ = ("GreenletioConfig",)


class GreenletioConfig(AppConfig):
    """Sync views, middleware, signal receivers and ORM calls run as greenlets under ASGI."""

    name = "greenletio.integrations.django"
    label = "greenletio"

    def ready(self) -> None:
        patch_asgiref()
