// Shows the text of an authenticator as a QR code; where it is too long for one, the secret below it has to do.
import { drawQr } from "../console/qr.js";

for (const canvas of document.querySelectorAll("canvas[data-qr]")) {
  try {
    drawQr(canvas, canvas.dataset.qr);
  } catch {
    canvas.hidden = true;
  }
}
