// The second factor of who is logged in: authenticator app, passkeys and recovery codes, added and removed.

import { call } from "./api.js";
import { at, element } from "./dom.js";
import { created, signed, supported } from "./passkeys.js";
import { drawQr } from "./qr.js";

const FACTOR = "/api/auth/second-factor";
const PASSKEYS = "/api/auth/passkeys";
let state = null;
let page = null; // { attempt, say } of the console

/** Shows how things stand now. */
export async function openSecurity() {
  const [found, passkeys] = await Promise.all([call("GET", FACTOR), call("GET", `${PASSKEYS}?limit=200`)]);
  state = found;
  at("factor-state").textContent = state.enabled
    ? `On: ${kinds().join(" and ")}. ${state.recovery_codes_left} recovery codes are left.`
    : "Off: your password alone opens your account.";
  at("passkeys").replaceChildren(...passkeys.map(entry));
  at("factor-proof").hidden = !state.enabled;
  at("factor-asks").textContent = state.passkeys
    ? "Code, or leave it empty to use a passkey"
    : "Code of your authenticator, or a recovery code";
  at("add-authenticator").hidden = state.authenticator;
  at("remove-authenticator").hidden = !state.authenticator;
  at("renew-codes").hidden = at("factor-off").hidden = !state.enabled;
  at("add-passkey").hidden = at("passkey-named").hidden = !supported();
  at("no-passkeys").hidden = supported();
  if (!state.enabled) showCodes([]); // those on the page are void
  at("factor").hidden = false; // not before: what a button asks for depends on the state
}

/** What was begun and not ended does not wait for whoever comes back. Recovery codes do, until they were kept. */
export function closeSecurity() {
  showOffer(null);
  at("factor-password").value = at("factor-code").value = "";
}

function kinds() {
  const passkeys = state.passkeys === 1 ? "a passkey" : `${state.passkeys} passkeys`;
  return [...(state.authenticator ? ["an authenticator app"] : []), ...(state.passkeys ? [passkeys] : [])];
}

function entry(passkey) {
  const used = passkey.last_used_at ? `used ${new Date(passkey.last_used_at).toLocaleDateString()}` : "not used yet";
  const item = element("li", {});
  const remove = element("button", { type: "button", className: "quiet", textContent: "Remove" });
  remove.setAttribute("aria-label", `Remove ${passkey.name}`);
  on(remove, async () => {
    await call("DELETE", `${PASSKEYS}/${passkey.id}`, await proof());
    return "The passkey is removed.";
  });
  item.append(
    element("span", { className: "name", textContent: passkey.name }),
    element("span", { className: "state", textContent: used }),
    remove,
  );
  return item;
}

/** The password, and where the factor is on what it asks for: the typed code, else a passkey. */
async function proof() {
  const given = { password: at("factor-password").value };
  const code = at("factor-code").value.trim();
  if (!state.enabled) return given;
  if (code || !state.passkeys || !supported()) return { ...given, code };
  const { public_key: options } = await call("POST", `${FACTOR}/passkey`);
  return { ...given, passkey: await signed(options) };
}

/** New codes, if there are any: those that a second passkey brings none beside are still to be kept. */
function showNewCodes(answer) {
  if (answer.recovery_codes.length) showCodes(answer.recovery_codes);
}

function showCodes(codes) {
  at("codes-list").textContent = codes.join("\n");
  at("codes").hidden = codes.length === 0;
}

function showOffer(offer) {
  at("offer").hidden = !offer;
  at("offer-secret").textContent = offer?.secret ?? "";
  at("offer-code").value = "";
  if (offer) drawQr(at("offer-qr"), offer.uri);
  else at("offer-qr").width = 0; // the picture is gone with it
}

/** `act` answers what to tell. What was typed is forgotten once it was good. */
function on(button, act) {
  button.addEventListener("click", () => page.attempt(button, () => done(act)));
}

async function done(act) {
  const said = await act();
  at("factor-password").value = at("factor-code").value = "";
  await openSecurity();
  page.say(said, true);
}

export function startSecurity(given) {
  page = given;
  at("factor").addEventListener("submit", (event) => event.preventDefault());
  on(at("add-authenticator"), async () => {
    showOffer(await call("POST", FACTOR, await proof()));
    return "Scan the code with your app.";
  });
  at("offer").addEventListener("submit", (event) => {
    event.preventDefault();
    page.attempt(event.submitter, () => done(async () => {
      showNewCodes(await call("POST", `${FACTOR}/confirm`, { code: at("offer-code").value }));
      showOffer(null);
      return "The authenticator app is on.";
    }));
  });
  on(at("add-passkey"), async () => {
    const { public_key: options } = await call("POST", `${PASSKEYS}/options`, await proof());
    const name = at("passkey-name").value.trim() || "Passkey";
    showNewCodes(await call("POST", PASSKEYS, { name, credential: await created(options) }));
    at("passkey-name").value = "";
    return "The passkey is on.";
  });
  on(at("renew-codes"), async () => {
    showNewCodes(await call("POST", `${FACTOR}/recovery-codes`, await proof()));
    return "The recovery codes from before are void.";
  });
  on(at("remove-authenticator"), async () => {
    await call("DELETE", `${FACTOR}/authenticator`, await proof());
    return "The authenticator app is removed.";
  });
  on(at("factor-off"), async () => {
    await call("DELETE", FACTOR, await proof());
    return "Your second factor is off.";
  });
  at("codes-kept").addEventListener("click", () => showCodes([]));
}
