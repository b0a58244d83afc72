"""Names of answer fields that a box may say, and that it may not, for the tests that hold the list at each height."""

from typing import Final

PASSES: Final = (
    b"Content-Type Content-Encoding Content-Language Content-Disposition Content-Range Content-Location Age Date ETag"
    b" Expires Last-Modified Accept-Ranges Accept-Patch Accept-Post Allow DAV Lock-Token Location Link Refresh"
    b" Retry-After Server Server-Timing Upload-Offset Upload-Length Tus-Resumable Tus-Version Range"
    b" Inference-Header-Content-Length NV-Status Grpc-Status X-Anything X-RateLimit-Limit X-Frame X-Powered-By"
    b" X_b".split()
)
DROPPED: Final = (
    b"Set-Cookie Set-Cookie2 WWW-Authenticate Proxy-Authenticate Authentication-Info Clear-Site-Data NEL Report-To"
    b" Strict-Transport-Security Service-Worker-Allowed Accept-CH Accept-CH-Lifetime Critical-CH Reporting-Endpoints"
    b" Access-Control-Allow-Origin Access-Control-Allow-Credentials Access-Control-Anything Timing-Allow-Origin"
    b" Cross-Origin-Opener-Policy Cross-Origin-Resource-Policy Cross-Origin-Embedder-Policy Origin-Agent-Cluster"
    b" Content-Security-Policy Content-Security-Policy-Report-Only Permissions-Policy Referrer-Policy Origin-Trial"
    b" Alt-Svc Public-Key-Pins Expect-CT SourceMap Speculation-Rules Keep-Alive Trailer TE HTTP2-Settings"
    b" CDN-Cache-Control Surrogate-Control Cloudflare-CDN-Cache-Control RateLimit RateLimit-Policy RateLimit-Limit"
    b" X-VisionA-Device-Id X-Request-ID X-Content-Type-Options X-Frame-Options X-Permitted-Cross-Domain-Policies"
    b" X-Accel-Redirect X-Accel-Expires X-Sendfile X-SendFile2 X-LIGHTTPD-send-file X-Reproxy-URL X-LiteSpeed-Location"
    b" Sec-WebSocket-Accept Status Anything-Else X_Frame_Options Set_Cookie Content_Location Cache_Control".split()
)
