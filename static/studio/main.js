// The studio page begins here: its buttons, dialogs and keys, and the server that they need.

import { token, withToken } from "../shared/api.js";
import { $ } from "../shared/dom.js";
import { listCameras } from "../sources/cameras.js";
import { newSeed, panel } from "./controls.js";
import { saveSnapshot, toggleRecording } from "./downloads.js";
import { bindKeys } from "./keys.js";
import { toggleMask } from "./mask.js";
import { listModels } from "./models.js";
import { display, note, noteProblem, state, stream, update } from "./page.js";
import { start, stop, toggleListen, toggleMicrophone } from "./publishing.js";
import { greet, hear, loadModels } from "./server.js";

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

async function showModels() {
  if (!state.server) return;
  try {
    await loadModels();
  } catch (error) {
    return noteProblem(error);
  }
  listModels($("models-list"), state.models, state.server.model);
  if (!$("models").open) $("models").showModal();
}

const toggleFullscreen = () => display.toggleFull().catch(() => note("The browser refused full screen"));
const toggleMirror = () => display.turn("mirror");
const toggleHud = () => display.turn("hud");
const showHelp = () => $("help").showModal();

$("model").addEventListener("click", showModels);
$("mirror").addEventListener("click", toggleMirror);
$("stats").addEventListener("click", toggleHud);
$("copy").addEventListener("click", copyLink);
$("fullscreen").addEventListener("click", toggleFullscreen);
$("help-open").addEventListener("click", showHelp);

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const next = new URL(location.href);
  next.searchParams.set("token", $("token").value.trim());
  location.replace(next);
});

const MIRROR = "Mirror the picture on this page; viewers, films and saved pictures have it as the camera does";

bindKeys(
  [
    [" ", "Space", "Start or stop", () => (state.phase === "idle" ? start() : stop())],
    ["b", "B", "Bypass: the picture as it came", () => panel?.input("bypass")?.click()],
    ["n", "N", "New seed: another picture of the same words", newSeed],
    ["/", "/", "Write the prompt", () => panel?.input("prompt")?.focus()],
    ["h", "H", "Statistics", toggleHud],
    ["m", "M", MIRROR, toggleMirror],
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

update({});
listCameras($("source"));
hear();
greet();
