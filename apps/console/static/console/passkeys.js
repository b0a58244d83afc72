// Passkeys (WebAuthn): the options come from the server, what goes back to it is JSON. No bytes are handled here.

const SAID = {
  NotAllowedError: "The browser used no passkey. Try again.",
  InvalidStateError: "This passkey is registered already.",
};

export const supported = () => isSecureContext && "parseCreationOptionsFromJSON" in (globalThis.PublicKeyCredential ?? {});

/** A new passkey. Throws an Error that tells a person why there is none. */
export async function created(options) {
  const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(options);
  return (await asked(navigator.credentials.create({ publicKey }))).toJSON();
}

/** What one of the account's passkeys signs. Throws an Error that tells a person why there is none. */
export async function signed(options) {
  const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(options);
  return (await asked(navigator.credentials.get({ publicKey }))).toJSON();
}

async function asked(credential) {
  try {
    return await credential;
  } catch (error) {
    throw SAID[error.name] ? new Error(SAID[error.name], { cause: error }) : error;
  }
}
