// The list of models that the server could be started with, each with the command that does so.

import { element } from "../shared/dom.js";

// In this order: what somebody has, before what anybody can have.
const KINDS = {
  base: "Checkpoints",
  lora: "LoRAs",
  controlnet: "ControlNets",
  adapter: "T2I-Adapters",
  vae: "VAEs",
  unet: "UNets",
  preset: "Presets",
};

/** rows: of /api/presets, {name, kind, about, command, size?, needs?, on_disk?}; running: the name of the loaded model. */
export function listModels(root, rows, running) {
  const groups = Object.entries(KINDS).flatMap(([kind, title]) => {
    const those = rows.filter((row) => row.kind === kind);
    if (!those.length) return [];
    return [element("h3", { textContent: title }), element("ul", {}, ...those.map((row) => item(row, running)))];
  });
  root.replaceChildren(...groups);
}

function item(row, running) {
  const runs = ["preset", "base"].includes(row.kind) && row.name === running;
  const head = element("p", { className: "model-name" }, element("b", { textContent: row.name }));
  head.append(element("span", { textContent: runs ? "running" : (row.size ?? "") }));
  const about = element("p", { textContent: [row.about, missing(row)].filter(Boolean).join(". ") });
  const button = element("button", { type: "button", className: "quiet", textContent: "Copy" });
  button.setAttribute("aria-label", `Copy the command for ${row.name}`);
  const code = element(
    "code",
    {},
    ...row.command.split(" ").flatMap((word) => [element("span", { textContent: word }), " "]),
  );
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(row.command);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no clipboard here: ready to be copied by hand
    }
  });
  return element("li", {}, head, about, element("div", { className: "command" }, code, button));
}

const missing = ({ kind, needs, on_disk }) => (kind === "preset" && !on_disk ? `Needs ${needs}` : "");
