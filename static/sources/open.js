// Opens what picture and sound come from: a camera, a screen or window, a looping video file, each a {track, sound, stop()},
// sound being the source's own or null. Or nothing, where the server imagines them. And a microphone.

import { Problem } from "../shared/problems.js";

const CAMERA = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } };
const SCREEN = { width: { max: 1280 }, height: { max: 1280 }, frameRate: { ideal: 30, max: 30 } };

const ERRORS = {
  NotAllowedError: "refused",
  SecurityError: "refused",
  NotFoundError: "absent",
  OverconstrainedError: "absent",
  NotReadableError: "busy",
  AbortError: "busy",
};

function fromStream(stream) {
  const [track] = stream.getVideoTracks();
  const [sound = null] = stream.getAudioTracks();
  const stop = () => {
    for (const each of stream.getTracks()) each.stop();
  };
  return { track, sound, stop };
}

/** The camera with this id; any camera without one. */
export async function openCamera(deviceId) {
  if (!navigator.mediaDevices?.getUserMedia) throw new Problem("insecure");
  const which = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: "user" };
  try {
    return fromStream(await navigator.mediaDevices.getUserMedia({ video: { ...CAMERA, ...which } }));
  } catch (error) {
    throw new Problem(`camera-${ERRORS[error.name] ?? "odd"}`);
  }
}

/** -> its track. */
export async function openMicrophone() {
  if (!navigator.mediaDevices?.getUserMedia) throw new Problem("microphone-insecure");
  try {
    return (await navigator.mediaDevices.getUserMedia({ audio: true })).getAudioTracks()[0];
  } catch (error) {
    throw new Problem(`microphone-${ERRORS[error.name] ?? "odd"}`);
  }
}

export async function openScreen() {
  if (!window.isSecureContext) throw new Problem("insecure");
  if (!navigator.mediaDevices?.getDisplayMedia) throw new Problem("screen-absent");
  try {
    return fromStream(await navigator.mediaDevices.getDisplayMedia({ video: SCREEN, audio: true }));
  } catch (error) {
    throw new Problem(ERRORS[error.name] === "busy" ? "screen-busy" : "screen-cancelled");
  }
}

/** Asks for nothing and sends nothing. */
export const openNothing = async () => ({ track: null, sound: null, stop() {} });

/** `file`, played over and over out of sight: a file that will not play disturbs nothing that does. */
export async function openFile(file) {
  const video = document.createElement("video");
  Object.assign(video, { src: URL.createObjectURL(file), loop: true, muted: true, playsInline: true });
  try {
    await video.play();
    if (!video.videoWidth) throw new Problem("file-unplayable"); // sound only
  } catch {
    close(video);
    throw new Problem("file-unplayable");
  }
  const capture = video.captureStream ?? video.mozCaptureStream;
  const captured = capture?.call(video);
  const track = captured?.getVideoTracks()[0] ?? drawn(video).getVideoTracks()[0];
  const sound = captured?.getAudioTracks()[0] ?? null;
  return {
    track,
    sound,
    stop() {
      track.stop();
      sound?.stop();
      close(video);
    },
  };
}

function close(video) {
  URL.revokeObjectURL(video.src);
  video.removeAttribute("src");
  video.load();
}

/** Safari has no captureStream on videos: draw each frame on a canvas and capture that. */
function drawn(video) {
  const canvas = document.createElement("canvas");
  const shrink = Math.min(1, 1280 / Math.max(video.videoWidth, video.videoHeight));
  canvas.width = Math.round(video.videoWidth * shrink);
  canvas.height = Math.round(video.videoHeight * shrink);
  const context = canvas.getContext("2d");
  const draw = () => {
    if (!video.src) return;
    context.drawImage(video, 0, 0, canvas.width, canvas.height);
    video.requestVideoFrameCallback(draw);
  };
  draw();
  return canvas.captureStream();
}
