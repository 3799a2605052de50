"""The application in FastAPI with a plain function: in a greenlet."""

from benchmarks.served.fastapi_def import app  # noqa: F401
from greenletio.integrations.starlette import patch_starlette

patch_starlette()
