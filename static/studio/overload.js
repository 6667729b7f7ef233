// Whether the painting falls behind. Only what lasts is told: a stumble, or a picture that comes soon, needs no word.

const SLOW_FPS = 5; // below it is no longer a moving picture
const SLOW_MS = 4_000;
const PAINTING_MS = 1_000;

export class Overload {
  #slowFor = stopwatch();
  #paintingFor = stopwatch();

  /** stats: of the stream; live: we are in a session; imagines: the server imagines pictures -> {slow, painting}. */
  heard(stats, { live, imagines }) {
    const slow = live && !imagines && stats.fps_in >= SLOW_FPS && stats.fps_out < SLOW_FPS;
    const painting = imagines && stats.frames_in > stats.frames_out + stats.frames_dropped;
    return { slow: this.#slowFor(slow) > SLOW_MS, painting: this.#paintingFor(painting) > PAINTING_MS };
  }
}

/** -> for how long something holds without a break, in ms. */
function stopwatch() {
  let since = null;
  return (holds) => {
    since = holds ? (since ?? performance.now()) : null;
    return holds ? performance.now() - since : 0;
  };
}
