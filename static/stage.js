// What does the stage show and say right now? State in, words and visibility out; nothing here decides anything.

import { describe, sentence } from "./messages.js";

const $ = (id) => document.getElementById(id);

const START = { camera: "Start camera", screen: "Share a screen", file: "Choose a video" };
const ASKING = {
  camera: ["Waiting for the camera", "Allow it in the browser's dialog."],
  screen: ["Waiting for your choice", "Pick a screen, a window or a tab in the browser's dialog."],
  file: ["Opening the file", ""],
};
const WELCOME = {
  camera: "Your camera goes to this server and comes back as a painting, as you move. Nothing is recorded.",
  screen: "A screen or a window goes to this server and comes back as a painting. Nothing is recorded.",
  file: "Drop a video file here, or choose one. It plays in a loop and comes back as a painting.",
};

/** state: {phase, problem, server, reachable, kind, file, bypass, note} -> the page. */
export function render(state) {
  const view = viewOf(state);
  document.body.dataset.phase = state.phase;
  $("card").hidden = state.phase === "live";
  $("card").classList.toggle("is-problem", Boolean(view.problem));
  $("card-title").textContent = view.title ?? "";
  $("card-text").textContent = view.text ?? "";
  const progress = $("card-progress");
  progress.hidden = view.progress === undefined;
  if (view.progress == null) progress.removeAttribute("value");
  else progress.value = view.progress;
  $("token-form").hidden = state.problem?.code !== "token";
  const idle = state.phase === "idle";
  $("start").hidden = !idle || view.startless === true;
  $("start").disabled = !idle || view.startless === true || !state.reachable;
  $("start").textContent = view.action ?? START[state.kind];
  $("stop").hidden = idle;
  $("choose").hidden = state.kind !== "file" || !state.file;
  say(state.note || view.status, view);
  $("model").textContent = modelLine(state.server, state.reachable);
}

function say(text, { problem, live }) {
  const status = $("status");
  if (status.textContent !== text) status.textContent = text; // an unchanged line is not read out again
  status.dataset.tone = problem ? "problem" : live ? "live" : "";
}

function viewOf(state) {
  const { phase, problem, server, kind } = state;
  if (problem?.code === "token") return problemView(problem, { startless: true });
  if (phase === "idle") return idleView(state);
  if (phase === "asking") return { title: ASKING[kind][0], text: ASKING[kind][1], status: `${ASKING[kind][0]}…` };
  if (phase === "live") return { live: true, status: liveLine(state) };
  // connecting, or lost and coming back
  if (server?.state === "failed") return problemView({ code: "model-failed", detail: server.detail });
  if (problem) return problemView(problem);
  if (state.fault) return problemView({ code: "fault", detail: state.fault });
  if (phase === "lost") return { title: "Reconnecting", text: "The connection broke. It comes back by itself.", progress: null, status: "Reconnecting…" };
  if (server?.state === "loading") return loadingView(server);
  return { title: "Connecting", text: "The first picture is on its way.", progress: null, status: "Connecting…" };
}

function idleView({ problem, server, reachable, kind, file }) {
  if (reachable === false) return problemView({ code: "gone" }, { startless: true });
  if (server?.state === "failed") return problemView({ code: "model-failed", detail: server.detail }, { startless: true });
  if (problem) return problemView(problem);
  const action = kind === "file" && file ? "Play the video" : undefined;
  if (server?.state === "loading") {
    const { text, progress, status } = loadingView(server);
    return { title: "Getting the model ready", text: `${text} You can start meanwhile.`, progress, status, action };
  }
  const title = "See yourself repainted, live";
  return { title, text: WELCOME[kind], status: reachable ? "Ready" : "Connecting to the server…", action };
}

function loadingView({ detail, progress }) {
  const percent = progress == null ? "" : `, ${Math.round(progress * 100)} %`;
  const what = detail || "Loading the model";
  return { title: "Getting the model ready", text: sentence(what), progress: progress ?? null, status: `${what.replace(/\.$/, "")}${percent}` };
}

function problemView(problem, more = {}) {
  const { title, text, action } = describe(problem);
  return { title, text, action, problem, status: `${title}. ${text}`, ...more };
}

function liveLine({ server, bypass, stalled, fault }) {
  if (fault) return sentence(fault);
  if (stalled) return "The picture is held up; waiting for the server…";
  if (bypass) return "Live, unpainted (bypass)";
  return server?.compiled === "compiling" ? "Live, and getting faster: compiling" : "Live";
}

function modelLine(server, reachable) {
  if (!server || !reachable) return "";
  return [server.model, server.device].filter(Boolean).join(" · ");
}
