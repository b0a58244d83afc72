"""Accepting connections and the HTTP/1.1 messages that the daemon speaks itself."""
