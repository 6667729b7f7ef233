// What is the studio page doing? Wires source, session, settings and stage together; the one place with page state.

import { getJson, streamName, token, withToken } from "./api.js";
import { Panel } from "./controls.js";
import { listen } from "./events.js";
import { Display } from "./display.js";
import { onDrop } from "./drop.js";
import { buildHud } from "./hud.js";
import { Input } from "./input.js";
import { bindKeys } from "./keys.js";
import { asProblem, describe, plainRefusal, Problem } from "./messages.js";
import { listModels } from "./models.js";
import { Pace } from "./pace.js";
import { Recorder } from "./record.js";
import { Live } from "./session.js";
import { Settings } from "./settings.js";
import { MaskTool } from "./mask.js";
import { settingsIn, takeSnapshot } from "./snapshot.js";
import { Sound } from "./sound.js";
import { listCameras } from "./sources.js";
import { render, stateWord } from "./stage.js";
import { chipsFor } from "./styles.js";

const $ = (id) => document.getElementById(id);
const stream = streamName();
const output = $("output");
const source = $("source");

const state = { phase: "idle", problem: null, server: null, models: [], reachable: null, kind: "camera", file: null, bypass: false, stalled: false, stats: null, slow: false, painting: false, note: "" };
const display = new Display();
const showHudStats = buildHud($("hud"));
const recorder = new Recorder(stream, { button: $("record"), dot: $("recording"), film: $("film") });
let live = null;
let panel = null;

function update(changes) {
  Object.assign(state, changes);
  render(state);
  showHudStats(state.stats, stateWord(state));
}

// ---- settings and panel

const settings = new Settings(stream, {
  changed(values) {
    panel?.show(values);
    $("reset").disabled = JSON.stringify(values) === JSON.stringify({ ...values, ...settings.defaults });
    if (values.bypass !== state.bypass) update({ bypass: Boolean(values.bypass) });
  },
  refused(field, problem) {
    const text = plainRefusal(field, problem.detail || "The server refused this value");
    if (!field || !panel.refuse(field, text)) note(text);
  },
  trouble(problem) {
    if (problem.code === "token") update({ problem });
    else if (problem.code !== "gone") note(describe(problem).title);
  },
});

function buildPanel(schema) {
  panel = new Panel(schema, $("fields"), { prompt: $("slot-prompt") }, {
    change: (name, value, typing) => settings.set(name, value, { typing }),
  });
  const prompt = panel.input("prompt");
  if (prompt) prompt.addEventListener("shown", chipsFor($("chips"), prompt));
}

const newSeed = () => panel?.draw("seed");

$("new-seed").addEventListener("click", newSeed);
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("reset").addEventListener("click", () => settings.reset());

// ---- the server

let defaults = {};

let greeting = null;

/** What the page needs to know of the server, asked once at a time however many occasions there are. */
function greet() {
  greeting ??= meet().finally(() => (greeting = null));
  return greeting;
}

async function meet() {
  try {
    const status = await getJson("/api/status");
    if (!panel) {
      const schema = await getJson("/api/schema");
      defaults = Object.fromEntries(Object.entries(schema.properties).map(([name, p]) => [name, p.default ?? {}]));
      buildPanel(schema);
    }
    onStatus(status);
    panel.setDefaults(defaults);
    if (!live || !settings.loaded) await settings.load(status.model ?? "", defaults);
    if (live) await settings.flush();
    update({ reachable: true });
    await live?.check();
    if (!state.models.length) await loadModels();
  } catch (error) {
    const problem = asProblem(error);
    if (problem.code === "gone") update({ reachable: false });
    else update({ reachable: true, problem });
    if (problem.code === "token") listening.abort(); // knocking again would not help; a new token is a new page
  }
}

const loadModels = async () => update({ models: await getJson("/api/presets") });

function onStatus(server) {
  const resized = server.size !== state.server?.size;
  panel?.fit(server.features, server.lora_weights);
  update({ server, reachable: true });
  if (resized && !output.videoWidth && server.size) display.shape(paintedSize().width, paintedSize().height);
  if (resized) live?.retune();
}

/** What the model paints; its largest usual size until the server tells. */
function paintedSize() {
  const [width, height] = (state.server?.size ?? "512x512").split("x").map(Number);
  return { width, height };
}

const pace = new Pace();

function onStats(stats) {
  live?.heard(stats);
  recorder.heard(stats);
  update({ stats, ...pace.heard(stats, { live, imagines: state.kind === "imagine" }) });
}

const listening = new AbortController();

listen(
  stream,
  {
    up: greet,
    down() {
      update({ stats: null, slow: false });
      recorder.heard(null);
      if (!live) return greet();
      update({ reachable: false }); // the picture may well still flow; the session says when it does not
      settings.keep();
    },
    stats: onStats,
    controls: ({ controls, remarks, masked }) => {
      settings.heard(controls);
      panel?.remark(remarks);
      showMask(masked);
    },
    status: onStatus,
  },
  listening.signal,
);
greet();

// ---- source

const input = new Input($("input"), {
  changed() {
    const kind = input.shown?.kind;
    if (kind) display.of(kind);
    sound.fit();
    if (kind === "camera") listCameras(source);
  },
  ended: (problem) => stop(problem),
});

const openSource = () => input.open(state.kind, state.file, source.selectedOptions[0]);

source.addEventListener("change", () => {
  const kind = source.value.split(":")[0];
  if (kind === "file" && !state.file) return $("file").click();
  choose(kind);
});
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => $("file").files[0] && chooseFile($("file").files[0]));
$("file").addEventListener("cancel", () => state.kind !== "file" && showSource());

function showSource() {
  source.querySelector('[value="file"]').textContent = state.file ? `File: ${state.file.name}` : "Video file…";
  if (source.value.split(":")[0] !== state.kind) source.value = input.shown?.kind === state.kind ? input.shown.value : state.kind;
}

function chooseFile(file) {
  $("file").value = ""; // so that the same file can be chosen again
  if (file.type.startsWith("image/")) {
    showSource();
    return restore(file);
  }
  choose("file", { file, begin: true });
}

async function choose(kind, { file = state.file, begin = false } = {}) {
  update({ kind, file, problem: null });
  showSource();
  if (state.phase === "asking") return ask();
  if (!live) return begin && start();
  try {
    const next = await openSource();
    if (!next) return;
    input.adopt(next);
    await live.replace(next.track);
  } catch (error) {
    note(describe(asProblem(error)).title);
    if (!input.shown) return;
    update({ kind: input.shown.kind, file: input.shown.file });
    source.value = input.shown.value;
    showSource();
  }
}

onDrop(chooseFile);

// ---- sound

const sound = new Sound({
  wanted: () => display.has("microphone"),
  source: () => input.shown,
  send: (track) => live?.say(track),
  lost(problem) {
    display.turn("microphone", false); // without one the button is off again
    note(describe(problem).title);
  },
});

function toggleMicrophone() {
  if (state.kind === "imagine") return note("Imagined pictures come without sound");
  display.turn("microphone");
  sound.fit();
}

function toggleListen() {
  display.turn("listen");
  live?.listen(display.has("listen"));
}

$("microphone").addEventListener("click", toggleMicrophone);
$("listen").addEventListener("click", toggleListen);

// ---- films and pictures to keep

async function saveSnapshot() {
  try {
    await takeSnapshot(stream);
    note("Picture saved, with its settings");
  } catch (error) {
    const problem = asProblem(error);
    note(problem.code === "missing" ? "There is no picture to save yet" : describe(problem).title);
  }
}

/** Takes over the settings that a saved picture holds. What this model refuses is said at its field. */
async function restore(file) {
  try {
    const { model, controls } = await settingsIn(file);
    const unknown = settings.restore(controls);
    const other = model && model !== state.server?.model ? `; it was made with ${model}` : "";
    note(`Settings taken from the picture${other}${unknown.length ? `; not known here: ${unknown.join(", ").slice(0, 80)}` : ""}`);
  } catch (error) {
    note(describe(asProblem(error)).title);
  }
}

const toggleRecording = () => recorder.toggle();

$("record").addEventListener("click", toggleRecording);
$("snapshot").addEventListener("click", saveSnapshot);

// ---- repainting a part

const maskTool = new MaskTool($("mask-canvas"), stream, { failed: (error) => note(describe(asProblem(error)).title) });

function toggleMask() {
  if ($("mask-bar").hidden) {
    if (state.kind === "imagine") return note("An imagined picture is painted as a whole");
    if (state.phase !== "live") return note("Start first: the mask is drawn on the picture");
    maskTool.open(output.videoWidth || 1, output.videoHeight || 1);
  } else maskTool.close();
  $("mask-bar").hidden = !$("mask-bar").hidden;
}

/** Pressed while a part is all that is repainted, whoever drew it. */
const showMask = (masked) => $("mask").setAttribute("aria-pressed", String(Boolean(masked)));

$("mask").addEventListener("click", toggleMask);
$("mask-close").addEventListener("click", () => {
  toggleMask();
  $("mask").focus();
});
$("mask-clear").addEventListener("click", () => maskTool.clear());

// ---- start and stop

function start() {
  if (state.phase !== "idle" || $("start").disabled) return;
  if (state.kind === "file" && !state.file) return $("file").click();
  ask();
}

async function ask() {
  const had = document.activeElement;
  update({ phase: "asking", problem: null, note: "" });
  if (had === $("start")) $("stop").focus(); // the button it was on is gone
  let opened;
  try {
    opened = await openSource();
  } catch (error) {
    return stop(asProblem(error));
  }
  if (!opened) return;
  input.adopt(opened);
  update({ phase: "connecting" });
  settings.keep();
  settings.flush();
  live = new Live(stream, opened.track, output, { sound: sound.track, listens: display.has("listen"), repeats: Boolean(state.stats?.width) }, {
    picture: () => (state.phase !== "live" || state.stalled) && update({ phase: "live", problem: null, stalled: false }),
    lost: (problem) => update({ phase: state.phase === "connecting" ? "connecting" : "lost", problem }),
    stalled: () => update(state.reachable ? { stalled: true } : { phase: "lost", problem: new Problem("gone") }),
    unheard: (error) => note(describe(asProblem(error)).title),
    ended: (problem) => stop(problem),
    size: paintedSize,
  });
}

function stop(problem = null) {
  const had = document.activeElement;
  live?.stop();
  live = null;
  input.release();
  update({ phase: "idle", problem, stalled: false, slow: false });
  if (had === $("stop")) $("start").focus();
}

$("start").addEventListener("click", start);
$("stop").addEventListener("click", () => stop());
addEventListener("pagehide", () => live && stop());

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const next = new URL(location.href);
  next.searchParams.set("token", $("token").value.trim());
  location.replace(next);
});

// ---- words and links

let noteTimer;
function note(text) {
  clearTimeout(noteTimer);
  update({ note: text });
  noteTimer = setTimeout(() => update({ note: "" }), 3500);
}

const obsLink = withToken(`/view/${stream}`).href;
$("obs-link").value = obsLink;
$("obs-link").addEventListener("focus", (event) => event.target.select());

async function copyLink() {
  try {
    await navigator.clipboard.writeText(obsLink);
    note(token ? "OBS link copied; it holds your token" : "OBS link copied");
  } catch {
    $("help").showModal(); // no clipboard here: the link stands in the dialog, ready to be copied by hand
    $("obs-link").focus();
  }
}

const toggleFullscreen = () => display.toggleFull().catch(() => note("The browser refused full screen"));
const toggleMirror = () => display.turn("mirror");
const toggleHud = () => display.turn("hud");
const showHelp = () => $("help").showModal();

async function showModels() {
  if (!state.server) return;
  try {
    await loadModels();
  } catch (error) {
    return note(describe(asProblem(error)).title);
  }
  listModels($("models-list"), state.models, state.server.model);
  if (!$("models").open) $("models").showModal();
}

$("model").addEventListener("click", showModels);
$("mirror").addEventListener("click", toggleMirror);
$("stats").addEventListener("click", toggleHud);
$("copy").addEventListener("click", copyLink);
$("fullscreen").addEventListener("click", toggleFullscreen);
$("help-open").addEventListener("click", showHelp);

bindKeys(
  [
    [" ", "Space", "Start or stop", () => (state.phase === "idle" ? start() : stop())],
    ["b", "B", "Bypass: the picture as it came", () => panel?.input("bypass")?.click()],
    ["n", "N", "New seed: another picture of the same words", newSeed],
    ["/", "/", "Write the prompt", () => panel?.input("prompt")?.focus()],
    ["h", "H", "Statistics", toggleHud],
    ["m", "M", "Mirror the picture on this page; viewers, films and saved pictures have it as the camera does", toggleMirror],
    ["v", "V", "Send sound: the microphone's, or the file's or tab's own", toggleMicrophone],
    ["l", "L", "Listen to what viewers hear", toggleListen],
    ["r", "R", "Record a film on the server; again to stop", toggleRecording],
    ["s", "S", "Save this picture; dropped on the page, it gives its settings back", saveSnapshot],
    ["p", "P", "Draw which part of the picture is repainted", toggleMask],
    ["f", "F", "Full screen", toggleFullscreen],
    ["c", "C", "Copy the link for OBS", copyLink],
    ["o", "O", "Other models, and how to start them", showModels],
    ["?", "?", "This help", showHelp],
  ],
  $("shortcuts"),
);

listCameras(source);
render(state);
