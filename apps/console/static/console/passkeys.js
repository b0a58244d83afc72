// Passkeys (WebAuthn): the options come from the server, what goes back to it is JSON. No bytes are handled here.

export const supported = () => Boolean(globalThis.PublicKeyCredential?.parseCreationOptionsFromJSON);

/** A new passkey. Throws a DOMException where the person refuses, or the authenticator is known already. */
export async function created(options) {
  const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(options);
  return (await navigator.credentials.create({ publicKey })).toJSON();
}

/** What one of the account's passkeys signs. Throws a DOMException where the person refuses, or none is here. */
export async function signed(options) {
  const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(options);
  return (await navigator.credentials.get({ publicKey })).toJSON();
}
