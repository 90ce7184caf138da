"""Whose browser asks: what one user does in many tabs is told from what others do."""

import re
import secrets

from starlette.requests import Request

from pipeline.explorer.guard import App, Message, Receive, Scope, Send

COOKIE = "visitor"
_NAME = re.compile(r"[0-9a-f]{32}")


class Visitors:
    """ASGI middleware: `request.state.visitor` is a random name that the browser keeps in a cookie."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        known = Request(scope).cookies.get(COOKIE, "")
        is_known = bool(_NAME.fullmatch(known))
        name = known if is_known else secrets.token_hex(16)
        scope.setdefault("state", {})["visitor"] = name

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and not is_known:
                cookie = f"{COOKIE}={name}; Path=/; HttpOnly; SameSite=Lax".encode()
                message["headers"] = [*message.get("headers", ()), (b"set-cookie", cookie)]
            await send(message)

        await self.app(scope, receive, named)
