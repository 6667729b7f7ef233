// The kinds of fields, each (name, property, label, changed) -> {input, head, body, write(value)}: a control's property of
// the schema in, what is put on the page out; changed(value, {typing}) is called for whoever uses it.

import { element, icon } from "../shared/dom.js";

export function fieldKind(property) {
  const kinds = { boolean: toggle, object: sliders, string: property.enum ? choice : text };
  const ranged = "minimum" in property && "maximum" in property && property["x-widget"] !== "number";
  return kinds[property.type] ?? (ranged ? slider : number);
}

const labelFor = (id, label) => element("label", { htmlFor: id, textContent: label });
const head = (...children) => element("div", { className: "field-head" }, ...children);

function text(name, property, label, changed) {
  const input = element("textarea", {
    id: name,
    name,
    rows: name === "prompt" ? 2 : 1,
    spellcheck: false,
    maxLength: property.maxLength ?? -1,
  });
  if (name === "prompt") input.placeholder = "Describe the picture, or pick a style";
  input.addEventListener("input", () => changed(input.value, { typing: true }));
  const write = (value) => {
    if (value === input.value) return;
    input.value = value;
    input.dispatchEvent(new Event("shown"));
  };
  return { input, head: head(labelFor(name, label)), body: [input], write };
}

function slider(name, property, label, changed) {
  const input = range(name, property);
  const output = element("output", { htmlFor: name });
  const unit = property.unit ? ` ${property.unit}` : "";
  const paint = (value) => {
    output.textContent = value.toFixed(decimals(input.step)) + unit; // which may lie between the slider's steps, or beyond
    fill(input);
  };
  input.addEventListener("input", () => {
    paint(Number(input.value));
    changed(Number(input.value));
  });
  const write = (value) => {
    input.value = value;
    paint(value);
  };
  return { input, head: head(labelFor(name, label), output), body: [input], write };
}

function number(name, property, label, changed) {
  const { minimum, maximum } = property;
  const input = element("input", {
    id: name,
    name,
    type: "number",
    inputMode: "numeric",
    step: property.step ?? "any",
  });
  if (minimum !== undefined) input.min = minimum;
  if (maximum !== undefined) input.max = maximum;
  input.addEventListener("input", () => input.value !== "" && changed(Number(input.value), { typing: true }));
  const write = (value) => {
    input.value = value;
  };
  const body = element("div", { className: "row" }, input);
  let draw;
  if (property.type === "integer" && maximum > minimum) {
    draw = () => {
      write(minimum + (crypto.getRandomValues(new Uint32Array(1))[0] % (Math.min(maximum, 99_999) - minimum + 1)));
      changed(Number(input.value));
    };
    const dice = element("button", { type: "button", className: "quiet square", title: "Draw another" }, icon("dice"));
    dice.setAttribute("aria-label", `${label}: draw another`);
    dice.addEventListener("click", draw);
    body.append(dice);
  }
  return { input, head: head(labelFor(name, label)), body: [body], write, draw };
}

function toggle(name, _, label, changed) {
  const input = element("input", { id: name, name, type: "checkbox", className: "switch" });
  input.setAttribute("role", "switch");
  input.addEventListener("change", () => changed(input.checked));
  const write = (value) => {
    input.checked = value;
  };
  return { input, head: head(labelFor(name, label), input), body: [], write };
}

function choice(name, property, label, changed) {
  const input = element("select", { id: name, name }, ...property.enum.map((value) => new Option(value, value)));
  input.addEventListener("change", () => changed(input.value));
  const write = (value) => {
    input.value = value;
  };
  return { input, head: head(labelFor(name, label)), body: [input], write };
}

/** An object of numbers, one slider per key; the keys come from the model (its LoRAs), and what holds where none is set. */
function sliders(name, property, label, changed) {
  const input = element("div", { id: name, className: "group" });
  input.setAttribute("role", "group");
  input.setAttribute("aria-label", label);
  const of = property.additionalProperties ?? {};
  let values = {};
  let rows = [];
  const setKeys = (loaded) => {
    rows = Object.entries(loaded).map(([key, otherwise]) => {
      const limits = { minimum: 0, maximum: 2, ...of, step: property.step };
      const row = slider(`${name}-${key}`, limits, key, (value) => {
        values = { ...values, [key]: value };
        changed(values);
      });
      return { key, row, otherwise };
    });
    input.replaceChildren(...rows.map(({ row }) => element("div", { className: "field" }, row.head, ...row.body)));
  };
  const write = (value = {}) => {
    values = value;
    for (const { key, row, otherwise } of rows) row.write(value[key] ?? otherwise);
  };
  return {
    input,
    head: head(element("span", { className: "label", textContent: label })),
    body: [input],
    write,
    setKeys,
  };
}

function range(name, property) {
  const whole = property.type === "integer";
  const input = element("input", { id: name, name, type: "range" });
  input.min = property.minimum; // before value and step: a range clamps as it goes
  input.max = property.maximum;
  input.step = property.step ?? (whole ? 1 : (property.maximum - property.minimum) / 100);
  return input;
}

const decimals = (step) => (String(step).split(".")[1] ?? "").length;
const fill = (input) =>
  input.style.setProperty("--fill", `${(100 * (input.value - input.min)) / (input.max - input.min)}%`);
