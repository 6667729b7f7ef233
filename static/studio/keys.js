// The page's keys, from one table: it acts, and it fills the help dialog.

/** table: [[key, shown, meaning, action], ...]; letters act anywhere but in fields, Space not on what it would press. */
export function bindKeys(table, list) {
  for (const [, shown, meaning] of table) {
    const dt = document.createElement("dt");
    const kbd = document.createElement("kbd");
    kbd.textContent = shown;
    dt.append(kbd);
    const dd = document.createElement("dd");
    dd.textContent = meaning;
    list.append(dt, dd);
  }
  const actions = new Map(table.map(([key, , , action]) => [key, action]));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || document.querySelector("dialog[open]"))
      return;
    const target = event.target;
    if (event.key === "Escape" && target.matches("textarea, input")) return target.blur();
    if (target.matches("textarea, select, input:not([type=range], [type=checkbox])")) return;
    if (event.key === " " && target.matches("button, a, input, summary")) return;
    const action = actions.get(event.key.toLowerCase());
    if (!action) return;
    event.preventDefault();
    action();
  });
}
