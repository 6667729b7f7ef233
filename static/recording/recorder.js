// The recording on the server: the button, the red dot with the film's time, and what is said of the film afterwards.

import { call, withToken } from "../shared/api.js";
import { asProblem, describe } from "../shared/problems.js";

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

export class Recorder {
  #route;
  #parts;
  #running = null; // what the server says of the recording while there is one, whoever started it
  #told = ""; // the recording whose end was told last
  #asking = false;

  /** parts: {button, dot, film}: film holds a text, a link and a button that dismisses it. */
  constructor(stream, parts) {
    this.#route = `/api/streams/${stream}/recording`;
    this.#parts = parts;
    parts.film.querySelector("button").addEventListener("click", () => this.#dismiss());
  }

  /** The statistics of the stream, or null when none come. */
  heard(stats) {
    const before = this.#running;
    this.#running = stats?.recording ?? null;
    if (before && !this.#running && stats?.last_recording?.started === before.started)
      this.#ended(stats.last_recording);
    if (before && this.#running && this.#running.started !== before.started) {
      this.#tell("The film so far is saved; the recording goes on in a next one.", before);
    }
    const { button, dot } = this.#parts;
    button.setAttribute("aria-pressed", String(Boolean(this.#running)));
    dot.hidden = !this.#running;
    dot.textContent = this.#running
      ? [clock(this.#running.seconds), this.#running.detail].filter(Boolean).join(" · ")
      : "";
  }

  async toggle() {
    if (this.#asking) return;
    this.#asking = true;
    try {
      const method = this.#running ? "DELETE" : "POST";
      this.#dismiss();
      const state = await (await call(this.#route, { method })).json();
      this.heard(state.state === "recording" ? { recording: state } : { recording: null, last_recording: state });
    } catch (error) {
      const problem = asProblem(error);
      this.#tell(problem.detail || describe(problem).title);
    }
    this.#asking = false;
  }

  #ended({ state, file, url, started, seconds, bytes, detail }) {
    if (this.#told === started) return; // our own request and the statistics both tell
    this.#told = started;
    if (!file) return this.#tell(detail);
    const words = [state === "ended" ? `Film saved: ${clock(seconds)}, ${size(bytes)}.` : "", detail];
    this.#tell(words.filter(Boolean).join(" "), { url, file });
  }

  /** What had the keyboard's focus in it hands it on. */
  #dismiss() {
    const { button, film } = this.#parts;
    if (film.contains(document.activeElement)) button.focus();
    film.hidden = true;
  }

  #tell(text, { url, file } = {}) {
    const { film } = this.#parts;
    film.hidden = false; // before its words: what changes while it is hidden is not read out
    const link = film.querySelector("a");
    film.querySelector("span").textContent = text;
    link.hidden = !url;
    if (url) {
      link.href = withToken(url).href;
      link.download = file;
      link.setAttribute("aria-label", `Download ${file}`);
    }
  }
}
