// Where does the picture come from? A camera, a screen or window, a looping video file: each a {track, stop()}.

import { Problem } from "./messages.js";

const CAMERA = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } };
const SCREEN = { width: { max: 1280 }, height: { max: 1280 }, frameRate: { ideal: 30, max: 30 } };

const CAMERA_ERRORS = {
  NotAllowedError: "camera-refused",
  SecurityError: "camera-refused",
  NotFoundError: "camera-absent",
  OverconstrainedError: "camera-absent",
  NotReadableError: "camera-busy",
  AbortError: "camera-busy",
};

const fromStream = (stream) => {
  const [track] = stream.getVideoTracks();
  return { track, stop: () => track.stop() };
};

/** The camera with this id; any camera without one. */
export async function openCamera(deviceId) {
  if (!navigator.mediaDevices?.getUserMedia) throw new Problem("insecure");
  const which = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: "user" };
  try {
    return fromStream(await navigator.mediaDevices.getUserMedia({ video: { ...CAMERA, ...which } }));
  } catch (error) {
    throw new Problem(CAMERA_ERRORS[error.name] ?? "camera-odd");
  }
}

export async function openScreen() {
  if (!window.isSecureContext) throw new Problem("insecure");
  if (!navigator.mediaDevices?.getDisplayMedia) throw new Problem("screen-absent");
  try {
    return fromStream(await navigator.mediaDevices.getDisplayMedia({ video: SCREEN }));
  } catch {
    throw new Problem("screen-cancelled");
  }
}

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
  const track = capture?.call(video).getVideoTracks()[0] ?? drawn(video).getVideoTracks()[0];
  return {
    track,
    stop() {
      track.stop();
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

/** Fills the list with the cameras by name, where the browser already tells names; keeps what is chosen. */
export async function listCameras(select) {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.().catch(() => [])) ?? [];
  const cameras = devices.filter((device) => device.kind === "videoinput" && device.label);
  if (!cameras.length) return;
  const chosen = select.value;
  select.querySelectorAll("[data-camera]").forEach((option) => option.remove());
  const [first, ...others] = cameras;
  const generic = select.querySelector('[value="camera"]'); // "camera" stays a valid choice: it is the first one
  generic.textContent = tidy(first.label);
  generic.dataset.device = first.deviceId;
  const options = others.map((camera) => {
    const option = new Option(tidy(camera.label), `camera:${camera.deviceId}`);
    option.dataset.camera = "";
    option.dataset.device = camera.deviceId;
    return option;
  });
  generic.after(...options);
  if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
}

const tidy = (label) => label.replace(/\s*\([0-9a-f]{4}:[0-9a-f]{4}\)$/i, ""); // USB ids say nothing to people
