// The statistics over the picture, as the server counts them.

const ms = (value) => (value == null ? null : Math.round(value));
const rate = (value) => (value == null ? null : value.toFixed(1));

// data-stat: [label, unit, value in a stats message (null: nothing to tell), what it means]
const STATS = {
  fps_out: ["out", "fps", (s) => rate(s.fps_out), "Painted pictures per second"],
  fps_in: ["in", "fps", (s) => rate(s.fps_in), "Pictures per second that reach the server"],
  latency_p50: [
    "latency",
    "ms",
    (s) => ms(s.latency_ms?.p50),
    "From a frame's arrival to its painted picture, half of the frames",
  ],
  latency_p95: ["95 %", "ms", (s) => ms(s.latency_ms?.p95), "The same for 95 of 100 frames"],
  engine_p50: ["engine", "ms", (s) => ms(s.engine_ms?.p50), "Time the model takes for one frame"],
  dropped: ["dropped", "", (s) => s.frames_dropped, "Frames left out so that you see what is now"],
  in_flight: [
    "in flight",
    "",
    (s) => s.in_flight,
    "Frames on their way through the model, or waiting for it: many where those at different steps share its work, which gives more pictures, later",
  ],
  skipped: [
    "skipped",
    "",
    (s) => s.frames_skipped,
    "Frames so like the last painted one that its picture stayed (Skip similar)",
  ],
  size: ["size", "", (s) => (s.width ? `${s.width}×${s.height}` : null), "Pixels of the painted picture"],
  steps: [
    "steps",
    "",
    (s) => (s.steps < s.steps_asked ? `${s.steps} of ${s.steps_asked}` : s.steps),
    "Denoising steps per frame, of those asked for",
  ],
  quality: [
    "quality",
    "",
    quality,
    "Lowered by itself when the device cannot keep up: fewer steps, then a smaller picture that is scaled up",
  ],
  viewers: ["viewers", "", (s) => s.viewers, "Who is watching this stream"],
  state: ["state", "", (_, state) => state, "What the model and this page are doing"],
};

function quality({ quality, steps, steps_asked, scale }) {
  if (quality == null) return null;
  const fewer = steps_asked - steps;
  const lowered = [];
  if (fewer > 0) lowered.push(`${fewer} ${fewer === 1 ? "step" : "steps"} fewer`);
  if (scale < 1) lowered.push(`at ${Math.round(100 * scale)} % of the size`);
  return lowered.join(", ") || "full";
}

/** -> show(stats | null, state): without statistics, no number is left standing. */
export function buildHud(root) {
  const cells = Object.entries(STATS).map(([name, [label, unit, read, meaning]]) => {
    const row = document.createElement("div");
    row.title = meaning;
    row.setAttribute("aria-description", meaning);
    row.innerHTML = "<dt></dt><dd><span></span> <small></small></dd>";
    row.querySelector("dt").textContent = label;
    row.querySelector("small").textContent = unit;
    const value = row.querySelector("span");
    value.dataset.stat = name;
    value.textContent = "–";
    root.append(row);
    return { value, read };
  });
  return (stats, state) => {
    for (const { value, read } of cells) value.textContent = read(stats ?? {}, state) ?? "–";
  };
}
