// What does the panel look like? One field per control of the schema; this file knows kinds of fields, not controls.

const element = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};

const icon = (name) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
};

/** Pydantic writes an optional value as anyOf [.., null] and a shared type as $ref. */
function resolve(property, root) {
  const target = property.$ref ? root.$defs[property.$ref.split("/").at(-1)] : property.anyOf?.find((p) => p.type !== "null");
  return target ? { ...resolve(target, root), ...property } : property;
}

export class Panel {
  #fields = new Map(); // name -> {root, input, read, write, error, reset, needs, held}
  #loras = "{}";
  #on;
  #defaults = {};
  #latest = {};

  /** schema: JSON schema of Controls; on: {change(name, value, typing)}; slots: {name: element} for fields placed apart. */
  constructor(schema, root, slots, on) {
    this.#on = on;
    for (const [name, raw] of Object.entries(schema.properties)) {
      const property = resolve(raw, schema);
      const field = this.#build(name, property);
      this.#fields.set(name, field);
      (slots[name] ?? root).append(field.root);
    }
  }

  /** Draws another value, where the field can. */
  draw(name) {
    this.#fields.get(name)?.draw?.();
  }

  input(name) {
    return this.#fields.get(name)?.input;
  }

  /** Shows what the model has: fields whose x-needs is met, one slider for each LoRA. loras: {name: weight as loaded}. */
  fit(features = [], loras = {}) {
    for (const field of this.#fields.values()) field.root.hidden = Boolean(field.needs) && !features.includes(field.needs);
    if (JSON.stringify(loras) !== this.#loras) {
      this.#loras = JSON.stringify(loras);
      for (const field of this.#fields.values()) field.setKeys?.(loras);
      this.show(this.#latest);
    }
  }

  /** remarks: {name: what to say of a setting that does nothing here}. */
  remark(remarks = {}) {
    for (const [name, field] of this.#fields) {
      field.help.textContent = remarks[name] ?? field.description;
      field.help.classList.toggle("remark", name in remarks);
    }
  }

  setDefaults(defaults) {
    this.#defaults = defaults;
    this.show(this.#latest);
  }

  show(values) {
    this.#latest = values;
    for (const [name, field] of this.#fields) {
      if (!(name in values) || field.held()) continue;
      field.write(values[name]);
      field.mark(name in this.#defaults && JSON.stringify(values[name]) !== JSON.stringify(this.#defaults[name]));
    }
  }

  refuse(name, text) {
    const field = this.#fields.get(name);
    if (!field || field.root.hidden) return false;
    field.error.textContent = text;
    field.input.setAttribute("aria-invalid", "true");
    return true;
  }

  #build(name, property) {
    const kinds = { boolean: toggle, object: sliders, string: property.enum ? choice : text };
    const ranged = "minimum" in property && "maximum" in property && property["x-widget"] !== "number";
    const kind = kinds[property.type] ?? (ranged ? slider : number);
    const label = property.title ?? name;
    let edited = 0;
    const changed = (value, { typing = false } = {}) => {
      edited = performance.now();
      clear();
      this.#latest = { ...this.#latest, [name]: value };
      field.mark(JSON.stringify(value) !== JSON.stringify(this.#defaults[name]));
      this.#on.change(name, value, typing);
    };
    const field = kind(name, property, label, changed);
    field.description = property.description ?? "";
    const help = (field.help = element("p", { id: `${name}-help`, className: "help", textContent: field.description }));
    field.error = element("p", { id: `${name}-error`, className: "error" });
    field.error.setAttribute("role", "alert");
    field.input.setAttribute("aria-describedby", `${help.id} ${field.error.id}`);
    const clear = () => {
      field.error.textContent = "";
      field.input.removeAttribute("aria-invalid");
    };
    const reset = element("button", { type: "button", className: "reset", title: "Back to the default" }, icon("reset"));
    reset.setAttribute("aria-label", `${label}: back to the default`);
    reset.addEventListener("click", () => {
      field.write(this.#defaults[name]);
      changed(this.#defaults[name]);
      field.input.focus();
    });
    field.mark = (differs) => (reset.hidden = !differs);
    field.mark(false);
    field.head.append(reset);
    field.needs = property["x-needs"];
    field.root = element("div", { className: `field field-${kind.name}` }, field.head, ...field.body, help, field.error);
    // A value from elsewhere must not move what a finger or a caret is on; it is shown as soon as that lets go.
    field.held = () => field.root.contains(document.activeElement) && performance.now() - edited < 1200;
    field.root.addEventListener("focusout", () => queueMicrotask(() => this.show(this.#latest)));
    return field;
  }
}

const labelFor = (id, label) => element("label", { htmlFor: id, textContent: label });
const head = (...children) => element("div", { className: "field-head" }, ...children);

function text(name, property, label, changed) {
  const input = element("textarea", { id: name, name, rows: name === "prompt" ? 2 : 1, spellcheck: false, maxLength: property.maxLength ?? -1 });
  if (name === "prompt") input.placeholder = "Describe the picture, or pick a style";
  input.addEventListener("input", () => changed(input.value, { typing: true }));
  const write = (value) => value !== input.value && ((input.value = value), input.dispatchEvent(new Event("shown")));
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
  input.addEventListener("input", () => (paint(Number(input.value)), changed(Number(input.value))));
  const write = (value) => ((input.value = value), paint(value));
  return { input, head: head(labelFor(name, label), output), body: [input], write };
}

function number(name, property, label, changed) {
  const { minimum, maximum } = property;
  const input = element("input", { id: name, name, type: "number", inputMode: "numeric", step: property.step ?? "any" });
  if (minimum !== undefined) input.min = minimum;
  if (maximum !== undefined) input.max = maximum;
  input.addEventListener("input", () => input.value !== "" && changed(Number(input.value), { typing: true }));
  const write = (value) => (input.value = value);
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

function toggle(name, property, label, changed) {
  const input = element("input", { id: name, name, type: "checkbox", className: "switch" });
  input.setAttribute("role", "switch");
  input.addEventListener("change", () => changed(input.checked));
  return { input, head: head(labelFor(name, label), input), body: [], write: (value) => (input.checked = value) };
}

function choice(name, property, label, changed) {
  const input = element("select", { id: name, name }, ...property.enum.map((value) => new Option(value, value)));
  input.addEventListener("change", () => changed(input.value));
  return { input, head: head(labelFor(name, label)), body: [input], write: (value) => (input.value = value) };
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
      const row = slider(`${name}-${key}`, limits, key, (value) => changed((values = { ...values, [key]: value })));
      return { key, row, otherwise };
    });
    input.replaceChildren(...rows.map(({ row }) => element("div", { className: "field" }, row.head, ...row.body)));
  };
  const write = (value = {}) => {
    values = value;
    for (const { key, row, otherwise } of rows) row.write(value[key] ?? otherwise);
  };
  return { input, head: head(element("span", { className: "label", textContent: label })), body: [input], write, setKeys };
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
const fill = (input) => input.style.setProperty("--fill", `${(100 * (input.value - input.min)) / (input.max - input.min)}%`);
