"""A scripted box that keeps models as docs/box-api.md says, and can be made to stop, break off, lie and refuse."""

from __future__ import annotations

import hashlib
import json
import socket
import threading

from tests.apps.proxy.kit import Box, Peer


class ModelBox(Box):
    """Keeps one model. Once it has `cut_at` bytes the connection breaks; `status` is its answer to all, if set."""

    def __init__(self, size: int, port: int = 0) -> None:
        self.size = size
        self.kept = b""
        self.cut_at: int | None = None
        self.status: str | None = None
        self.lie = False
        self.ranges: list[str] = []
        self.between = threading.Event()
        self._hold: tuple[int, threading.Event] | None = None
        super().__init__(port)

    def hold_at(self, count: int) -> None:
        """Read no more once there are more bytes than that, until `go_on`; `between` tells that it is so."""
        self.between.clear()
        self._hold = (count, threading.Event())

    def go_on(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            hold[1].set()

    def close(self) -> None:
        self.go_on()
        super().close()

    def serve(self, sock: socket.socket) -> None:
        peer = Peer(sock)
        while peer.read_head():
            self.heads.append(peer.head)
            if not self._one(peer):
                return

    def _facts(self) -> bytes:
        digest = hashlib.sha256(b"other" if self.lie else self.kept).hexdigest()
        return json.dumps({"sha256": digest, "status": "ready"}).encode()

    def _one(self, peer: Peer) -> bool:
        """Whether the connection stays."""
        if self.status is not None:
            for _ in peer.body():
                pass
            peer.answer(b"", self.status)
        elif peer.method == "HEAD":
            fields = [f"Upload-Offset: {len(self.kept)}", f"Upload-Length: {self.size}"]
            peer.answer(b"", *(["200 OK", *fields] if self.kept else ["404 Not Found", "Upload-Offset: 0"]))
        elif peer.method == "GET":
            peer.answer(self._facts())
        elif peer.method == "DELETE":
            self.kept = b""
            peer.answer(b"{}")
        else:
            return self._put(peer)
        return True

    def _put(self, peer: Peer) -> bool:
        (told,) = peer.fields("content-range")
        self.ranges.append(told)
        if told.startswith("bytes 0-"):
            self.kept = b""
        got = bytearray(self.kept)
        try:
            for piece in peer.body():
                got += piece
                hold = self._hold
                if hold is not None and len(got) > hold[0]:
                    self.kept = bytes(got)
                    self.between.set()
                    hold[1].wait(60)
                if self.cut_at is not None and len(got) >= self.cut_at:
                    del got[self.cut_at :]
                    self.cut_at = None
                    return False
        finally:
            self.kept = bytes(got)
        whole = len(got) == self.size
        peer.answer(
            self._facts() if whole else b"{}", "201 Created" if whole else "200 OK", f"Upload-Offset: {len(got)}"
        )
        return True
