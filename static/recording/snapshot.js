// Pictures that keep their settings: the server writes them into the PNG; here it is saved, and they are read again.

import { call } from "../shared/api.js";
import { Problem } from "../shared/problems.js";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const HEAD = "lcmirror\0\0\0\0\0"; // an uncompressed iTXt chunk of ours, without a language
const MAX_FILE = 64 * 2 ** 20; // bytes; the largest picture a model may paint is smaller
const MAX_TEXT = 48 * 1024; // bytes; all controls at their longest are half of that, and the server takes 64 kB at once

/** Saves the newest picture as a file. */
export async function takeSnapshot(stream) {
  const response = await call(`/api/streams/${stream}/snapshot`);
  const [, name = `${stream}.png`] = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "") ?? [];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // by then the browser has read it
}

/** -> {model, controls, ...} of a snapshot. Rejects with a Problem for every other file. */
export async function settingsIn(file) {
  if (file.size > MAX_FILE) throw new Problem("picture-foreign");
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (!SIGNATURE.every((byte, at) => bytes[at] === byte)) throw new Problem("picture-foreign");
  const text = textIn(bytes);
  if (text === null) throw new Problem("picture-foreign");
  let settings = null;
  try {
    settings = JSON.parse(text);
  } catch {
    // Said below, as for JSON that is something else.
  }
  const { controls } = settings ?? {};
  if (typeof controls !== "object" || controls === null || Array.isArray(controls))
    throw new Problem("picture-damaged");
  return settings;
}

/** The text of our chunk; null where there is none. */
function textIn(bytes) {
  const view = new DataView(bytes.buffer);
  const latin = (from, to) => String.fromCharCode(...bytes.subarray(from, to));
  for (let at = SIGNATURE.length; at + 12 <= bytes.length; ) {
    const start = at + 8;
    const end = start + view.getUint32(at);
    if (end + 4 > bytes.length) return null;
    const ours = latin(at + 4, start) === "iTXt" && latin(start, start + HEAD.length) === HEAD;
    if (ours && end - start <= MAX_TEXT) return new TextDecoder().decode(bytes.subarray(start + HEAD.length, end));
    at = end + 4;
  }
  return null;
}
