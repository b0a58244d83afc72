// A tour of the API for front-end developers: register, pair a box, upload a model with progress, deploy it, run an
// inference on a cluster, read the audit trail. Paste it into the console of a page of an allowed origin (the product's
// own page at / will do), then:
//
//   await tour("http://localhost:3721", { say: console.log })
//
// It prints the command that starts a box and waits until somebody runs it.
async function tour(api, { say = console.log, size = 100 * 2 ** 20, email = `tour-${Date.now()}@example.com` } = {}) {
  let token = "";

  // Every answer is the envelope: {success, data, meta?} or {success, error: {code, message, request_id, details?}}.
  async function call(method, path, body) {
    const headers = { "Content-Type": "application/json" };
    if (token) headers.Authorization = `Bearer ${token}`;
    const answer = await fetch(api + path, { method, headers, body: body && JSON.stringify(body) });
    const { success, data, error } = await answer.json();
    if (!success) throw new Error(`${method} ${path}: ${answer.status} ${error.code}: ${error.message} ${JSON.stringify(error.details ?? "")} (${error.request_id})`);
    return data;
  }

  async function until(look, every = 500) {
    for (;;) {
      const found = await look();
      if (found) return found;
      await new Promise((wake) => setTimeout(wake, every));
    }
  }

  // fetch tells nothing of an upload's progress; XMLHttpRequest does.
  function upload({ method, url, headers }, blob, progress) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open(method, url);
      for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
      request.upload.onprogress = (event) => progress(event.loaded, event.total);
      request.onload = () => (request.status < 300 ? resolve() : reject(new Error(`upload: ${request.status} ${request.responseText}`)));
      request.onerror = () => reject(new Error("upload: the connection broke"));
      request.send(blob);
    });
  }

  say("1. An account, and a login");
  const password = crypto.randomUUID();
  await call("POST", "/api/auth/register", { email, password, name: "Tour" });
  const login = await call("POST", "/api/auth/login", { email, password });
  token = login.access_token;
  say(`   logged in as ${login.user.email} until ${login.expires_at}`);

  say("2. A box: paste this line there (`visiona-agent demo` in place of `run` simulates one)");
  const pairing = await call("POST", "/api/pairing/token", { name: "tour box" });
  say(pairing.command);
  const device = await until(async () => (await call("GET", "/api/pairing/status")).devices.find((one) => one.connected));
  say(`   ${device.name} is online`);
  const found = await call("GET", "/api/devices/scan?device_id=all");
  say(`   its accelerators: ${found.results[0].accelerators.map((one) => one.chip).join(", ")}`);

  say("3. A model");
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at += 65536) crypto.getRandomValues(bytes.subarray(at, Math.min(at + 65536, size)));
  const { model, upload: place } = await call("POST", "/api/models/init", {
    name: "people", version: "1.0.0", filename: "people.nef", size, chips: ["KL720"],
  });
  let shown = -1;
  await upload(place, new Blob([bytes]), (sent, total) => {
    const percent = Math.floor((10 * sent) / total) * 10;
    if (percent > shown) say(`   uploaded ${(shown = percent)} %`);
  });
  const ready = await call("POST", `/api/models/${model.id}/finalize`);
  say(`   ${ready.name} ${ready.version} is ${ready.status}, sha256 ${ready.sha256}`);

  say("4. The model on the box");
  let deployment = await call("POST", `/api/models/${model.id}/deploy`, { device_id: device.device_id });
  deployment = await until(async () => {
    const now = await call("GET", `/api/deployments/${deployment.id}`);
    say(`   ${now.status}, ${now.bytes_done} of ${now.bytes_total} bytes`);
    return ["done", "failed", "cancelled"].includes(now.status) && now;
  });
  if (deployment.status !== "done") throw new Error(`deployment: ${deployment.status} ${deployment.error}`);

  say("5. An inference on a cluster: the least busy member answers");
  const cluster = await call("POST", "/api/clusters", { name: "tour" });
  await call("PUT", `/api/clusters/${cluster.id}/members/${device.device_id}`, { weight: 1 });
  // What a box answers is its own: no envelope.
  const answer = await fetch(`${api}/api/clusters/${cluster.id}/proxy/api/inference/run`, {
    method: "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify({ camera: 0 }),
  });
  const inference = await answer.json();
  say(`   ${inference.results.map((one) => `${one.label} ${one.confidence}`).join(", ")}`);

  say("6. What the audit says of it");
  const events = await call("GET", "/api/audit?limit=200");
  for (const event of events.toReversed()) say(`   ${event.at} ${event.action}`);
  return { device, model: ready, deployment, cluster, inference, events };
}
