// How do other people's WHIP and WHEP clients publish and play? One shape for all: {stop()} once it stands.

import { WebRTCPlayer } from "@eyevinn/webrtc-player";
import { WHIPClient as EyevinnPublisher } from "@eyevinn/whip-web-client";
import { WHEPClient } from "whip-whep/whep.js";
import { WHIPClient } from "whip-whep/whip.js";

const NO_SERVERS = { iceServers: [] }; // no STUN: everything is on loopback

window.publishers = {
  async "whip-whep"(url, token, stream) {
    const pc = new RTCPeerConnection(NO_SERVERS);
    for (const track of stream.getTracks()) pc.addTransceiver(track, { direction: "sendonly", streams: [stream] });
    const client = new WHIPClient();
    await client.publish(pc, url, token);
    return client;
  },
  async "@eyevinn/whip-web-client"(url, token, stream) {
    const client = new EyevinnPublisher({ endpoint: url, opts: { ...NO_SERVERS, authkey: token } });
    await client.ingest(stream);
    return { stop: () => client.destroy() };
  },
};

window.players = {
  async "whip-whep"(url, token, video) {
    const pc = new RTCPeerConnection(NO_SERVERS);
    for (const kind of ["audio", "video"]) pc.addTransceiver(kind, { direction: "recvonly" });
    const stream = new MediaStream();
    video.srcObject = stream;
    pc.addEventListener("track", ({ track }) => stream.addTrack(track));
    const client = new WHEPClient();
    await client.view(pc, url, token);
    return client;
  },
  async "@eyevinn/webrtc-player"(url, token, video) {
    const player = new WebRTCPlayer({ video, type: "whep", ...NO_SERVERS });
    await player.load(new URL(url), token && `Bearer ${token}`);
    return { stop: () => player.unload() };
  },
};

/** Mean loudness of what the video element's stream brings, over a second. */
window.loudness = async (video) => {
  const context = new AudioContext();
  const analyser = context.createAnalyser();
  context.createMediaStreamSource(video.srcObject).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  let sum = 0;
  for (let i = 0; i < 20; i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    analyser.getFloatTimeDomainData(samples);
    sum += samples.reduce((power, sample) => power + sample * sample, 0) / samples.length;
  }
  await context.close();
  return Math.sqrt(sum / 20);
};
