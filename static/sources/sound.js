// The sound that is sent: a file's or a screen's own, otherwise the microphone's, which is open only while it is needed.

import { asProblem, Problem } from "../shared/problems.js";
import { openMicrophone } from "./open.js";

export class Sound {
  #microphone = null; // its track while it is open
  #asking = false;
  #on;

  /** on: {wanted() -> boolean, source() -> {track, sound} | null, send(track | null), lost(problem)}. */
  constructor(on) {
    this.#on = on;
  }

  /** What is to be sent now; null for silence. */
  get track() {
    return this.#on.wanted() ? (this.#on.source()?.sound ?? this.#microphone) : null;
  }

  /** Opens or closes the microphone and sends what is to be heard, as the wish and the source are now. */
  async fit() {
    const source = this.#on.source();
    const needed = Boolean(this.#on.wanted() && source?.track && !source.sound);
    if (needed && !this.#microphone && !this.#asking) {
      this.#asking = true;
      try {
        this.#microphone = await openMicrophone();
        this.#microphone.addEventListener("ended", () => this.#lose(new Problem("microphone-lost")));
      } catch (error) {
        this.#lose(asProblem(error));
      }
      this.#asking = false;
      return this.fit(); // by now the wish may be another one
    }
    if (!needed) {
      this.#microphone?.stop();
      this.#microphone = null;
    }
    await this.#on.send(this.track);
  }

  #lose(problem) {
    this.#microphone = null;
    this.#on.lost(problem);
  }
}
