// The one place with page state. What changes is shown at once: on the card, in the status line, among the statistics.

import { streamName } from "../shared/api.js";
import { $ } from "../shared/dom.js";
import { asProblem, describe } from "../shared/problems.js";
import { Display } from "./display.js";
import { buildHud } from "./hud.js";
import { render, stateWord } from "./status.js";

const NOTE_MS = 3500;

export const stream = streamName();
export const display = new Display();
export const state = {
  phase: "idle",
  problem: null,
  server: null, // its status
  models: [],
  reachable: null,
  kind: "camera", // of source
  file: null,
  bypass: false,
  stalled: false,
  stats: null,
  slow: false,
  loss: 0, // of the packets, by the network, as far as it is worth telling
  painting: false,
  note: "",
};

const showStats = buildHud($("hud"));

export function update(changes) {
  Object.assign(state, changes);
  render(state);
  showStats(state.stats, stateWord(state));
}

let noteTimer;

/** Says something for a moment where the status stands. */
export function note(text) {
  clearTimeout(noteTimer);
  update({ note: text });
  noteTimer = setTimeout(() => update({ note: "" }), NOTE_MS);
}

/** Says what went wrong: anything thrown. */
export const noteProblem = (error) => note(describe(asProblem(error)).title);

/** What the model paints; its largest usual size until the server tells. */
export function paintedSize() {
  const [width, height] = (state.server?.size ?? "512x512").split("x").map(Number);
  return { width, height };
}
