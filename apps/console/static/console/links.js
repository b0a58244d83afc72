// The links of mails lead here: `#verify=…` confirms an e-mail, `#reset=…` sets a new password.

import { call } from "./api.js";

const KINDS = ["verify", "reset"];

/** What the page was opened for, if by such a link; the address bar and the history forget the token at once. */
export function opened() {
  const [kind, token] = decoded(location.hash.slice(1)).split("=", 2);
  if (!KINDS.includes(kind) || !token) return null;
  history.replaceState(null, "", location.pathname);
  return { kind, token };
}

/** The text of a fragment; one that nobody has encoded (`#%`) is none of ours, and no reason for a blank page. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

/** Confirms the e-mail; what to tell the visitor. */
export async function verify(token) {
  const user = await call("POST", "/api/auth/email/verify", { token });
  return `${user.email} is confirmed.`;
}

/** Sets the new password; what to tell the visitor. */
export async function reset(token, password) {
  await call("POST", "/api/auth/password/reset/confirm", { token, password });
  return "Your new password is set. Log in with it.";
}

/** Has a link for a new password sent; what to tell the visitor. */
export async function forgot(email) {
  await call("POST", "/api/auth/password/reset", { email });
  return "If there is an account with this e-mail, a link is on its way to it.";
}
