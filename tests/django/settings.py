"""The settings that Django's own tests run with; run.py is the parent."""

import json
import os

import django

from greenletio.integrations.django.sync import patch_asgiref

_told = json.loads(os.environ["GREENLETIO_DJANGO_TESTS"])

if _told["engine"].startswith("greenletio"):
    TEST_RUNNER = "runner.Runner"
    patch_asgiref()

DATABASES = {
    alias: {
        "ENGINE": _told["engine"],
        **_told["server"],
        "NAME": _told["database"],
        "TEST": {"NAME": f"{_told['database']}_{alias}"},
        "OPTIONS": {},
    }
    for alias in ("default", "other")
}
SECRET_KEY = "of the tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
if django.VERSION < (6,):  # as in the settings of Django's own
    DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
