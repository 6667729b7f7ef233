// How many packets the network loses, from counters that are read now and then; a single one is not told of.

const WINDOW_MS = 5_000;
const SPAN_MS = 4_000; // of the window, before anything is told
const SAID_MS = 2_500; // as long a number stays: it is read, and read out
const SHARE = 0.02; // from here on it is told, until it is less than half of that
const LEAST = 3; // packets

/** The share of packets lost in the last 5 s: 0 until it is worth telling, and again once it is over. */
export class Losses {
  #read = []; // [when, packets expected, packets lost], oldest first
  #said = 0;
  #saidAt = 0;

  /** {received, lost}, from the start of a session: those of another begin anew. null: nothing is known. */
  heard(counted, now = performance.now()) {
    const expected = counted && counted.received + counted.lost;
    if (!counted || expected < this.#read.at(-1)?.[1]) this.#read = [];
    if (counted) this.#read.push([now, expected, counted.lost]);
    while (this.#read.length > 2 && this.#read[1][0] <= now - WINDOW_MS) this.#read.shift();
    const share = this.#share();
    if (!share === !this.#said && now - this.#saidAt < SAID_MS) return this.#said;
    [this.#said, this.#saidAt] = [share, now];
    return share;
  }

  #share() {
    if (this.#read.length < 2) return 0;
    const [[since, expectedThen, lostThen], [now, expected, lost]] = [this.#read[0], this.#read.at(-1)];
    const missing = lost - lostThen;
    const share = missing / Math.max(1, expected - expectedThen);
    const tells = now - since >= SPAN_MS && missing >= LEAST && share >= (this.#said ? SHARE / 2 : SHARE);
    return tells ? share : 0;
  }
}
