// Which settings hold, and how do they get to the server? Last value wins, one request in flight, kept in the browser.

import { getJson, patchJson } from "./api.js";
import { asProblem } from "./messages.js";

const TEXT_PAUSE_MS = 150; // a typist's pause: a prompt is worth encoding when a word is there
const STORE = "lcmirror.settings";

const equal = (a, b) => JSON.stringify(a) === JSON.stringify(b);

export class Settings {
  server = {}; // what the server last said
  defaults = {}; // what the loaded model starts with
  #pending = new Map();
  #inFlight = null;
  #timer = null;
  #path;
  #model = "";
  #on;

  /** on: {changed(values), refused(field, problem), trouble(problem)} */
  constructor(stream, on) {
    this.#path = `/api/streams/${stream}/controls`;
    this.#on = on;
  }

  /** What the viewer sees: the server's values under those still on their way. */
  get values() {
    return { ...this.server, ...this.#inFlight, ...Object.fromEntries(this.#pending) };
  }

  async load(model, defaults) {
    this.#model = model;
    this.defaults = defaults;
    this.server = await getJson(this.#path);
    // Someone already set this stream (this tab before a reload, another tab): their values stand, not our memory.
    const untouched = Object.keys(this.server).every((name) => equal(this.server[name], this.defaults[name]));
    if (untouched) this.#recall();
    this.#on.changed(this.values);
  }

  /** A change by the viewer. */
  set(name, value, { typing = false } = {}) {
    this.#pending.set(name, value);
    this.#remember();
    clearTimeout(this.#timer);
    if (typing) this.#timer = setTimeout(() => this.flush(), TEXT_PAUSE_MS);
    else this.flush();
  }

  /** Values from the server: another tab's change, or the echo of ours. */
  heard(values) {
    this.server = values;
    this.#on.changed(this.values);
  }

  /** What differs from the model's defaults is to be sent (again): a restarted server will have forgotten it. */
  keep() {
    for (const [name, value] of Object.entries(this.values)) {
      if (!equal(value, this.defaults[name])) this.#pending.set(name, value);
    }
  }

  reset() {
    for (const [name, value] of Object.entries(this.defaults)) this.#pending.set(name, value);
    this.#remember();
    this.#on.changed(this.values);
    return this.flush();
  }

  async flush() {
    clearTimeout(this.#timer);
    if (this.#inFlight || !this.#pending.size) return;
    this.#inFlight = Object.fromEntries(this.#pending);
    this.#pending.clear();
    const sent = this.#inFlight;
    let failed = null;
    try {
      const answer = await patchJson(this.#path, sent);
      this.server = answer.controls ?? answer;
    } catch (error) {
      failed = asProblem(error);
    }
    this.#inFlight = null;
    if (!failed) this.#on.changed(this.values);
    else if (failed.code === "invalid") this.#refused(sent, failed);
    else {
      // Not the value's fault: it goes with the next flush, unless a newer one has taken its place.
      for (const [name, value] of Object.entries(sent)) if (!this.#pending.has(name)) this.#pending.set(name, value);
      this.#on.trouble(failed);
      return;
    }
    await this.flush();
  }

  /** A refused request changed nothing: the fields that were not at fault go again without the one that was. */
  #refused(sent, problem) {
    const names = Object.keys(sent);
    const fault = names.find((name) => problem.field?.split(".")[0] === name) ?? (names.length === 1 ? names[0] : null);
    for (const name of names) if (name !== fault && fault && !this.#pending.has(name)) this.#pending.set(name, sent[name]);
    this.#on.refused(fault, problem);
  }

  // Words are the viewer's own and follow them from model to model; numbers belong to the model they were tuned for.
  #remember() {
    const store = read();
    for (const [name, value] of Object.entries(this.values)) {
      const shelf = typeof value === "string" ? (store.words ??= {}) : ((store.models ??= {})[this.#model] ??= {});
      if (equal(value, this.defaults[name])) delete shelf[name];
      else shelf[name] = value;
    }
    try {
      localStorage.setItem(STORE, JSON.stringify(store));
    } catch {
      // Private windows may refuse storage; the page works without a memory.
    }
  }

  #recall() {
    const { words = {}, models = {} } = read();
    for (const [name, value] of Object.entries({ ...words, ...models[this.#model] })) {
      const known = name in this.server && typeof value === typeof this.server[name];
      if (known && name !== "bypass") this.#pending.set(name, value);
    }
  }
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(STORE)) ?? {};
  } catch {
    return {};
  }
}
