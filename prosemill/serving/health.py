"""What those ask who watch the service: whether it lives, whether it is ready, and its numbers."""

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from prosemill.serving.desk import Desk
from prosemill.serving.errors import refusals
from prosemill.serving.messages import Health

router = APIRouter()


@router.get("/livez", responses=refusals(503))
async def livez(request: Request) -> Health:
    """Whether it makes sense to let the service run: not if its engine has ended."""
    desk: Desk = request.app.state.desk
    desk.check_engine()
    return Health()


@router.get("/readyz", responses=refusals(503))
async def readyz(request: Request) -> Health:
    """Whether newcomers are served."""
    desk: Desk = request.app.state.desk
    desk.check()
    return Health()


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    """Times, tokens, rows and ends, for Prometheus."""
    desk: Desk = request.app.state.desk
    return Response(desk.meters.told(), media_type=CONTENT_TYPE_LATEST)
