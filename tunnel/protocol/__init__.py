"""The multiplexer's rules without I/O: yamux v0 as `docs/wire.md` tells it.

Knows nothing of Trio, sockets, WebSockets, clocks or logging: bytes and the time (float seconds of any monotonic
clock) come in as arguments, bytes and touched streams go out. `session.Session` is the way in.
"""
