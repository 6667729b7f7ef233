// What OBS sees and hears: the stream alone, full-bleed, opened again for ever when it ends.

import { lossWords } from "./shared/problems.js";
import { reconnect } from "./shared/reconnect.js";
import { countFrames } from "./webrtc/frames.js";
import { Losses } from "./webrtc/losses.js";
import { play } from "./webrtc/whip.js";

const CHECK_MS = 3_000;
const COUNT_MS = 500;

const video = document.getElementById("output");
const stream = location.pathname.split("/").pop();
const leaving = new AbortController();

const wishes = new URLSearchParams(location.search);
if (wishes.get("fit") === "cover") document.body.classList.add("cover");
const sound = wishes.get("sound") !== "0";

let session = null;
reconnect(() => play(stream, video, leaving.signal, { sound }), {
  signal: leaving.signal,
  onUp(it) {
    session = it;
  },
  onDown() {
    session = null;
  },
});

// Without new pictures the publisher may just be away, or the server may have restarted and know nothing of us: ask.
const counted = countFrames(video, leaving.signal);
let seen = counted();
setInterval(async () => {
  const frames = counted();
  const still = frames === seen;
  seen = frames;
  const asked = session;
  if (still && asked && !(await asked.alive())) asked.close();
}, CHECK_MS);

// A person who watches is told of the network; what OBS shows goes on to others, who have networks of their own.
if (!window.obsstudio) {
  const words = document.getElementById("network");
  const losses = new Losses();
  setInterval(async () => {
    const counted = (await session?.packets().catch(() => null)) ?? null;
    const said = lossWords(losses.heard(counted));
    if (words.textContent !== said) words.textContent = said;
  }, COUNT_MS);
}

addEventListener("pagehide", () => leaving.abort(new DOMException("left", "AbortError")));
addEventListener("pageshow", (event) => event.persisted && location.reload());
