// What can go wrong, and the sentences that say so and what one can do about it.

/** A failure with a code that TEXTS knows; `detail` is the server's own sentence, `field` the control at fault. */
export class Problem extends Error {
  constructor(code, { detail = "", field = null, retryAfter = null } = {}) {
    super(detail || code);
    Object.assign(this, { code, detail, field, retryAfter });
  }
}

// code: [what happened, what to do, the start button's words]
const TEXTS = {
  "camera-refused": [
    "The camera is blocked",
    "Allow the camera for this page in the address bar, then try again. Or take a screen or a video file instead.",
  ],
  "camera-absent": ["No camera found", "Plug one in and try again, or choose a screen or a video file below."],
  "camera-busy": ["The camera is in use", "Another program holds it. Close that program, then try again."],
  "camera-lost": ["The camera was disconnected", "Plug it back in and start again."],
  "camera-odd": ["The camera did not start", "Unplug it and plug it in again, or choose another source below."],
  "microphone-refused": ["The microphone is blocked: allow it for this page in the address bar, then try again", ""],
  "microphone-absent": ["No microphone found: plug one in and try again", ""],
  "microphone-busy": ["The microphone is in use: close the other program that holds it, then try again", ""],
  "microphone-lost": ["The microphone was disconnected: plug it back in and turn it on again", ""],
  "microphone-insecure": ["The microphone needs a secure address: https, or localhost", ""],
  "microphone-odd": ["The microphone did not start: unplug it and plug it in again", ""],
  insecure: [
    "The camera needs a secure address",
    "Browsers hand out cameras only over https or on localhost. Open this page in one of these ways, or play a video file.",
  ],
  "screen-cancelled": ["Nothing was shared", "Choose a screen, a window or a tab in the browser's dialog."],
  "screen-busy": [
    "This cannot be shared with its sound",
    "Share it without its sound, or choose another screen, window or tab.",
  ],
  "screen-ended": ["Sharing has ended", "Start again to share a screen or a window."],
  "screen-absent": ["This browser cannot share a screen", "Use a desktop browser, or choose the camera below."],
  "file-unplayable": ["This file cannot be played here", "Try an MP4 (H.264) or WebM file.", "Choose another file"],
  "picture-foreign": ["This picture holds no settings of LCMirror", ""],
  "picture-damaged": ["The settings in this picture are damaged", ""],
  gone: ["The server does not answer", "Check that it is running. This page reconnects by itself."],
  server: ["The server stumbled", "Try again. If it stays like this, look at the server's log."],
  busy: ["The server is full", "This page tries again by itself."],
  token: ["This server asks for a token", "Its owner chose one with --token. Enter it to go on."],
  forbidden: [
    "The server refused this page",
    "Open the page at the server's own address, or start the server with --allow-origin and --host for this one.",
  ],
  taken: ["Another tab took over", "Someone publishes to this stream from elsewhere.", "Take it back"],
  missing: ["The server does not know this page's session", "Start again."],
  refused: ["The server refused the stream", "Start again; the reason above may help."],
  invalid: ["The server refused a setting", "Change it and try again."],
  blocked: [
    "No way through for the video",
    "The server answers, but video (UDP) does not get through. A firewall or a VPN between you and the server is the usual cause.",
  ],
  codec: [
    "No common video format",
    "The server and this browser share no video codec. Try a current Chrome, Edge, Firefox or Safari.",
  ],
  "picture-needed": ["This model needs a picture", "Choose a camera, a screen or a video file below."],
  fault: ["The model could not paint this", "Try other settings, or reset them."],
  "model-failed": ["The engine does not run", "See the server's log; start it again, perhaps with another --model."],
};

const SHOW_DETAIL = new Set([
  "server",
  "busy",
  "forbidden",
  "refused",
  "invalid",
  "taken",
  "picture-needed",
  "fault",
  "model-failed",
]);

/** -> {title, text, action}: a heading, a sentence with the remedy, the words on the button. */
export function describe(problem) {
  const [title, text, action = "Try again"] = TEXTS[problem.code] ?? TEXTS.server;
  const detail = SHOW_DETAIL.has(problem.code) && problem.detail ? sentence(problem.detail) : "";
  // The server's own sentence takes the place of ours, but for these, where ours says what to do about it.
  const both = ["busy", "fault", "model-failed"].includes(problem.code);
  return { title, text: detail ? `${detail} ${both ? text : ""}`.trim() : text, action };
}

/** What is said of a network that loses a share of the packets, 0 to 1; nothing where it loses none. */
export const lossWords = (share) => (share ? `Your network loses ${Math.round(100 * share)} % of the packets.` : "");

/** Anything thrown -> Problem. What the page did not expect is logged, since nobody can act on it from a sentence. */
export function asProblem(error) {
  if (error instanceof Problem) return error;
  console.error(error);
  return new Problem("server", { detail: String(error?.message ?? error) });
}

export function sentence(text) {
  const trimmed = text.trim();
  return /[.!?]$/.test(trimmed) ? trimmed : `${trimmed}.`;
}

/** Beside a field its name need not be said again, and "Input" is what a validator calls it. */
export function plainRefusal(field, detail) {
  const bare = field && detail.startsWith(`${field}: `) ? detail.slice(field.length + 2) : detail;
  return sentence(bare.replace(/^Input should be /, "This must be "));
}
