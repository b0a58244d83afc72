// The public API as the console calls it: bearer token, envelope, errors that carry their code.

const KEY = "visiona.access_token";

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  clear: () => sessionStorage.removeItem(KEY),
};

export class ApiError extends Error {
  constructor(status, error) {
    const { methods = [], ...details } = error?.details ?? {};
    const fields = Object.values(details).flat().filter((text) => typeof text === "string");
    super([error?.message ?? `The answer was ${status}.`, ...fields].join(" "));
    this.status = status;
    this.methods = methods; // of a second factor: "passkey", "authenticator", "recovery_code"
    this.code = error?.code ?? "";
    this.requestId = error?.request_id ?? "";
  }
}

/** A fetch with the credential; raises ApiError for every answer that is no success. */
export async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token.get()) headers.set("Authorization", `Bearer ${token.get()}`);
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  let body = null;
  try {
    body = await response.json();
  } catch {
    // not our envelope: the status alone has to do
  }
  throw new ApiError(response.status, body?.error);
}

/** Calls a JSON route and returns the envelope's data. */
export async function call(method, path, body) {
  const options = { method };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "Content-Type": "application/json" };
  }
  return (await (await request(path, options)).json()).data;
}

/** An open WebSocket to a box: a ticket stands for the login, since a browser can send no header with it. */
export async function socket(path, deviceId) {
  const { ticket } = await call("POST", "/api/ws/ticket", { device_id: deviceId, path_prefix: path.split("?")[0] });
  const url = new URL(path, window.location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.searchParams.set("device_id", deviceId);
  url.searchParams.set("ticket", ticket);
  const opened = new WebSocket(url);
  opened.binaryType = "arraybuffer";
  await new Promise((resolve, reject) => {
    opened.addEventListener("open", resolve, { once: true });
    opened.addEventListener("close", () => reject(new Error("The WebSocket could not be opened.")), { once: true });
  });
  return opened;
}

/** Each JPEG of a multipart/x-mixed-replace answer as a Blob, until the stream ends or `signal` aborts. */
export async function* frames(path, signal) {
  const response = await request(path, { signal });
  const reader = response.body.getReader();
  let held = new Uint8Array(0);
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const joined = new Uint8Array(held.length + value.length);
    joined.set(held);
    joined.set(value, held.length);
    held = joined;
    for (;;) {
      const part = nextPart(held);
      if (!part) break;
      held = held.subarray(part.end);
      yield new Blob([part.body], { type: "image/jpeg" });
    }
    if (held.length > 8 << 20) throw new Error("The camera sent a part of more than 8 MB.");
  }
}

function nextPart(bytes) {
  const end = indexOfBlankLine(bytes);
  if (end < 0) return null;
  const head = new TextDecoder("latin1").decode(bytes.subarray(0, end));
  const length = /^content-length:\s*(\d+)/im.exec(head);
  if (!length) throw new Error("The camera's stream names no part lengths.");
  const stop = end + 4 + Number(length[1]);
  return bytes.length < stop ? null : { body: bytes.slice(end + 4, stop), end: stop };
}

function indexOfBlankLine(bytes) {
  for (let at = 0; at + 3 < bytes.length; at += 1) {
    if (bytes[at] === 13 && bytes[at + 1] === 10 && bytes[at + 2] === 13 && bytes[at + 3] === 10) return at;
  }
  return -1;
}
