// A live session: publishes picture and sound, plays what comes back, and reconnects both until it is stopped.

import { getJson } from "../shared/api.js";
import { Problem } from "../shared/problems.js";
import { reconnect } from "../shared/reconnect.js";
import { countFrames } from "./frames.js";
import { imagine } from "./imagine.js";
import { Losses } from "./losses.js";
import { play, publish, tune } from "./whip.js";

const STALLED_MS = 3_000;
const COUNT_MS = 500;
// These do not go away by trying again: a person has to do something first.
const FINAL = new Set(["token", "forbidden", "taken", "codec", "refused", "invalid", "picture-needed"]);

export class LiveSession {
  #stopping = new AbortController();
  #stream;
  #track;
  #video;
  #on;
  #publisher = null;
  #player = null;
  #videoSender = null;
  #changing = false; // between what is sent and what is imagined; the picture may stand meanwhile
  #audioSender = null; // of what #sound is, once published
  #sound;
  #listens;
  #hears = false; // what the player was opened with
  #switching = Promise.resolve();
  // The server sends its last picture again while no new one comes, so a decoded frame by itself proves nothing. Its
  // statistics do: they start at 0 with each publisher, and frames_out counts new pictures only.
  #told = false; // statistics come at all: a proxy may block WebSockets, then decoded frames have to do
  #fresh; // this publication has come out painted
  #out = 0;
  #outAt = 0;
  #held = false; // nothing new for a while, by the statistics
  #sent = new Losses(); // as the server counts what arrives of ours
  #played = new Losses();
  #loss = { sent: 0, played: 0 };
  #frameAt = 0; // when a frame was decoded, since both sessions stand

  /**
   * track: the picture to send; null for pictures that the server imagines.
   * sound: the track to send beside the picture, or null; listens: what comes back is heard.
   * repeats: the server has a picture of before, which it will show until ours comes.
   * on: {picture() again and again while it moves, lost(problem | null), stalled(), unheard(problem), ended(problem),
   *      losing(share of the packets, 0 once it is over), size() -> {width, height} of the painted picture}
   */
  constructor(stream, track, video, { sound, listens, repeats }, on) {
    this.#stream = stream;
    this.#track = track;
    this.#sound = sound;
    this.#listens = listens;
    this.#video = video;
    this.#fresh = !repeats;
    this.#on = on;
    const { signal } = this.#stopping;
    const fell = (problem) => {
      this.#frameAt = 0;
      if (!signal.aborted) on.lost(problem);
    };
    const unpublished = (problem) => {
      this.#publisher = this.#videoSender = this.#audioSender = null;
      this.#fresh = !this.#told;
      if (problem || !this.#changing) fell(problem);
      this.#changing = false;
    };
    const unplayed = (problem) => {
      this.#player = null;
      fell(problem);
    };
    const giveUp = (problem) => FINAL.has(problem.code);
    const both = [
      reconnect(() => this.#publish(signal), { signal, giveUp, onDown: unpublished }),
      reconnect(() => this.#play(signal), { signal, giveUp, onDown: unplayed }),
    ];
    Promise.all(both).catch((problem) => {
      this.stop();
      on.ended(problem);
    });
    this.#watchFrames(signal);
    const counting = setInterval(() => this.#countPackets(), COUNT_MS);
    signal.addEventListener("abort", () => clearInterval(counting));
  }

  async #publish(signal) {
    const opening = this.#track
      ? publish(this.#stream, this.#track, this.#on.size(), signal)
      : imagine(this.#stream, signal);
    const { session, videoSender, audioSender } = await opening;
    if (Boolean(videoSender) !== Boolean(this.#track)) {
      // the source was switched meanwhile, to the other way
      this.#changing = true;
      session.close();
      return { ended: session.left };
    }
    const send = async () => {
      if (videoSender.track !== this.#track) await videoSender.replaceTrack(this.#track); // or to another track
      await audioSender.replaceTrack(this.#sound);
    };
    // A connection that closes meanwhile leaves in Firefox for ever open what was asked of it; this one would stay so, too.
    if (videoSender) await Promise.race([send(), session.ended]);
    this.#publisher = session;
    this.#videoSender = videoSender;
    this.#audioSender = audioSender;
    [this.#out, this.#outAt, this.#held] = [0, performance.now(), false];
    const ended = session.ended.then(async () => {
      await session.left; // with our own publication surely gone, one that is there is another's
      if (!signal.aborted && (await this.#takenOver())) throw new Problem("taken");
    });
    return { ended };
  }

  async #play(signal) {
    this.#hears = this.#listens;
    this.#player = await play(this.#stream, this.#video, signal, { sound: this.#hears });
    this.listen(this.#listens); // the wish may have changed meanwhile
    return { ended: this.#lastPlayerEnded() };
  }

  async #lastPlayerEnded() {
    let player;
    do {
      player = this.#player;
      await player.ended;
    } while (player !== this.#player);
  }

  /** Makes what comes back heard, or not. */
  listen(on) {
    this.#listens = on;
    this.#switching = this.#switching.then(() => this.#switch()).catch(this.#on.unheard);
  }

  /** Sound on or off is another session: the new one stands before the old one goes. */
  async #switch() {
    const [before, hears] = [this.#player, this.#listens];
    if (!before || hears === this.#hears) return;
    const player = await play(this.#stream, this.#video, this.#stopping.signal, { sound: hears });
    if (this.#player !== before) return player.close(); // it fell meanwhile, and was opened again as wanted
    [this.#player, this.#hears] = [player, hears];
    before.close();
  }

  /** Our publisher fell while the server stands: did another one take its place? */
  async #takenOver() {
    try {
      return Boolean((await getJson(`/api/streams/${this.#stream}`)).publisher);
    } catch {
      return false; // gone or forgotten: then it was a restart
    }
  }

  /** What the server counts, as often as it tells. */
  heard({ publisher, frames_out, latency_ms, network }) {
    this.#told = true;
    const ours = this.#publisher && network?.publisher;
    this.#losing("sent", this.#sent.heard(ours ? { received: ours.packets_received, lost: ours.packets_lost } : null));
    if (!this.#publisher) return; // it still counts the publication before
    if (publisher !== "imagine" && !this.#track) this.check(); // no connection breaks that would tell
    const now = performance.now();
    if (frames_out !== this.#out) [this.#out, this.#outAt] = [frames_out, now];
    this.#fresh ||= frames_out > 0;
    // What is imagined stands until a setting changes; slow is not held up.
    this.#held = this.#track && now - this.#outAt > Math.max(STALLED_MS, 2 * (latency_ms.p95 ?? 0));
  }

  async #countPackets() {
    const counted = (await this.#player?.packets().catch(() => null)) ?? null;
    if (!this.#stopping.signal.aborted) this.#losing("played", this.#played.heard(counted));
  }

  /** Both ways are of one network: what is told is the worse of them. */
  #losing(way, share) {
    const worse = () => Math.max(this.#loss.sent, this.#loss.played);
    const before = worse();
    this.#loss[way] = share;
    if (worse() !== before) this.#on.losing(worse());
  }

  #watchFrames(signal) {
    const counted = countFrames(this.#video, signal);
    let seen = counted();
    let askedAt = 0;
    const timer = setInterval(() => {
      const frames = counted();
      const now = performance.now();
      const up = this.#publisher && this.#player;
      if (frames !== seen && this.#video.videoWidth && this.#player) {
        if (up) this.#frameAt = now;
        seen = frames;
      }
      if (!up || !this.#frameAt || !this.#fresh) return;
      const still = this.#held || (now - this.#frameAt > STALLED_MS && !document.hidden);
      if (!still) return this.#on.picture();
      if (now - askedAt < STALLED_MS) return;
      askedAt = now;
      this.#on.stalled();
      this.check();
    }, 100);
    signal.addEventListener("abort", () => clearInterval(timer));
  }

  /** Asks the server whether it still knows us; what it has forgotten is opened again. */
  async check() {
    for (const session of [this.#publisher, this.#player]) {
      if (session && !(await session.alive())) session.close();
    }
  }

  /** Sends this track as the sound; null for silence. */
  async sendSound(track) {
    this.#sound = track;
    if (this.#audioSender && this.#publisher) await this.#audioSender.replaceTrack(track);
  }

  async replace(track) {
    this.#changing = Boolean(this.#publisher) && !track !== !this.#track;
    this.#track = track;
    if (this.#changing) return this.#publisher.close();
    if (!this.#videoSender || !this.#publisher) return;
    await this.#videoSender.replaceTrack(track);
    await this.retune();
  }

  /** Sends no more pixels than the model takes, once it is known what those are. */
  async retune() {
    if (this.#videoSender) await tune(this.#videoSender, this.#track, this.#on.size());
  }

  stop() {
    this.#stopping.abort(new DOMException("stopped", "AbortError"));
    this.#video.srcObject = null;
  }
}
