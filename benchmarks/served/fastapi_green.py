"""The application in FastAPI with a plain function in a greenlet; as many requests at once as the
others have threads."""

from benchmarks.served.fastapi_def import app
from greenletio.integrations.starlette import LimitRequests, patch_starlette

patch_starlette()
app.add_middleware(LimitRequests, limit=40)
