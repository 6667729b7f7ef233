// The styles that the page offers, and their way into the prompt and out again.

/** label on the chip, words in the prompt: words that the bundled model knows (training/common/styles.py) and others do too */
export const STYLES = [
  ["Watercolor", "watercolor painting"],
  ["Oil", "oil painting"],
  ["Pencil", "pencil sketch"],
  ["Ink", "ink drawing"],
  ["Charcoal", "charcoal drawing"],
  ["Pastel", "pastel drawing"],
  ["Pop art", "pop art"],
  ["Comic", "comic book"],
  ["Mosaic", "mosaic"],
  ["Van Gogh", "van gogh painting"],
  ["Expressionist", "expressionist painting"],
  ["Woodcut", "woodcut"],
  ["Chalk", "chalk drawing"],
  ["Poster", "vintage poster"],
];

const parts = (prompt) =>
  prompt
    .split(",")
    .map((part) => part.trim())
    .filter(Boolean);
const same = (a, b) => a.toLowerCase() === b.toLowerCase();

export const hasStyle = (prompt, words) => parts(prompt).some((part) => same(part, words));

/**
 * The prompt with `words` taken out where they were in, else put in. They take the place of other styles unless
 * `blend`; what the viewer wrote beside them stays.
 */
export function toggleStyle(prompt, words, { blend = false } = {}) {
  const others = parts(prompt).filter((part) => !same(part, words));
  if (hasStyle(prompt, words)) return others.join(", ");
  const kept = blend ? others : others.filter((part) => !STYLES.some(([, style]) => same(part, style)));
  return [...kept, words].join(", ");
}

/** The chips beside `input`: they follow what is typed and type for whoever clicks. */
export function chipsFor(root, input) {
  const chips = STYLES.map(([label, words]) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "chip";
    chip.textContent = label;
    chip.title = `${words} (Shift adds it to the others)`;
    chip.addEventListener("click", (event) => {
      input.value = toggleStyle(input.value, words, { blend: event.shiftKey });
      input.dispatchEvent(new Event("input", { bubbles: true }));
    });
    return { chip, words };
  });
  const refresh = () => {
    for (const { chip, words } of chips) chip.setAttribute("aria-pressed", String(hasStyle(input.value, words)));
  };
  input.addEventListener("input", refresh);
  root.replaceChildren(...chips.map(({ chip }) => chip));
  refresh();
  return refresh;
}
