// The settings of this page's stream, and the panel that shows them.

import { Panel } from "../panel/panel.js";
import { Settings } from "../panel/settings.js";
import { chipsFor } from "../panel/styles.js";
import { $ } from "../shared/dom.js";
import { plainRefusal } from "../shared/problems.js";
import { note, noteProblem, state, stream, update } from "./page.js";

export let panel = null; // until the server has told what there is to set

export const settings = new Settings(stream, {
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
    else if (problem.code !== "gone") noteProblem(problem);
  },
});

export function buildPanel(schema) {
  const slots = { prompt: $("slot-prompt") };
  panel = new Panel(schema, $("fields"), slots, {
    change: (name, value, typing) => settings.set(name, value, { typing }),
  });
  const prompt = panel.input("prompt");
  if (prompt) prompt.addEventListener("shown", chipsFor($("chips"), prompt));
}

export const newSeed = () => panel?.draw("seed");

$("new-seed").addEventListener("click", newSeed);
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("reset").addEventListener("click", () => settings.reset());
