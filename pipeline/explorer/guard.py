"""What stands before the app: only this machine's own names and the app's own pages are answered.

A page of any web site can send requests to 127.0.0.1, and by DNS rebinding under a name of its own; websockets are not
bound by the same-origin policy at all. So the Host must be a name of this machine, the Origin the app's own, and what
a foreign page embeds is refused; a link from elsewhere to the app is not.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_HOST = re.compile(rb"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
REFUSED = b"This server answers pages of its own on this machine, and nobody else.\n"
POLICY = "; ".join(
    (
        "default-src 'self'",
        # NiceGUI starts a page by a script in it, and Vue makes functions out of templates; both are the server's own.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """ASGI middleware over HTTP and websockets. What it refuses gets 403 and never reaches the app."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = {name for name, _ in HEADERS}
                kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in ours]
                message["headers"] = [*kept, *HEADERS]
            await send(message)

        if is_own(scope):
            await self.app(scope, receive, guarded)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the client sees a 403
        else:
            length = str(len(REFUSED)).encode()
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", length)]
            await guarded({"type": "http.response.start", "status": 403, "headers": headers})
            await guarded({"type": "http.response.body", "body": REFUSED})


def is_own(scope: Scope) -> bool:
    """Whether a request goes to this machine by its own name, and comes from no page of another origin."""
    given: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        given.setdefault(name.lower(), []).append(value)
    hosts, origins = given.get(b"host", []), given.get(b"origin", [])
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        return False
    if any(origin.lower() != b"http://" + hosts[0].lower() for origin in origins):
        return False
    # Browsers send no Origin for pictures and scripts that a page embeds, but say where that page is.
    sites, modes = given.get(b"sec-fetch-site", []), given.get(b"sec-fetch-mode", [])
    foreign = any(site not in (b"same-origin", b"none") for site in sites)
    return not foreign or (scope["type"] == "http" and scope["method"] == "GET" and modes == [b"navigate"])
