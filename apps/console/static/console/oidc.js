// A login at the identity provider ends here: `#code=…` is good once, `#error=…` tells what went wrong on the way.

import { call } from "./api.js";

const BEGUN = "visiona.oidc_begun";
const WORDS = {
  FORBIDDEN: "The login was refused at the identity provider.",
  OVERLOADED: "The identity provider cannot be reached right now. Try again shortly.",
  PROVIDER_ERROR: "The identity provider says that something is wrong. Tell your administrator.",
};

/** Remembers that this tab went there: a code that somebody else sends along in a link logs nobody in. */
export function begin() {
  sessionStorage.setItem(BEGUN, "1");
}

/** How such a login ended, if the page was opened by one; the address bar forgets the code at once. */
export function ended() {
  const told = new URLSearchParams(location.hash.slice(1));
  if (!told.get("code") && !told.get("error")) return null;
  history.replaceState(null, "", location.pathname);
  const ours = sessionStorage.getItem(BEGUN) !== null;
  sessionStorage.removeItem(BEGUN);
  return ours ? { code: told.get("code"), error: told.get("error"), reason: told.get("reason") } : null;
}

/** The token of the login, once more an ordinary one. */
export async function finish({ code, error, reason }) {
  if (error) throw new Error([WORDS[error] ?? "The login could not be finished. Try again.", reason && `(${reason})`].filter(Boolean).join(" "));
  return (await call("POST", "/api/auth/oidc/token", { code })).access_token;
}
