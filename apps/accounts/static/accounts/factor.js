// Shows the text of an authenticator as a QR code; where it is too long for one, the secret below it has to do.
// Where the page asks for a passkey, the browser is asked before the form leaves, and its answer goes with it.
import { drawQr } from "../console/qr.js";
import { created, signed } from "../console/passkeys.js";

for (const canvas of document.querySelectorAll("canvas[data-qr]")) {
  try {
    drawQr(canvas, canvas.dataset.qr);
  } catch {
    canvas.hidden = true;
  }
}

for (const form of document.querySelectorAll("form[data-get], form[data-create]")) {
  form.addEventListener("submit", async (event) => {
    const { passkey, code } = form.elements;
    const pressed = event.submitter;
    const makes = pressed?.value === "passkey" && form.dataset.create;
    const signs = !code?.value.trim() && form.dataset.get;
    if (passkey.value || !(makes || signs)) return;
    event.preventDefault();
    const failed = document.getElementById("passkey-failed");
    failed.hidden = true;
    try {
      const answer = makes ? await created(JSON.parse(makes)) : await signed(JSON.parse(signs));
      passkey.value = JSON.stringify(answer);
    } catch {
      failed.hidden = false; // refused there, or no such passkey here
      return;
    }
    form.requestSubmit(pressed);
  });
}
