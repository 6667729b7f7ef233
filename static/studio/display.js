// How this page shows the picture: mirrored or not, with figures or not, in its own shape, in full. The switches are
// remembered, with those of the sound.

import { $ } from "../shared/dom.js";
import { read, write } from "../shared/storage.js";

const STORE = "lcmirror.view";
const SWITCHES = { mirror: true, hud: true, microphone: false, listen: false };
const BUTTONS = { mirror: "mirror", hud: "stats", microphone: "microphone", listen: "listen" };

export class Display {
  #switches = { ...SWITCHES, ...read("localStorage", STORE, {}) };
  #kind = "camera";
  #ratio = "";

  constructor() {
    $("output").addEventListener(
      "resize",
      ({ target }) => target.videoWidth && this.shape(target.videoWidth, target.videoHeight),
    );
    this.#show();
  }

  /** Whether a switch of SWITCHES is on. */
  has(name) {
    return this.#switches[name];
  }

  turn(name, on = !this.has(name)) {
    this.#switches[name] = on;
    write("localStorage", STORE, this.#switches);
    this.#show();
  }

  /** Only a camera's picture is mirrored: who moves sees it as in a mirror. */
  of(kind) {
    this.#kind = kind;
    this.#show();
  }

  shape(width, height) {
    const ratio = `${width / height}`;
    if (ratio === this.#ratio) return;
    this.#ratio = ratio;
    $("stage").style.setProperty("--ratio", ratio);
  }

  /** Rejects where the browser refuses. */
  async toggleFull() {
    if (document.fullscreenElement) await document.exitFullscreen();
    else if ($("stage").requestFullscreen) await $("stage").requestFullscreen();
    else $("output").webkitEnterFullscreen?.(); // iPhone
  }

  #show() {
    for (const [name, id] of Object.entries(BUTTONS)) $(id).setAttribute("aria-pressed", String(this.has(name)));
    $("stage").classList.toggle("mirrored", this.has("mirror") && this.#kind === "camera");
    $("hud").hidden = !this.has("hud");
  }
}
