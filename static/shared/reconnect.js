// Sessions that are opened again whenever they end, at a pace that spares the server.

import { asProblem } from "./problems.js";

const FIRST_MS = 300;
const SLOWEST_MS = 5_000;

/**
 * Keeps `open(signal)` -> {ended: Promise, ...} alive until `signal` aborts.
 * onUp(it) when it stands, onDown(problem | null) when it fell, giveUp(problem) -> true ends the loop by throwing it.
 */
export async function reconnect(open, { signal, onUp = () => {}, onDown = () => {}, giveUp = () => false }) {
  let wait = FIRST_MS;
  while (!signal.aborted) {
    let problem = null;
    try {
      const it = await open(signal);
      if (signal.aborted) return;
      wait = FIRST_MS;
      onUp(it);
      await it.ended;
    } catch (error) {
      if (signal.aborted) return;
      problem = asProblem(error);
    }
    if (signal.aborted) return;
    if (problem && giveUp(problem)) throw problem;
    onDown(problem);
    await pause(problem?.retryAfter ? Math.min(problem.retryAfter * 1000, 30_000) : wait, signal);
    wait = Math.min(wait * 2, SLOWEST_MS);
  }
}

/** session: {ended: Promise, close()}. */
export function closeOnAbort(session, signal) {
  const close = () => session.close();
  signal.addEventListener("abort", close, { once: true });
  session.ended.then(() => signal.removeEventListener("abort", close)); // or the page's signal would keep every session
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
}
