// The console's behaviour: which part is shown, and what each button asks of the public API.

import { ApiError, call, frames, request, socket, token } from "./api.js";
import { at, element } from "./dom.js";
import { closeSecurity, openSecurity, startSecurity } from "./factors.js";
import { forgot, opened, reset, verify } from "./links.js";
import { begin as beginOidc, ended as endedOidc, finish as finishOidc } from "./oidc.js";
import { signed, supported } from "./passkeys.js";
import { drawQr } from "./qr.js";

const POLL_MS = 3000;
const NOTICE = "visiona.notice";
const SECURITY = "#security";
const ENDED = ["UNAUTHENTICATED", "TOKEN_EXPIRED", "TOKEN_REVOKED"];
let devices = [];
let selected = null;
let player = null;
let timer = null;
let echoing = null;
let left = false; // nothing of the page is there any more

// --- what goes wrong, and what went well, is said in one place ---
function say(text, good = false) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
  at("notice").classList.toggle("good", good);
}

async function attempt(button, act) {
  if (button) {
    button.disabled = true;
    say(""); // a new act of the visitor; the polling in the background takes no message away
  }
  try {
    await act();
  } catch (error) {
    if (left || error.name === "AbortError") return;
    if (error instanceof ApiError && ENDED.includes(error.code) && token.get()) {
      leave("Your session has ended. Please log in again.");
    } else {
      say(error.requestId ? `${error.message} (${error.code}, ${error.requestId})` : error.message);
    }
  } finally {
    if (button) button.disabled = false;
  }
}

function show(signedIn) {
  at("account").hidden = !signedIn;
  at("signed-in").hidden = !signedIn || location.hash === SECURITY;
  at("security").hidden = !signedIn || location.hash !== SECURITY;
  at("signed-out").hidden = signedIn;
  clearTimeout(timer);
  if (!signedIn) {
    stop();
    hangUp();
    token.clear();
    selected = null;
  }
}

/** Ends what this user sees. The page is emptied and loaded afresh: nothing of it waits for whoever comes next. */
function leave(notice = "") {
  show(false);
  left = true;
  document.body.replaceChildren();
  if (notice) sessionStorage.setItem(NOTICE, notice);
  location.replace(location.pathname);
}

async function enter() {
  const user = await call("GET", "/api/auth/me");
  at("who").textContent = user.email;
  show(true);
  schedule(); // what fails below is asked again
  if (location.hash === SECURITY) await openSecurity();
  else closeSecurity();
  await refresh();
}

function schedule() {
  clearTimeout(timer); // one at a time, whoever asks for it
  timer = setTimeout(async () => {
    await attempt(null, refresh);
    if (token.get()) schedule();
  }, POLL_MS);
}

// --- boxes ---
async function refresh() {
  devices = await call("GET", "/api/devices?limit=200");
  const online = devices.filter((device) => device.link_status === "online");
  at("online-count").textContent = `${online.length} of ${devices.length} online`;
  at("no-devices").hidden = devices.length > 0;
  at("devices").replaceChildren(...devices.map(entry));
  if (!devices.some((device) => device.id === selected)) choose((online[0] ?? devices[0])?.id ?? null);
  else describe();
}

function entry(device) {
  const button = element("button", { type: "button" });
  button.setAttribute("aria-current", String(device.id === selected));
  button.append(
    element("span", { className: `dot ${device.link_status}` }),
    element("span", { className: "name", textContent: device.name }),
    element("span", { className: "state", textContent: device.link_status }),
  );
  button.addEventListener("click", () => choose(device.id));
  const item = element("li", {});
  item.append(button);
  return item;
}

function choose(id) {
  if (id !== selected) {
    stop();
    hangUp();
    at("picture").removeAttribute("src");
    at("inference-answer").hidden = true;
    at("inference-time").textContent = "";
    listAccelerators([]);
    selected = id;
    if (id) attempt(null, async () => listAccelerators(await call("GET", `/api/devices/${id}/accelerators`)));
  }
  at("devices").querySelectorAll("button").forEach((button, n) => {
    button.setAttribute("aria-current", String(devices[n]?.id === id));
  });
  describe();
}

function describe() {
  const device = devices.find((one) => one.id === selected);
  at("box").hidden = !device;
  at("no-box").hidden = Boolean(device);
  if (!device) return;
  const online = device.link_status === "online";
  at("box-name").textContent = device.name;
  at("box-status").textContent = device.link_status;
  at("box-status").className = `badge ${device.link_status}`;
  const seen = device.last_seen_at ? new Date(device.last_seen_at).toLocaleString() : "never";
  const facts = { Serial: device.serial || device.claimed_serial, Chip: device.chip, Firmware: device.firmware, Agent: device.agent_version, "Local address": device.local_address, "Last seen": seen };
  at("box-facts").replaceChildren(...Object.entries(facts).map(([name, value]) => {
    const fact = element("div", {});
    fact.append(element("dt", { textContent: name }), element("dd", { textContent: value || "–" }));
    return fact;
  }));
  at("box-warning").textContent = warningOf(device);
  at("box-warning").hidden = !at("box-warning").textContent;
  at("no-twin").hidden = !device.possible_twin || device.cloned;
  ["play", "snapshot", "scan", "infer", "echo"].forEach((id) => { at(id).disabled = !online; });
}

/** What is strange about a box, and what to do about it; empty: nothing. */
function warningOf(device) {
  if (device.cloned) return "Two agents take turns with this box's credential, as if its card had been copied. Pair one of them anew.";
  if (device.possible_twin) return "Another of your boxes says the same serial. If they are one box, unpair the one that is left over.";
  if (device.link_status === "online" && device.local_listening === false) {
    return `Its agent is online, but nothing answered at ${device.local_address} on the box when it connected. Start the program that is to be reached there, or give the agent another address (--local).`;
  }
  return "";
}

// --- camera ---
const box = (path) => `${path}?device_id=${encodeURIComponent(selected)}`;

function paint(blob) {
  const picture = at("picture");
  const old = picture.src;
  picture.src = URL.createObjectURL(blob);
  if (old.startsWith("blob:")) URL.revokeObjectURL(old);
}

function stop() {
  player?.abort();
  player = null;
  at("play").textContent = "Play";
  at("frames").textContent = "";
}

async function play() {
  if (player) {
    stop();
    return;
  }
  const mine = new AbortController();
  player = mine;
  at("play").textContent = "Stop";
  let count = 0;
  const since = performance.now();
  try {
    for await (const frame of frames(box("/api/cameras/0/stream"), mine.signal)) {
      if (player !== mine) return;
      paint(frame);
      count += 1;
      const rate = (count * 1000) / Math.max(1, performance.now() - since);
      at("frames").textContent = `${count} frames, ${rate.toFixed(1)} a second`;
    }
  } finally {
    if (player === mine) stop();
  }
}

// --- scan and inference ---
function listAccelerators(found) {
  at("accelerators").hidden = found.length === 0;
  at("no-accelerators").hidden = found.length > 0;
  at("accelerators").tBodies[0].replaceChildren(...found.map((one) => {
    const row = element("tr", {});
    row.append(...[one.serial, one.chip, one.firmware, one.status].map((text) => element("td", { textContent: text || "–" })));
    return row;
  }));
}

async function scan() {
  const answer = await (await request(box("/api/devices/scan"), { method: "POST" })).json();
  listAccelerators(answer.devices ?? []);
  if (!answer.devices?.length) at("no-accelerators").textContent = "The scan found no accelerator.";
}

async function infer() {
  const start = performance.now();
  const response = await request(box("/api/inference/run"), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ camera: 0 }),
  });
  const text = await response.text();
  at("inference-time").textContent = `${(performance.now() - start).toFixed(0)} ms`;
  at("inference-answer").textContent = text;
  at("inference-answer").hidden = false;
}

// --- echo ---
const MESSAGES = 20;

function hangUp() {
  echoing?.close();
  echoing = null;
  at("echo-answer").hidden = true;
  at("echo-time").textContent = "";
}

function roundTrip(opened, message) {
  return new Promise((resolve, reject) => {
    const start = performance.now();
    const lost = () => reject(new Error("The WebSocket was closed."));
    opened.addEventListener("close", lost, { once: true });
    opened.addEventListener("message", (event) => {
      opened.removeEventListener("close", lost);
      if (event.data === message) resolve(performance.now() - start);
      else reject(new Error("Another message came back."));
    }, { once: true });
    opened.send(message);
  });
}

async function echo() {
  hangUp();
  const opened = await socket("/ws/inference?mode=echo", selected);
  echoing = opened;
  try {
    const times = [];
    for (let n = 1; n <= MESSAGES; n += 1) times.push(await roundTrip(opened, `hello ${n}`));
    if (echoing !== opened) return;
    times.sort((one, two) => one - two);
    at("echo-time").textContent = `${times[MESSAGES / 2].toFixed(1)} ms a round trip`;
    at("echo-answer").textContent = `${MESSAGES} messages there and back: ${times[0].toFixed(1)} to ${times[MESSAGES - 1].toFixed(1)} ms`;
    at("echo-answer").hidden = false;
  } finally {
    opened.close();
  }
}

// --- pairing ---
async function pair() {
  const made = await call("POST", "/api/pairing/token", { name: at("pair-name").value.trim() || "New box" });
  at("pair-command").textContent = made.command;
  at("pair-expires").textContent = new Date(made.expires_at).toLocaleTimeString();
  at("paired").hidden = false;
  drawQr(at("pair-qr"), made.command);
}

const named = () => ({ email: at("email").value, password: at("password").value });

/** What is shown besides: a code once it was asked for, or what a passkey signed. */
async function logIn(proof = at("second-step").hidden ? {} : { code: at("code").value }) {
  let answer;
  try {
    answer = await call("POST", "/api/auth/login", { ...named(), ...proof });
  } catch (error) {
    if (error.code !== "SECOND_FACTOR_REQUIRED") throw error;
    at("second-step").hidden = false;
    at("passkey").hidden = !(error.methods.includes("passkey") && supported());
    (at("passkey").hidden ? at("code") : at("passkey")).focus();
    say("One step more: your second factor.", true);
    return;
  }
  token.set(answer.access_token);
  at("password").value = at("code").value = "";
  at("second-step").hidden = at("passkey").hidden = true;
  await enter();
}

at("passkey").addEventListener("click", (event) => attempt(event.currentTarget, async () => {
  const { public_key: options } = await call("POST", "/api/auth/login/passkey", named());
  await logIn({ passkey: await signed(options) });
}));
at("login").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(event.submitter, () => logIn());
});
at("register").addEventListener("click", (event) => attempt(event.currentTarget, async () => {
  await call("POST", "/api/auth/register", { email: at("email").value, password: at("password").value });
  await logIn();
}));
at("logout").addEventListener("click", (event) => attempt(event.currentTarget, async () => {
  await call("POST", "/api/auth/logout");
  leave();
}));
at("pair").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(event.submitter, pair);
});
at("no-twin").addEventListener("click", (event) => attempt(event.currentTarget, async () => {
  await call("PATCH", `/api/devices/${selected}`, { possible_twin: false });
  await refresh();
}));
at("copy").addEventListener("click", (event) => attempt(event.currentTarget, () => navigator.clipboard.writeText(at("pair-command").textContent)));
at("play").addEventListener("click", () => {
  say("");
  attempt(null, play);
});
at("snapshot").addEventListener("click", (event) => attempt(event.currentTarget, async () => {
  stop();
  paint(await (await request(box("/api/cameras/0/snapshot"))).blob());
}));
at("scan").addEventListener("click", (event) => attempt(event.currentTarget, scan));
at("echo").addEventListener("click", (event) => attempt(event.currentTarget, echo));
at("infer").addEventListener("click", (event) => attempt(event.currentTarget, infer));

at("forgot").addEventListener("click", (event) => attempt(event.currentTarget, async () => say(await forgot(at("email").value), true)));

// --- the second factor of who is logged in ---
startSecurity({ attempt, say });
addEventListener("hashchange", () => {
  if (token.get()) attempt(null, enter);
});
addEventListener("pageshow", (event) => {
  if (event.persisted && left) location.reload(); // the browser's way back led to the emptied page
});

// --- a login at the identity provider ---
at("provider")?.addEventListener("click", beginOidc);
const atProvider = endedOidc();
if (atProvider) {
  token.clear();
  attempt(null, async () => {
    token.set(await finishOidc(atProvider));
    await enter();
  });
}

// --- the links of mails ---
const link = opened();
if (link?.kind === "reset") {
  show(false);
  at("login").hidden = true;
  at("new-password").hidden = false;
  at("new-password").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(event.submitter, async () => {
      say(await reset(link.token, at("new-secret").value), true);
      at("new-secret").value = "";
      at("new-password").hidden = true;
      at("login").hidden = false;
    });
  });
} else {
  if (token.get()) attempt(null, enter);
  else show(false);
  if (sessionStorage.getItem(NOTICE)) say(sessionStorage.getItem(NOTICE));
  sessionStorage.removeItem(NOTICE);
  if (link?.kind === "verify") attempt(null, async () => say(await verify(link.token), true));
}
