// A session without a camera: the server is asked to begin and to end; in between the settings are all it takes.

import { call, getJson } from "../shared/api.js";
import { Problem } from "../shared/problems.js";
import { closeOnAbort } from "../shared/reconnect.js";

let goodbye = Promise.resolve(); // the latest: a new beginning must not be overtaken by it

/** Has the shape of what `publish` returns, but nothing is sent. */
export async function imagine(stream, signal) {
  await goodbye;
  const session = new ImagineSession(stream);
  closeOnAbort(session, signal);
  try {
    await call(session.route, { method: "PUT", signal });
  } catch (error) {
    session.close();
    throw error.code === "refused" ? new Problem("picture-needed", { detail: error.detail }) : error;
  }
  return { session, videoSender: null, audioSender: null };
}

class ImagineSession {
  #stream;
  #finish;
  left = Promise.resolve(); // the server's answer to our goodbye

  constructor(stream) {
    this.#stream = stream;
    this.route = `/api/streams/${stream}/imagine`;
    this.ended = new Promise((resolve) => {
      this.#finish = resolve;
    });
  }

  /** False when the server is there but paints for us no more (it restarted, or someone took the stream over). */
  async alive() {
    try {
      return (await getJson(`/api/streams/${this.#stream}`)).publisher === "imagine";
    } catch (problem) {
      return problem.code !== "missing";
    }
  }

  close() {
    goodbye = this.left = call(this.route, { method: "DELETE", keepalive: true }).catch(() => {}); // gone: as wanted
    this.#finish();
  }
}
