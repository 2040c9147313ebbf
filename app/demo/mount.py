"""The demo as part of a server's application: mounted at /demo, allowed to load nothing from elsewhere."""

from __future__ import annotations

import importlib
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import BadInput, MissingExtra
from ..server.auth import KeyStore
from ..server.settings import ServerSettings
from .codec_lab import CodecLab
from .edit_lab import EditLab
from .speculating import drafts_of

__all__ = ["DEMO", "add_demo"]

DEMO = "/demo"
# Gradio's page has inline scripts, and some that compile templates; what counts is that no other host is ever asked.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: wss: data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
# Gradio's files with a hash in their names: a visitor's browser need not even ask for them again.
HASHED = re.compile(rf"^{DEMO}/assets/.*[-.][A-Za-z0-9_-]{{8}}\.(js|css|woff2?|svg)$")


class _OwnHostOnly:
    """Adds the content security policy to the answers of the pages, and lets browsers keep what never changes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith((DEMO, "/static/")):
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = POLICY
                if message["status"] == 200 and HASHED.search(scope["path"]):
                    headers["cache-control"] = "public, max-age=31536000, immutable"
            await send(message)

        await self.app(scope, receive, answer)


def add_demo(
    app: FastAPI,
    settings: ServerSettings,
    codecs: tuple[str, ...] | None = None,
    editors: EditLab | None = None,
) -> None:
    """Mounts the demo in a server's application, before it starts. The root of the server leads to it.

    Args:
        codecs: names or folders for the codec lab; None: those that are bundled.
        editors: of the Edit tab; None: the bundled models that fill gaps.

    Raises:
        MissingExtra: gradio is not installed. BadInput: the server has API keys, which a page cannot show.
    """
    if KeyStore(settings.keys).keys():
        raise BadInput(
            f"the demo has no login, so it runs on a server without API keys only, and {settings.keys} has some; "
            "name another file with --keys (it is then open to this machine alone)"
        )
    try:
        import gradio
    except ImportError:
        raise MissingExtra("the demo needs gradio: pip install 'quaver[demo]'") from None
    from .handlers import Handlers
    from .page import HEAD, STYLE, build_page, theme

    @app.get("/", include_in_schema=False)
    def root() -> RedirectResponse:
        return RedirectResponse(f"{DEMO}/")

    @app.get("/manifest.json", include_in_schema=False)
    def manifest() -> dict[str, str]:  # Gradio's page asks for it
        return {"name": "quaver", "start_url": f"{DEMO}/", "display": "browser"}

    @app.get("/demo-figures/{model}", include_in_schema=False)
    def figures(model: str, request: Request) -> dict[str, Any]:
        return _speculation(request.app, model)

    importlib.import_module("matplotlib.pyplot")  # Gradio asks for it at the first event; a visitor would wait for it
    page = build_page(Handlers(app, CodecLab(codecs), editors or EditLab()))
    gradio.mount_gradio_app(
        app,
        page,
        DEMO,
        footer_links=[],
        run_history=False,
        max_file_size=settings.limits.voice_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=theme(),
        css=STYLE,
        head=HEAD,
    )
    app.add_middleware(_OwnHostOnly)


def _speculation(app: FastAPI, model: str) -> dict[str, Any]:
    """Drafted tokens that were judged and kept so far; nothing where the model does not speculate."""
    engine = app.state.service.engine
    return drafts_of(engine.synthesizer(model)) if model in engine.models else {}
