"""A converter as docs/converter.md describes one, small enough to be read: it turns 32-bit tensors into 8-bit ones.

    python reference.py --port 9000 --secret s3cret

Standard library only, and nothing of ours: whoever writes a converter may begin with it. The files that it knows:

    VTF1 (in)   b"VTF1", u32 tensors; each: u16 length and UTF-8 name, u8 dimensions, u32 each, float32 values
    VTQ1 (out)  b"VTQ1", u16 length and chip, u32 tensors; each: name and dimensions alike, float32 scale, int8 values

All numbers are little-endian; a value is its int8 times the scale of its tensor.
"""

import argparse
import array
import hashlib
import hmac
import json
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LEEWAY = 300


# --- files ------------------------------------------------------------------------------------------------------------
def quantize(data: bytes, chip: str) -> bytes:
    """The VTQ1 file of a VTF1 file. Raises ValueError for what is none."""
    if data[:4] != b"VTF1":
        raise ValueError("not a VTF1 file")
    named = chip.encode()
    try:
        (count,), at = struct.unpack_from("<I", data, 4), 8
        out = [b"VTQ1", struct.pack("<H", len(named)), named, struct.pack("<I", count)]
        for _ in range(count):
            head, shape, at = _head(data, at)
            values = array.array("f")
            values.frombytes(_cut(data, at, 4 * shape))
            if sys.byteorder == "big":
                values.byteswap()
            at += 4 * shape
            scale = max(map(abs, values), default=0.0) / 127 or 1.0
            small = array.array("b", (round(value / scale) for value in values))
            out += [head, struct.pack("<f", scale), small.tobytes()]
    except struct.error:
        raise ValueError("the file is cut short") from None
    if at != len(data):
        raise ValueError("something follows the last tensor")
    return b"".join(out)


def _head(data: bytes, at: int) -> tuple[bytes, int, int]:
    """A tensor's name and dimensions as they stand there, how many values it has, and where they begin."""
    begin = at
    (length,) = struct.unpack_from("<H", data, at)
    at += 2 + length
    (dimensions,) = struct.unpack_from("<B", data, at)
    sizes = struct.unpack_from(f"<{dimensions}I", data, at + 1)
    at += 1 + 4 * dimensions
    values = 1
    for size in sizes:
        values *= size
    return _cut(data, begin, at - begin), values, at


def _cut(data: bytes, at: int, length: int) -> bytes:
    if at + length > len(data):
        raise ValueError("the file is cut short")
    return data[at : at + length]


# --- the contract -----------------------------------------------------------------------------------------------------
def signature(secret: str, body: bytes, at: int) -> str:
    """`X-VisionA-Signature` of a body sent at a Unix time."""
    mac = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={mac.hexdigest()}"


def is_signed(header: str, secret: str, body: bytes) -> bool:
    """Whether one of the header's signatures is ours, and young."""
    at, *given = header.split(",")
    if not at.startswith("t=") or not at[2:].isdigit() or abs(time.time() - int(at[2:])) > LEEWAY:
        return False
    expected = signature(secret, body, int(at[2:])).partition(",")[2]
    return any(hmac.compare_digest(expected, each) for each in given)


class Converter:
    """Takes orders, each once by its id, and works on each in a thread of its own."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.known: set[str] = set()

    def take(self, order: dict) -> None:
        if order["id"] not in self.known:
            self.known.add(order["id"])
            threading.Thread(target=self.work, args=(order,), daemon=True).start()

    def work(self, order: dict) -> None:
        try:
            self.report(order, {"status": "running", "bytes_done": 0})
            source = order["source"]
            with urllib.request.urlopen(source["url"], timeout=60) as answer:
                data = answer.read()
            if hashlib.sha256(data).hexdigest() != source["sha256"]:
                raise ValueError("the file is not the one that was ordered")
            self.report(order, {"status": "running", "bytes_done": len(data)})
            result = quantize(data, order["chip"])
            made = {
                "filename": source["filename"].rpartition(".")[0] + ".vtq",
                "format": "vtq",
                "size": len(result),
                "sha256": hashlib.sha256(result).hexdigest(),
            }
            upload = self.report(order, {"status": "converted", **made})["upload"]
            self.report(order, {"status": "done", **self.send(upload, result)})
        except ValueError as error:
            self.report(order, {"status": "failed", "error": str(error)})

    def send(self, upload: dict, result: bytes) -> dict:
        """PUT the result, in parts if it is told so; what `done` has to say of it."""
        if "url" in upload:
            self.put(upload["url"], result, upload["headers"])
            return {}
        size, parts = upload["part_size"], []
        for part in upload["parts"]:
            begin = (part["number"] - 1) * size
            parts.append({"number": part["number"], "etag": self.put(part["url"], result[begin : begin + size], {})})
        return {"parts": parts}

    def put(self, url: str, data: bytes, headers: dict) -> str:
        asked = urllib.request.Request(url, data, headers, method="PUT")
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.headers.get("ETag", "")

    def report(self, order: dict, report: dict) -> dict:
        """Tell, again and again while nobody listens; the answer's `data`. Each try is signed anew."""
        body = json.dumps({"id": order["id"], **report}).encode()
        for pause in (0.5, 1, 2, 4, 8, 16, 0):
            headers = {
                "Content-Type": "application/json",
                "X-VisionA-Signature": signature(self.secret, body, int(time.time())),
            }
            try:
                asked = urllib.request.Request(order["callback_url"], body, headers, method="POST")
                with urllib.request.urlopen(asked, timeout=60) as answer:
                    return json.load(answer)["data"]
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")
                if error.code == 409 and "status" in json.loads(said)["error"].get("details", {}):  # it has ended
                    print("dropped", order["id"], flush=True)
                    raise SystemExit from None  # ends this thread alone
                if error.code < 500 and error.code != 403:  # 403: the same second, the same signature
                    raise RuntimeError(f"{error.code}: {said}") from None
            except OSError as error:
                said = str(error)
            print("report not taken:", said, flush=True)
            time.sleep(pause or 1)
        raise RuntimeError("nobody takes the report")


def serve(port: int, secret: str) -> None:
    converter = Converter(secret)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            good = is_signed(self.headers.get("X-VisionA-Signature", ""), secret, body)
            if good:
                converter.take(json.loads(body))
            self.send_response(202 if good else 403)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    print("listening", server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--secret", required=True)
    given = parser.parse_args()
    serve(given.port, given.secret)
