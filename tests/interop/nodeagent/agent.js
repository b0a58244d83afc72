// An agent on the packages yamux-js and ws, for the tests of the daemon's end: it serves HTTP over its streams.
// yamux-js acknowledges a stream with its own first frame on it, so never before it has read a request.
//
// node agent.js URL TOKEN. Writes a JSON line for each event. Routes: see `answer`.
"use strict";

const WebSocket = require("ws");
const { Server } = require("yamux-js");

const [url, token] = process.argv.slice(2);
const say = (event, more) => console.log(JSON.stringify({ event, ...more }));

// `/sum`: the request body's length and the sum of its bytes. `/bytes/N`: so many. `/slow/MS`: after so long.
async function answer(path, body) {
  const [, route, number] = path.split("/");
  if (route === "sum") return Buffer.from(`${body.length} ${body.reduce((sum, byte) => sum + byte, 0)}`);
  if (route === "bytes") return Buffer.from(Array.from({ length: Number(number) }, (_, at) => at % 251));
  if (route === "slow") {
    await new Promise((done) => setTimeout(done, Number(number)));
    return Buffer.from("at last");
  }
  return Buffer.from("ok");
}

// Requests one after the other, until the stream ends.
function serve(stream) {
  let pieces = [];
  let busy = false;

  async function next() {
    if (busy) return;
    const got = Buffer.concat(pieces);
    pieces = [got];
    const end = got.indexOf("\r\n\r\n");
    if (end < 0) return;
    const head = got.subarray(0, end).toString("latin1");
    const length = Number((/^content-length: *(\d+)/im.exec(head) || [0, 0])[1]);
    if (got.length < end + 4 + length) return;
    pieces = [got.subarray(end + 4 + length)];
    busy = true;
    const body = await answer(head.split(" ")[1], got.subarray(end + 4, end + 4 + length));
    stream.write(`HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n`);
    stream.write(body);
    busy = false;
    next();
  }

  stream.on("data", (data) => {
    pieces.push(data);
    next();
  });
  stream.on("error", () => {});
}

const socket = new WebSocket(url, { headers: { Authorization: `Bearer ${token}` }, perMessageDeflate: false });
const session = new Server(serve, { enableKeepAlive: false, logger: () => {} });
session.on("data", (data) => socket.send(data));
session.on("error", (error) => say("error", { text: String(error) }));
socket.on("open", () => say("connected"));
socket.on("message", (data) => session.write(data));
socket.on("close", (code) => {
  say("closed", { code });
  process.exit(0);
});
socket.on("error", (error) => say("error", { text: String(error) }));
