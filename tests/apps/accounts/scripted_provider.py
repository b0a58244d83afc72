"""An OpenID provider whose every word the test decides: its keys, its claims, its errors, and how slowly it answers.

Real ones (`provider_kit`, `tests/interop`) behave; this one does what none of them would, or not at the moment it is
wanted. It listens on a socket, so that our side is what it is in production.
"""

import json
import secrets
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jws
from joserfc.jwk import RSAKey
from joserfc.jws import JWSRegistry

CLIENT_ID = "scripted"
PAGE = "http://spa.example/done"


class _Lax(JWSRegistry):
    max_header_length = 8192

    def check_header(self, header: dict[str, Any]) -> None:
        """Makes what it is told."""


_LAX = _Lax(algorithms=["RS256"], strict_check_header=False)


def new_key(kid: str = "one") -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid})


class ScriptedProvider:
    """Change its attributes while it runs; `asked` counts what was fetched by path."""

    def __init__(self) -> None:
        self.key = new_key()
        self.published: list[Any] | None = None
        self.token_answer: tuple[int, dict[str, Any]] | None = None
        self._last_sub = ""
        self.drip: str = ""  # a path whose head drips
        self.asked: list[str] = []
        self.over = threading.Event()
        self._logins: dict[str, dict[str, Any]] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                provider.asked.append(urlsplit(self.path).path)
                provider.serve(self)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.issuer = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join(30)
        self._server.server_close()

    # --- what it answers ---
    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0)).decode()
        if path == self.drip:
            with suppress(OSError):  # the other side leaves
                handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not self.over.wait(0.05):
                    handler.wfile.write(b"X-Slow: 1\r\n")
            handler.close_connection = True
            return
        status, told = self._answer(path, body)
        text = json.dumps(told).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    def _answer(self, path: str, body: str) -> tuple[int, dict[str, Any]]:
        if path == "/.well-known/openid-configuration":
            return 200, {
                "issuer": self.issuer,
                "authorization_endpoint": self.issuer + "/authorize?tenant=1",
                "token_endpoint": self.issuer + "/token",
                "userinfo_endpoint": self.issuer + "/me",
                "jwks_uri": self.issuer + "/jwks",
            }
        if path == "/jwks":
            return 200, {"keys": self.published or [self.key.as_dict(private=False)]}
        if path == "/me":
            return 200, {"sub": self._last_sub}
        if path == "/token":
            if self.token_answer is not None:
                return self.token_answer
            claims = self._logins.pop(parse_qs(body)["code"][0])
            self._last_sub = claims.get("sub", "pat")
            return 200, {"access_token": "opaque", "token_type": "Bearer", "id_token": self.token(**claims)}
        return 404, {}

    # --- what people get of it ---
    def token(self, sub: str = "pat", head: dict[str, Any] | None = None, **claims: Any) -> str:
        """A JWT; None takes a claim out. A key in `key` signs instead of the present one."""
        key = claims.pop("key", self.key)
        now = int(time.time())
        told = {"iss": self.issuer, "sub": sub, "aud": CLIENT_ID, "iat": now, "exp": now + 600, **claims}
        told = {name: value for name, value in told.items() if value is not None}
        said = json.dumps(told).encode()  # in ASCII: what JSON can name and UTF-8 cannot
        return jws.serialize_compact({"alg": "RS256", "kid": key.kid, **(head or {})}, said, key, registry=_LAX)

    def back(self, url: str, **claims: Any) -> str:
        """Where the browser is sent back to, path and query, once somebody logged in at `url`; the person's claims."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert asked["tenant"] == "1"
        code = secrets.token_urlsafe(16)
        self._logins[code] = {"nonce": asked["nonce"], **claims}
        target = urlsplit(asked["redirect_uri"]).path
        return f"{target}?{urlencode({'state': asked['state'], 'code': code})}"
