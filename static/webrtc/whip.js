// WHIP (RFC 9725) and WHEP, by which picture and sound reach the server and come back: one POST each way, one DELETE.

import { call } from "../shared/api.js";
import { Problem } from "../shared/problems.js";
import { closeOnAbort } from "../shared/reconnect.js";
import { playMuted, playWithSound } from "./autoplay.js";

const GATHERING_MS = 500; // without a STUN server, candidates are there at once; never wait for a dead interface
const CONNECT_MS = 10_000;
const LOST_MS = 2_500; // "disconnected" may heal; after this it will not
const BITRATE = 4_000_000;
const START_KBPS = 1_500;

/** One WHIP or WHEP session. `ended` resolves when the connection is gone, whoever ended it. */
class PeerSession {
  #pc;
  #resource = null;
  #lost = null;
  #finish;
  left = Promise.resolve(); // the server's answer to our goodbye

  constructor(pc) {
    this.#pc = pc;
    this.ended = new Promise((resolve) => {
      this.#finish = resolve;
    });
    pc.addEventListener("connectionstatechange", () => this.#watch());
  }

  static async open(endpoint, pc, signal) {
    const session = new PeerSession(pc);
    closeOnAbort(session, signal);
    try {
      await session.#negotiate(endpoint, signal);
      await session.#connected(signal);
    } catch (error) {
      session.close();
      throw error;
    }
    return session;
  }

  async #negotiate(endpoint, signal) {
    const { sdp: offer } = await this.#pc.createOffer();
    await this.#pc.setLocalDescription({ type: "offer", sdp: inStereo(offer) });
    await gathered(this.#pc);
    const response = await call(endpoint, {
      method: "POST",
      headers: { "Content-Type": "application/sdp" },
      body: this.#pc.localDescription.sdp,
      signal,
    });
    const location = response.headers.get("Location");
    if (location) this.#resource = new URL(location, response.url);
    const sdp = await response.text();
    signal.throwIfAborted();
    try {
      await this.#pc.setRemoteDescription({ type: "answer", sdp: fasterStart(sdp) });
    } catch {
      throw new Problem("codec");
    }
  }

  /** Resolves once media can flow; rejects with "blocked" where signalling works and UDP does not. */
  #connected(signal) {
    return new Promise((resolve, reject) => {
      const check = () => {
        const state = this.#pc.connectionState;
        if (state === "connected") settle(resolve);
        else if (state === "failed" || state === "closed") settle(reject, new Problem("blocked"));
      };
      const abort = () => settle(reject, signal.reason);
      const timer = setTimeout(() => settle(reject, new Problem("blocked")), CONNECT_MS);
      const settle = (then, value) => {
        clearTimeout(timer);
        this.#pc.removeEventListener("connectionstatechange", check);
        signal.removeEventListener("abort", abort);
        then(value);
      };
      this.#pc.addEventListener("connectionstatechange", check);
      signal.addEventListener("abort", abort);
      check();
    });
  }

  #watch() {
    clearTimeout(this.#lost);
    const { connectionState } = this.#pc;
    if (connectionState === "failed" || connectionState === "closed") this.close();
    if (connectionState === "disconnected") this.#lost = setTimeout(() => this.close(), LOST_MS);
    // A peer that hangs up says so over DTLS long before ICE notices; connectionState does not show that.
    const transport = (this.#pc.getSenders()[0] ?? this.#pc.getReceivers()[0])?.transport;
    if (transport) transport.onstatechange = () => ["closed", "failed"].includes(transport.state) && this.close();
  }

  /** {received, lost}: packets of video that came here, and that did not; null where none is to come. */
  async packets() {
    let counted = null;
    for (const report of (await this.#pc.getStats()).values()) {
      if (report.type !== "inbound-rtp" || report.kind !== "video") continue;
      counted = { received: report.packetsReceived ?? 0, lost: Math.max(0, report.packetsLost ?? 0) };
    }
    return counted;
  }

  /** False when the server is there but has forgotten this session (it restarted, or someone took the stream over). */
  async alive() {
    if (!this.#resource) return true;
    try {
      await call(this.#resource, { method: "GET" });
      return true;
    } catch (problem) {
      return problem.code !== "missing";
    }
  }

  /** Ends the session here and, when the page is still on its way out, on the server. */
  close() {
    clearTimeout(this.#lost);
    this.#pc.close();
    const resource = this.#resource;
    this.#resource = null;
    if (resource) this.left = call(resource, { method: "DELETE", keepalive: true }).catch(() => {}); // gone: as wanted
    this.#finish();
  }
}

/**
 * WHIP: sends `track`. -> {session, videoSender, audioSender}: replaceTrack of either switches its source without a
 * new session; the sound is silent at first.
 */
export async function publish(stream, track, size, signal) {
  const pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
  const { sender: videoSender } = pc.addTransceiver(track, { direction: "sendonly" });
  const { sender: audioSender } = pc.addTransceiver("audio", { direction: "sendonly" });
  const tuned = tune(videoSender, track, size);
  const session = await PeerSession.open(`/whip/${stream}`, pc, signal);
  await tuned;
  return { session, videoSender, audioSender };
}

/** WHEP: plays the stream in `video`; its sound only if asked for, since a picture in step with sound comes later. */
export async function play(stream, video, signal, { sound = false } = {}) {
  const pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
  const receivers = (sound ? ["video", "audio"] : ["video"]).map((kind) => {
    const { receiver } = pc.addTransceiver(kind, { direction: "recvonly" });
    // Show a frame when it comes. Both names exist: the first is the standard's, the second Chrome's older one.
    if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
    if ("playoutDelayHint" in receiver) receiver.playoutDelayHint = 0;
    return receiver;
  });
  const tracks = receivers.map((receiver) => receiver.track);
  const show = () => {
    if (signal.aborted) return;
    video.srcObject = new MediaStream(tracks);
    if (sound) playWithSound(video);
    else playMuted(video);
  };
  // Not before there is something to see: until then the last picture of the session before stays.
  if (tracks[0].muted) tracks[0].addEventListener("unmute", show, { once: true });
  else show();
  return PeerSession.open(`/whep/${stream}`, pc, signal);
}

/** Smooth before sharp, and no more pixels than the model will look at. */
export async function tune(sender, track, size) {
  track.contentHint = "motion";
  const { width, height } = track.getSettings();
  const parameters = sender.getParameters();
  parameters.degradationPreference = "maintain-framerate";
  for (const encoding of parameters.encodings) {
    encoding.maxBitrate = BITRATE;
    encoding.scaleResolutionDownBy = Math.max(1, Math.min((width ?? 0) / size.width, (height ?? 0) / size.height));
  }
  await sender.setParameters(parameters).catch(() => {}); // a browser that knows fewer of these sends anyway
}

function gathered(pc) {
  if (pc.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((resolve) => {
    setTimeout(resolve, GATHERING_MS);
    pc.addEventListener("icegatheringstatechange", () => pc.iceGatheringState === "complete" && resolve());
  });
}

/** Chrome begins at 300 kbit/s and takes seconds to climb: tell it that the way is wide (it ignores what it cannot have). */
function fasterStart(sdp) {
  const hint = `x-google-start-bitrate=${START_KBPS}`;
  const eol = "\r\n";
  const lines = sdp.split(/\r?\n/);
  const firsts = (pattern) => new Set(lines.map((line) => pattern.exec(line)?.[1]).filter(Boolean));
  const withParameters = firsts(/^a=fmtp:(\d+) /);
  const video = firsts(/^a=rtpmap:(\d+) (?:VP8|VP9|H264)\//i);
  return lines
    .flatMap((line) => {
      if (video.has(/^a=fmtp:(\d+) /.exec(line)?.[1])) return [`${line};${hint}`];
      const codec = /^a=rtpmap:(\d+) /.exec(line)?.[1];
      return video.has(codec) && !withParameters.has(codec) ? [line, `a=fmtp:${codec} ${hint}`] : [line];
    })
    .join(eol);
}

/** Chrome mixes what it hears down to one channel unless its own offer says otherwise. */
function inStereo(sdp) {
  return sdp.replace(/^(a=fmtp:\d+ (?!.*stereo=1).*useinbandfec=1)/gm, "$1;stereo=1");
}
