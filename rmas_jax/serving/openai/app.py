"""The HTTP application: OpenAI's paths, and those of operation."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rmas_jax.host.errors import shown
from rmas_jax.serving.openai.chat import GONE, ChatEndpoint
from rmas_jax.serving.openai.errors import ApiError, unavailable
from rmas_jax.serving.openai.gate import Gate
from rmas_jax.serving.openai.service import DEAD, Service
from rmas_jax.serving.page import load_page

METHODS = ("GET", "POST")
MESSAGES = {404: "no such path: {path}", 405: "{path} takes no {method}"}  # of the router's errors


def build_app(service: Service) -> Starlette:
    """The application of a service."""
    page = load_page()

    async def show_page(request: Request) -> Response:
        return Response(page.html, headers=page.headers)

    async def list_models(request: Request) -> Response:
        models = [service.model(service.settings.model)]
        return JSONResponse({"object": "list", "data": models})

    async def show_model(request: Request) -> Response:
        return JSONResponse(service.model(request.path_params["name"]))

    async def show_team(request: Request) -> Response:
        return JSONResponse(service.card())

    async def tell_health(request: Request) -> Response:
        if not service.is_alive:
            raise unavailable(DEAD)
        return JSONResponse({"status": "ok"})

    async def tell_readiness(request: Request) -> Response:
        service.check_open()
        return JSONResponse({"status": "ready"})

    async def show_metrics(request: Request) -> Response:
        text, kind = service.metrics.exposition()
        return Response(text, headers={"Content-Type": kind})

    routes = [
        Route("/", show_page),
        Route("/health", tell_health),
        Route("/ready", tell_readiness),
        Route("/metrics", show_metrics),
        Route("/v1/rmas", show_team),
        Route("/v1/models", list_models),
        Route("/v1/models/{name:path}", show_model),
        Route("/v1/chat/completions", ChatEndpoint(service), methods=["POST"]),
    ]
    middleware = [Middleware(Gate, service)]
    if origins := service.settings.origins:
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware, allow_origins=origins, allow_methods=METHODS, allow_headers=["*"]
            ),
        )
    handlers = {
        ApiError: _told,
        HTTPException: _of_router,
        ClientDisconnect: _gone,
        Exception: _failed,
    }
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response


async def _of_router(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = MESSAGES.get(error.status_code, error.detail)
    message = told.format(path=shown(request.url.path), method=shown(request.method))
    return ApiError(error.status_code, message, headers=error.headers).response


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)


async def _failed(request: Request, error: Exception) -> Response:
    """Of a fault of the server, whose traceback is in its log alone."""
    return ApiError(500, "the server has failed to answer; its log tells why").response
