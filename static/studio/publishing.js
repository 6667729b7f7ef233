// What this page publishes: the chosen source with its sound, from start to stop.

import { $ } from "../shared/dom.js";
import { asProblem, Problem } from "../shared/problems.js";
import { listCameras } from "../sources/cameras.js";
import { onDrop } from "../sources/drop.js";
import { Input } from "../sources/input.js";
import { Sound } from "../sources/sound.js";
import { LiveSession } from "../webrtc/session.js";
import { settings } from "./controls.js";
import { restore } from "./downloads.js";
import { display, note, noteProblem, paintedSize, state, stream, update } from "./page.js";

const source = $("source");

export let live = null; // the session, from a source that opened to Stop

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
const askForFile = () => $("file").click();

source.addEventListener("change", () => {
  const kind = source.value.split(":")[0];
  if (kind === "file" && !state.file) askForFile();
  else choose(kind);
});
$("choose").addEventListener("click", askForFile);
$("file").addEventListener("change", () => $("file").files[0] && chooseFile($("file").files[0]));
$("file").addEventListener("cancel", () => state.kind !== "file" && showSource());

function showSource() {
  source.querySelector('[value="file"]').textContent = state.file ? `File: ${state.file.name}` : "Video file…";
  if (source.value.split(":")[0] === state.kind) return;
  source.value = input.shown?.kind === state.kind ? input.shown.value : state.kind;
}

function chooseFile(file) {
  $("file").value = ""; // so that the same file can be chosen again
  if (file.type.startsWith("image/")) {
    showSource();
    restore(file);
  } else choose("file", { file, begin: true });
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
    noteProblem(error);
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
  send: (track) => live?.sendSound(track),
  lost(problem) {
    display.turn("microphone", false); // without one the button is off again
    noteProblem(problem);
  },
});

export function toggleMicrophone() {
  if (state.kind === "imagine") return note("Imagined pictures come without sound");
  display.turn("microphone");
  sound.fit();
}

export function toggleListen() {
  display.turn("listen");
  live?.listen(display.has("listen"));
}

$("microphone").addEventListener("click", toggleMicrophone);
$("listen").addEventListener("click", toggleListen);

// ---- start and stop

export function start() {
  if (state.phase !== "idle" || $("start").disabled) return;
  if (state.kind === "file" && !state.file) askForFile();
  else ask();
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
  const wishes = { sound: sound.track, listens: display.has("listen"), repeats: Boolean(state.stats?.width) };
  live = new LiveSession(stream, opened.track, $("output"), wishes, {
    picture() {
      if (state.phase !== "live" || state.stalled) update({ phase: "live", problem: null, stalled: false });
    },
    lost: (problem) => update({ phase: state.phase === "connecting" ? "connecting" : "lost", problem }),
    stalled: () => update(state.reachable ? { stalled: true } : { phase: "lost", problem: new Problem("gone") }),
    unheard: noteProblem,
    losing: (loss) => update({ loss }),
    ended: (problem) => stop(problem),
    size: paintedSize,
  });
}

export function stop(problem = null) {
  const had = document.activeElement;
  live?.stop();
  live = null;
  input.release();
  update({ phase: "idle", problem, stalled: false, slow: false, loss: 0 });
  if (had === $("stop")) $("start").focus();
}

$("start").addEventListener("click", start);
$("stop").addEventListener("click", () => stop());
addEventListener("pagehide", () => live && stop());
