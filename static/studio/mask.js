// The mask that says where the picture is repainted: drawn over it, sent as a PNG when finger or mouse lets go.

import { call } from "../shared/api.js";
import { $ } from "../shared/dom.js";
import { note, noteProblem, state, stream } from "./page.js";

const BRUSH = 0.09; // of the picture's shorter side
const SIDE = 512; // pixels of the longer side: enough for a soft border, a few kilobytes as a PNG

/** Draws on `canvas`, which lies over the picture. on: {failed(error)}. */
class MaskCanvas {
  #canvas;
  #context;
  #stream;
  #on;
  #sending = null;
  #last = null;

  constructor(canvas, stream, on) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#stream = stream;
    this.#on = on;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#last = this.#at(event);
      this.#stroke(this.#last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.#last) this.#stroke(this.#at(event));
    });
    for (const end of ["pointerup", "pointercancel"])
      canvas.addEventListener(end, () => {
        if (!this.#last) return;
        this.#last = null;
        this.#send();
      });
  }

  /** Begins (or goes on with) a mask for a picture of this shape. */
  open(width, height) {
    const scale = SIDE / Math.max(width, height);
    const size = [Math.round(width * scale), Math.round(height * scale)];
    if (this.#canvas.width !== size[0] || this.#canvas.height !== size[1])
      [this.#canvas.width, this.#canvas.height] = size;
    this.#canvas.hidden = false;
  }

  close() {
    this.#canvas.hidden = true;
  }

  /** All of the picture again. */
  async clear() {
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    await this.#sending;
    await this.#ask({ method: "DELETE" });
  }

  #at(event) {
    const box = this.#canvas.getBoundingClientRect();
    const across = (event.clientX - box.left) / box.width;
    const mirrored = this.#canvas.closest(".mirrored") !== null; // the canvas is turned with the picture
    const down = (event.clientY - box.top) / box.height;
    return [(mirrored ? 1 - across : across) * this.#canvas.width, down * this.#canvas.height];
  }

  #stroke(to) {
    const context = this.#context;
    context.lineWidth = 2 * BRUSH * Math.min(this.#canvas.width, this.#canvas.height);
    context.lineCap = context.lineJoin = "round";
    context.strokeStyle = "#fff";
    context.beginPath();
    context.moveTo(...this.#last);
    context.lineTo(...to);
    context.stroke();
    this.#last = to;
  }

  /** One after the other: the last stroke is what counts. */
  #send() {
    this.#sending = (this.#sending ?? Promise.resolve()).then(async () => {
      const body = await new Promise((done) => this.#canvas.toBlob(done, "image/png"));
      await this.#ask({ method: "PUT", body, headers: { "Content-Type": "image/png" } });
    });
  }

  async #ask(request) {
    try {
      await call(`/api/streams/${this.#stream}/mask`, request);
    } catch (error) {
      this.#on.failed(error);
    }
  }
}

const mask = new MaskCanvas($("mask-canvas"), stream, { failed: noteProblem });

export function toggleMask() {
  if ($("mask-bar").hidden) {
    if (state.kind === "imagine") return note("An imagined picture is painted as a whole");
    if (state.phase !== "live") return note("Start first: the mask is drawn on the picture");
    mask.open($("output").videoWidth || 1, $("output").videoHeight || 1);
  } else mask.close();
  $("mask-bar").hidden = !$("mask-bar").hidden;
}

/** The button is pressed while a part is all that is repainted, whoever drew it. */
export const showMask = (masked) => $("mask").setAttribute("aria-pressed", String(Boolean(masked)));

$("mask").addEventListener("click", toggleMask);
$("mask-close").addEventListener("click", () => {
  toggleMask();
  $("mask").focus();
});
$("mask-clear").addEventListener("click", () => mask.clear());
