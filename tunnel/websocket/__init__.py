"""A tunnel's byte transport: WebSocket codec, transports and handshakes."""
