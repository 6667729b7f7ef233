// The panel of settings: one field per control of the schema; it knows kinds of fields, not controls.

import { element, icon } from "../shared/dom.js";
import { fieldKind } from "./fields.js";

/** Pydantic writes an optional value as anyOf [.., null] and a shared type as $ref. */
function resolve(property, root) {
  const target = property.$ref
    ? root.$defs[property.$ref.split("/").at(-1)]
    : property.anyOf?.find((p) => p.type !== "null");
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
    for (const field of this.#fields.values())
      field.root.hidden = Boolean(field.needs) && !features.includes(field.needs);
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
    const kind = fieldKind(property);
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
    field.help = element("p", { id: `${name}-help`, className: "help", textContent: field.description });
    field.error = element("p", { id: `${name}-error`, className: "error" });
    field.error.setAttribute("role", "alert");
    field.input.setAttribute("aria-describedby", `${field.help.id} ${field.error.id}`);
    const clear = () => {
      field.error.textContent = "";
      field.input.removeAttribute("aria-invalid");
    };
    const reset = element(
      "button",
      { type: "button", className: "reset", title: "Back to the default" },
      icon("reset"),
    );
    reset.setAttribute("aria-label", `${label}: back to the default`);
    reset.addEventListener("click", () => {
      field.write(this.#defaults[name]);
      changed(this.#defaults[name]);
      field.input.focus();
    });
    field.mark = (differs) => {
      reset.hidden = !differs;
    };
    field.mark(false);
    field.head.append(reset);
    field.needs = property["x-needs"];
    field.root = element(
      "div",
      { className: `field field-${kind.name}` },
      field.head,
      ...field.body,
      field.help,
      field.error,
    );
    // A value from elsewhere must not move what a finger or a caret is on; it is shown as soon as that lets go.
    field.held = () => field.root.contains(document.activeElement) && performance.now() - edited < 1200;
    field.root.addEventListener("focusout", () => queueMicrotask(() => this.show(this.#latest)));
    return field;
  }
}
