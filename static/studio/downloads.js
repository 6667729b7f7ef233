// Films and pictures to keep, and settings taken back from a saved picture.

import { Recorder } from "../recording/recorder.js";
import { settingsIn, takeSnapshot } from "../recording/snapshot.js";
import { $ } from "../shared/dom.js";
import { asProblem } from "../shared/problems.js";
import { settings } from "./controls.js";
import { note, noteProblem, state, stream } from "./page.js";

export const recorder = new Recorder(stream, { button: $("record"), dot: $("recording"), film: $("film") });

export const toggleRecording = () => recorder.toggle();

export async function saveSnapshot() {
  try {
    await takeSnapshot(stream);
    note("Picture saved, with its settings");
  } catch (error) {
    const problem = asProblem(error);
    if (problem.code === "missing") note("There is no picture to save yet");
    else noteProblem(problem);
  }
}

/** Takes over the settings that a saved picture holds. What this model refuses is said at its field. */
export async function restore(file) {
  try {
    const { model, controls } = await settingsIn(file);
    const unknown = settings.restore(controls);
    const other = model && model !== state.server?.model ? `; it was made with ${model}` : "";
    const left = unknown.length ? `; not known here: ${unknown.join(", ").slice(0, 80)}` : "";
    note(`Settings taken from the picture${other}${left}`);
  } catch (error) {
    noteProblem(error);
  }
}

$("record").addEventListener("click", toggleRecording);
$("snapshot").addEventListener("click", saveSnapshot);
