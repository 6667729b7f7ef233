// How does a live session run? It publishes one track, plays what comes back, and mends both until it is stopped.

import { getJson } from "./api.js";
import { keepUp } from "./keepup.js";
import { Problem } from "./messages.js";
import { play, publish, tune } from "./whip.js";

const STALLED_MS = 3_000;
// These do not go away by trying again: a person has to do something first.
const FINAL = new Set(["token", "forbidden", "taken", "codec", "refused", "invalid"]);

export class Live {
  #stopping = new AbortController();
  #stream;
  #track;
  #video;
  #on;
  #publisher = null;
  #player = null;
  #sender = null;
  #lastFrame = 0;

  /** on: {picture(), lost(problem | null), stalled(yes), ended(problem)} */
  constructor(stream, track, video, on) {
    this.#stream = stream;
    this.#track = track;
    this.#video = video;
    this.#on = on;
    const { signal } = this.#stopping;
    const fell = (problem) => signal.aborted || on.lost(problem);
    const giveUp = (problem) => FINAL.has(problem.code);
    const both = [
      keepUp(() => this.#publish(signal), { signal, giveUp, onDown: (problem) => ((this.#publisher = null), fell(problem)) }),
      keepUp(() => this.#play(signal), { signal, giveUp, onDown: (problem) => ((this.#player = null), fell(problem)) }),
    ];
    Promise.all(both).catch((problem) => {
      this.stop();
      on.ended(problem);
    });
    this.#watchFrames(signal);
  }

  async #publish(signal) {
    const { session, sender } = await publish(this.#stream, this.#track, signal);
    if (sender.track !== this.#track) await sender.replaceTrack(this.#track); // the source was switched meanwhile
    this.#publisher = session;
    this.#sender = sender;
    const ended = session.ended.then(async () => {
      await session.left; // with our own publication surely gone, one that is there is another's
      if (!signal.aborted && (await this.#takenOver())) throw new Problem("taken");
    });
    return { ended };
  }

  async #play(signal) {
    this.#player = await play(this.#stream, this.#video, signal);
    return this.#player;
  }

  /** Our publisher fell while the server stands: did another one take its place? */
  async #takenOver() {
    try {
      return Boolean((await getJson(`/api/streams/${this.#stream}`)).publisher);
    } catch {
      return false; // gone or forgotten: then it was a restart
    }
  }

  #watchFrames(signal) {
    let seen = -1;
    const timer = setInterval(() => {
      const frames = this.#video.getVideoPlaybackQuality?.().totalVideoFrames ?? this.#video.currentTime;
      const now = performance.now();
      const up = this.#publisher && this.#player;
      if (frames !== seen && this.#video.videoWidth && this.#player) {
        // The very first reading may count frames of the session before.
        if (seen >= 0 && up) {
          this.#lastFrame = now;
          this.#on.picture();
        }
        seen = frames;
      } else if (up && this.#lastFrame && now - this.#lastFrame > STALLED_MS && !document.hidden) {
        this.#on.stalled();
        this.#lastFrame = now;
        this.check();
      }
    }, 100);
    signal.addEventListener("abort", () => clearInterval(timer));
  }

  /** Asks the server whether it still knows us; what it has forgotten is opened again. */
  async check() {
    for (const session of [this.#publisher, this.#player]) {
      if (session && !(await session.alive())) session.close();
    }
  }

  async replace(track) {
    this.#track = track;
    if (!this.#sender || !this.#publisher) return;
    await this.#sender.replaceTrack(track);
    await tune(this.#sender, track);
  }

  stop() {
    this.#stopping.abort(new DOMException("stopped", "AbortError"));
    this.#video.srcObject = null;
  }
}
