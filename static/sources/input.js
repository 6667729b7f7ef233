// The source that plays: one at a time, shown beside the picture; it goes only when the next one is open.

import { Problem } from "../shared/problems.js";
import { openCamera, openFile, openNothing, openScreen } from "./open.js";

const OPEN = {
  camera: (option) => openCamera(option.dataset.device),
  screen: () => openScreen(),
  file: (_, file) => openFile(file),
  imagine: () => openNothing(),
};
const LOST = { camera: "camera-lost", screen: "screen-ended" }; // a file plays in a loop

export class Input {
  #video;
  #on;
  #opening = null; // the latest wish for a source; what a dialog brings after it has changed is let go

  /** What plays, {track, sound, stop()}, and what was chosen then: kind, file, value; null for nothing. */
  shown = null;

  /** on: {changed(), ended(problem)}. */
  constructor(video, on) {
    this.#video = video;
    this.#on = on;
  }

  /** Opens what is chosen; null when by then something else was chosen, or Stop pressed. */
  async open(kind, file, option) {
    const mine = Symbol();
    this.#opening = mine;
    try {
      const opened = await OPEN[kind](option, file);
      if (mine === this.#opening) return { ...opened, kind, file, value: option.value };
      opened.stop();
    } catch (error) {
      if (mine === this.#opening) throw error;
    }
    return null;
  }

  /** Shows the new source beside the picture and lets go of the old one. */
  adopt(next) {
    this.#show(next);
    next.track?.addEventListener("ended", () => {
      if (this.shown === next && next.kind in LOST) this.#on.ended(new Problem(LOST[next.kind]));
    });
  }

  release() {
    this.#opening = null;
    this.#show(null);
  }

  #show(next) {
    this.shown?.stop();
    this.shown = next;
    const track = next?.track;
    this.#video.srcObject = track ? new MediaStream([track]) : null;
    if (track) this.#video.play().catch(() => {}); // a newer source interrupts it: that one plays
    this.#video.hidden = !track;
    this.#on.changed();
  }
}
