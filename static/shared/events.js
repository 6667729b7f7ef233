// What the server tells by itself, over one WebSocket per stream that reconnects: statistics, controls, status.

import { withToken } from "./api.js";
import { Problem } from "./problems.js";
import { closeOnAbort, reconnect } from "./reconnect.js";

/** handlers: {stats(s), controls(values), status(s), up(), down()}. Runs until `signal` aborts. */
export function listen(stream, handlers, signal) {
  const url = withToken(`/api/streams/${stream}/events`);
  url.protocol = url.protocol.replace("http", "ws");
  const open = () =>
    new Promise((resolve, reject) => {
      const socket = new WebSocket(url);
      const ended = new Promise((done) => socket.addEventListener("close", done));
      closeOnAbort({ ended, close: () => socket.close() }, signal);
      socket.addEventListener("open", () => resolve({ ended }));
      socket.addEventListener("message", ({ data }) => dispatch(JSON.parse(data), handlers));
      ended.then(() => reject(new Problem("gone"))); // why is hidden from pages: whoever needs to know asks with a fetch
    });
  return reconnect(open, { signal, onUp: handlers.up, onDown: handlers.down });
}

function dispatch(message, handlers) {
  if (message.type === "stats") handlers.stats(message);
  else if (message.type === "controls") handlers.controls(message);
  else if (message.type === "status") handlers.status(message);
}
