// What the card, the status line and the buttons show: state in, words and visibility out; nothing here decides anything.

import { $ } from "../shared/dom.js";
import { describe, lossWords, sentence } from "../shared/problems.js";

const START = { camera: "Start camera", screen: "Share a screen", file: "Choose a video", imagine: "Imagine" };
const ASKING = {
  camera: ["Waiting for the camera", "Allow it in the browser's dialog."],
  screen: ["Waiting for your choice", "Pick a screen, a window or a tab in the browser's dialog."],
  file: ["Opening the file", ""],
  imagine: ["Starting", ""],
};
const WELCOME = {
  camera:
    "Your camera goes to this server and comes back as a painting, as you move. Nothing is recorded unless you press Record.",
  screen:
    "A screen or a window goes to this server and comes back as a painting. Nothing is recorded unless you press Record.",
  file: "Drop a video file here, or choose one. It plays in a loop and comes back as a painting.",
  imagine: "No camera: the model paints what you write, anew with each change.",
};
const TITLE = { imagine: "Pictures from words alone" };
const REPAINTER = "This model was made to repaint: from words alone it paints texture rather than things.";
const FOLLOWER = "This model follows a picture's lines: it cannot paint without one.";

const LONG = 30; // letters that fit the dock's narrow column

/** state: {phase, problem, server, models, reachable, kind, file, bypass, stalled, stats, slow, loss, painting, note} -> the page. */
export function render(state) {
  const view = viewOf(state);
  document.body.dataset.phase = state.phase;
  $("card").hidden = state.phase === "live";
  $("card").classList.toggle("is-problem", Boolean(view.problem));
  put($("card-title"), view.title ?? "");
  put($("card-text"), view.text ?? "");
  const progress = $("card-progress");
  progress.hidden = view.progress === undefined;
  if (view.progress == null) progress.removeAttribute("value");
  else progress.value = view.progress;
  $("token-form").hidden = state.problem?.code !== "token";
  const idle = state.phase === "idle";
  $("start").hidden = !idle || view.startless === true;
  $("start").disabled = !idle || view.startless === true || !state.reachable;
  put($("start"), view.action ?? START[state.kind]);
  $("stop").hidden = idle;
  $("new-seed").hidden = state.kind !== "imagine";
  $("choose").hidden = state.kind !== "file" || !state.file;
  say(state.note || view.status, view);
  put($("model").firstElementChild, modelLine(state.server, state.reachable));
}

/** What is unchanged stays: it is not read out again, nor a selection in it lost. */
function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function say(text, { problem, live }) {
  const status = $("status");
  put(status, text);
  status.classList.toggle("wide", live === true && text.length > LONG); // the picture hides the card that would say it
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
  if (state.stats?.detail) return problemView({ code: "fault", detail: state.stats.detail });
  if (phase === "lost")
    return {
      title: "Reconnecting",
      text: "The connection broke. It comes back by itself.",
      progress: null,
      status: "Reconnecting…",
    };
  if (server?.state === "loading") return loadingView(server);
  return { title: "Connecting", text: "The first picture is on its way.", progress: null, status: "Connecting…" };
}

function idleView(state) {
  const { problem, server, reachable, kind, file } = state;
  if (reachable === false) return problemView({ code: "gone" }, { startless: true });
  if (server?.state === "failed")
    return problemView({ code: "model-failed", detail: server.detail }, { startless: true });
  if (problem) return problemView(problem);
  const action = kind === "file" && file ? "Play the video" : undefined;
  if (server?.state === "loading") {
    const { text, progress, status } = loadingView(server);
    return { title: "Getting the model ready", text: `${text} You can start meanwhile.`, progress, status, action };
  }
  const title = TITLE[kind] ?? "See yourself repainted, live";
  const text = [WELCOME[kind], doubt(state)].filter(Boolean).join(" ");
  return { title, text, status: reachable ? "Ready" : "Connecting to the server…", action };
}

/** What is to be known of the model before it imagines. */
function doubt({ kind, server, models }) {
  if (kind !== "imagine" || !server) return "";
  if (server.features?.includes("control")) return FOLLOWER;
  return models.find(({ name }) => name === server.model)?.imagines === false ? REPAINTER : "";
}

function loadingView({ detail, progress }) {
  const percent = progress == null ? "" : `, ${Math.round(progress * 100)} %`;
  const what = detail || "Loading the model";
  return {
    title: "Getting the model ready",
    text: sentence(what),
    progress: progress ?? null,
    status: `${what.replace(/\.$/, "")}${percent}`,
  };
}

function problemView(problem, more = {}) {
  const { title, text, action } = describe(problem);
  return { title, text, action, problem, status: `${title}. ${text}`, ...more };
}

function liveLine(state) {
  const { kind, server, bypass, stalled, stats, slow, loss, painting } = state;
  if (stats?.detail) return sentence(stats.detail);
  if (loss) return lossWords(loss);
  if (stalled) return "The picture is held up; waiting for the next one…";
  if (painting) return "Painting…";
  if (kind === "imagine") return doubt(state) || "Live, painted anew with each change";
  if (bypass) return "Live, unpainted (bypass)";
  if (server?.compiled === "compiling") return "Live, and getting faster: compiling";
  const fewer = stats?.steps_asked > 1 ? "Ask for fewer steps or start" : "Start";
  const remedy = `this device cannot keep up. ${fewer} with a smaller --size.`;
  const less = stats ? lowered(stats) : "";
  if (less) return `Live, at ${less}: ${remedy}`;
  return slow ? `Live, but slow: ${remedy}` : "Live";
}

/** What the server takes off by itself: "1 of 4 steps and 75 % of the size"; empty while nothing. */
function lowered({ steps, steps_asked, scale }) {
  const less = steps < steps_asked ? [`${steps} of ${steps_asked} steps`] : [];
  if (scale < 1) less.push(`${Math.round(100 * scale)} % of the size`);
  return less.join(" and ");
}

/** One word for programs and the statistics: the server's state until the model runs compiled, then the session's. */
export function stateWord({ phase, server, reachable, stalled }) {
  if (!server || reachable === false) return "offline";
  if (server.state !== "ready") return server.state;
  if (server.compiled === "compiling") return "compiling";
  return phase === "live" && stalled ? "stalled" : phase;
}

function modelLine(server, reachable) {
  if (!server || !reachable) return "";
  return [server.model, server.device].filter(Boolean).join(" · ");
}
