// What the page knows of its server: asked for once it answers, and told from then on.

import { getJson } from "../shared/api.js";
import { $ } from "../shared/dom.js";
import { listen } from "../shared/events.js";
import { asProblem } from "../shared/problems.js";
import { buildPanel, panel, settings } from "./controls.js";
import { recorder } from "./downloads.js";
import { showMask } from "./mask.js";
import { Overload } from "./overload.js";
import { display, paintedSize, state, stream, update } from "./page.js";
import { live } from "./publishing.js";

const listening = new AbortController();
const overload = new Overload();

let defaults = {};
let greeting = null;

/** What the page needs to know of the server, asked once at a time however many occasions there are. */
export function greet() {
  greeting ??= meet().finally(() => {
    greeting = null;
  });
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

export const loadModels = async () => update({ models: await getJson("/api/presets") });

/** Hears the server from now on. */
export function hear() {
  const handlers = { up: greet, down: onSilence, stats: onStats, controls: onControls, status: onStatus };
  return listen(stream, handlers, listening.signal);
}

function onStatus(server) {
  const resized = server.size !== state.server?.size;
  panel?.fit(server.features, server.lora_weights);
  update({ server, reachable: true });
  if (resized && !$("output").videoWidth && server.size) display.shape(paintedSize().width, paintedSize().height);
  if (resized) live?.retune();
}

function onStats(stats) {
  live?.heard(stats);
  recorder.heard(stats);
  update({ stats, ...overload.heard(stats, { live, imagines: state.kind === "imagine" }) });
}

function onControls({ controls, remarks, masked }) {
  settings.heard(controls);
  panel?.remark(remarks);
  showMask(masked);
}

function onSilence() {
  update({ stats: null, slow: false });
  recorder.heard(null);
  if (!live) return greet();
  update({ reachable: false }); // the picture may well still flow; the session says when it does not
  settings.keep();
}
