"""A TCP relay before a real server, which can be frozen (bytes stay, nothing comes back) and stopped (refused)."""

import socket
import threading
from contextlib import suppress


class Relay:
    """Listens on 127.0.0.1:`port` and carries bytes to a server, until it is frozen or stopped."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._flowing = threading.Event()
        self._flowing.set()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._accept(self._listener)

    def freeze(self) -> None:
        """As SIGSTOP: connections are taken and kept, and nothing is ever answered."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def stop(self) -> None:
        """As a server that has ended: connections are cut, new ones refused."""
        _close(self._listener)
        for each in self._sockets:
            _close(each)
        self._sockets.clear()

    def start(self) -> None:
        """Back again, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._accept(self._listener)

    def _accept(self, listener: socket.socket) -> None:
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            self._sockets += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(data)
        _close(source)
        _close(sink)


def _close(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
