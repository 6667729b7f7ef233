// The settings that hold, and their way to the server: last value wins, one request in flight, kept in the browser.

import { getJson, patchJson } from "../shared/api.js";
import { asProblem } from "../shared/problems.js";
import { read, write } from "../shared/storage.js";

const TEXT_PAUSE_MS = 150; // a typist's pause: a prompt is worth encoding when a word is there
const RETRY_MS = 1_000; // after a failure that is not the value's fault, twice as long each time
const SLOWEST_RETRY_MS = 15_000;
const FINAL = new Set(["token", "forbidden"]); // trying again changes nothing
const STORE = "lcmirror.settings";

const equal = (a, b) => JSON.stringify(a) === JSON.stringify(b);

export class Settings {
  server = {}; // what the server last said
  defaults = {}; // what the loaded model starts with
  #pending = new Map();
  #inFlight = null;
  #timer = null;
  #retryMs = RETRY_MS;
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

  get loaded() {
    return Object.keys(this.defaults).length > 0;
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

  /** Values from elsewhere, on top of what holds; returns the names that are no settings here. */
  restore(values) {
    const fits = (value, own) => typeof value === typeof own && value !== null;
    const known = Object.keys(values).filter(
      (name) => Object.hasOwn(this.server, name) && fits(values[name], this.server[name]),
    );
    for (const name of known) this.#pending.set(name, values[name]);
    this.#remember();
    this.#on.changed(this.values);
    this.flush();
    return Object.keys(values).filter((name) => !known.includes(name));
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
      this.server = await patchJson(this.#path, sent);
      this.#retryMs = RETRY_MS;
    } catch (error) {
      failed = asProblem(error);
    }
    this.#inFlight = null;
    if (!failed) this.#on.changed(this.values);
    else if (failed.code === "invalid") this.#refused(sent, failed);
    else {
      // Not the value's fault: it goes again, unless a newer one has taken its place.
      for (const [name, value] of Object.entries(sent)) if (!this.#pending.has(name)) this.#pending.set(name, value);
      this.#on.trouble(failed);
      if (!FINAL.has(failed.code)) this.#retry(failed);
      return;
    }
    await this.flush();
  }

  #retry({ retryAfter }) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.flush(), retryAfter ? retryAfter * 1000 : this.#retryMs);
    this.#retryMs = Math.min(this.#retryMs * 2, SLOWEST_RETRY_MS);
  }

  /** A refused request changed nothing: the fields that were not at fault go again without the one that was. */
  #refused(sent, problem) {
    const names = Object.keys(sent);
    const fault = names.find((name) => problem.field?.split(".")[0] === name) ?? (names.length === 1 ? names[0] : null);
    for (const name of names)
      if (name !== fault && fault && !this.#pending.has(name)) this.#pending.set(name, sent[name]);
    this.#remember(); // without what was refused
    this.#on.refused(fault, problem);
  }

  // Words are the viewer's own and follow them from model to model; numbers belong to the model they were tuned for.
  #remember() {
    const kept = read("localStorage", STORE, {});
    const words = { ...kept.words };
    const numbers = { ...kept.models?.[this.#model] };
    for (const [name, value] of Object.entries(this.values)) {
      const shelf = typeof value === "string" ? words : numbers;
      if (equal(value, this.defaults[name])) delete shelf[name];
      else shelf[name] = value;
    }
    write("localStorage", STORE, { words, models: { ...kept.models, [this.#model]: numbers } });
  }

  #recall() {
    const { words, models } = read("localStorage", STORE, {});
    for (const [name, value] of Object.entries({ ...words, ...models?.[this.#model] })) {
      const known = name in this.server && typeof value === typeof this.server[name];
      if (known && name !== "bypass") this.#pending.set(name, value);
    }
  }
}
