// What does a user of Firefox see? One walk through the pages in Debian's Firefox, driven over WebDriver BiDi.
//
// node firefox.mjs '{"executable", "url", "clip", "folder", "colourful", "grey", "steps"}' prints one line of JSON: what
// each of the steps saw, or {"failed": why}. A step that fails does not end the walk.

import { readdir } from "node:fs/promises";
import { createRequire } from "node:module";

const puppeteer = createRequire(new URL("../clients/package.json", import.meta.url))("puppeteer-core");

const { executable, url, clip, folder, colourful, grey, steps } = JSON.parse(process.argv[2]);
const PATIENCE_MS = 60_000; // a watchdog, not a measurement
const errors = [];
const seen = { errors };

const browser = await puppeteer.launch({
  browser: "firefox",
  executablePath: executable,
  headless: true,
  protocolTimeout: PATIENCE_MS + 5_000, // what a page never answers ends, too
  extraPrefsFirefox: {
    "media.navigator.streams.fake": true, // a camera and a microphone that beeps
    "media.navigator.permission.disabled": true,
    "network.dns.disabled": true, // nothing but loopback
    "browser.download.folderList": 2,
    "browser.download.dir": folder,
  },
});

// ---- what is looked at, all of it in the page

const phase = () => document.body.dataset.phase;

/** Mean difference of the strongest and the weakest colour in the middle square of what `#output` shows. */
const colours = () => {
  const [canvas, side] = [document.createElement("canvas"), Math.min(output.videoWidth, output.videoHeight)];
  canvas.width = canvas.height = 32;
  const context = canvas.getContext("2d");
  const [left, top] = [(output.videoWidth - side) / 2, (output.videoHeight - side) / 2];
  context.drawImage(output, left, top, side, side, 0, 0, 32, 32);
  const { data } = context.getImageData(0, 0, 32, 32);
  let sum = 0;
  for (let i = 0; i < data.length; i += 4) {
    const pixel = data.subarray(i, i + 3);
    sum += Math.max(...pixel) - Math.min(...pixel);
  }
  return sum / (data.length / 4);
};

/** Mean difference of the picture before and after, in the left and the right third. */
const changes = () => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 90;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const [before, after] = ["input", "output"].map((id) => {
    const video = document.getElementById(id);
    const side = Math.min(video.videoWidth, video.videoHeight);
    context.drawImage(video, (video.videoWidth - side) / 2, (video.videoHeight - side) / 2, side, side, 0, 0, 90, 90);
    return context.getImageData(0, 0, 90, 90).data;
  });
  const sums = [0, 0];
  for (let i = 0; i < before.length; i += 4) {
    const third = Math.floor(((i / 4) % 90) / 30);
    if (third !== 1) sums[third / 2] += Math.abs(before[i] - after[i]);
  }
  return sums.map((sum) => sum / 2700);
};

/** Power of the sound that arrives to be heard, over half a second; 0 while it is muted. Without a sound card no AudioContext runs. */
const loudness = async () => {
  // Firefox never answers for a connection that closes meanwhile, as the studio's does when listening is turned on.
  const answered = (stats) => Promise.race([stats, new Promise((resolve) => setTimeout(resolve, 1000, new Map()))]);
  const total = async () => {
    const connected = peers.filter((peer) => peer.connectionState === "connected");
    const reports = await Promise.all(connected.map((peer) => answered(peer.getStats())));
    const sounds = reports
      .flatMap((report) => [...report.values()])
      .filter(({ type, kind }) => type === "inbound-rtp" && kind === "audio");
    return sounds.reduce((sum, { totalAudioEnergy }) => sum + totalAudioEnergy, 0);
  };
  const before = await total();
  await new Promise((resolve) => setTimeout(resolve, 500));
  const after = await total();
  return output.muted || output.paused ? 0 : after - before;
};

const moving = (frames, patienceMs) =>
  new Promise((resolve, reject) => {
    let came = -1; // the first call is ours
    setTimeout(() => reject(new Error(`${came} of ${frames} pictures came`)), patienceMs);
    const count = () => (++came < frames ? output.requestVideoFrameCallback(count) : resolve());
    count();
  });

// ---- how it is walked through

async function open() {
  const tab = await browser.newPage();
  tab.setDefaultTimeout(PATIENCE_MS);
  await tab.setViewport({ width: 1280, height: 800 });
  tab.on("pageerror", (error) => errors.push(error.message));
  tab.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  await tab.evaluateOnNewDocument(() => {
    window.peers = [];
    window.RTCPeerConnection = class extends RTCPeerConnection {
      constructor(...options) {
        super(...options);
        peers.push(this);
      }
    };
  });
  return tab;
}

let last; // what was seen at last in this step

/** What `look` saw in the page when `enough` was content with it. */
async function until(tab, look, enough, ...inputs) {
  const ends = Date.now() + PATIENCE_MS;
  for (;;) {
    last = await tab.evaluate(look, ...inputs);
    if (enough(last)) return last;
    if (Date.now() > ends) throw new Error(`it took longer than ${PATIENCE_MS / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const shows = (id) => document.getElementById(id).checkVisibility();
const textOf = (id) => document.getElementById(id).textContent;
const isPressed = (id) => document.getElementById(id).getAttribute("aria-pressed") === "true";
const isTrue = Boolean;

async function step(name, walk) {
  if (!steps.includes(name)) return;
  last = undefined;
  try {
    seen[name] = await walk();
  } catch (error) {
    seen[name] = { failed: `${error.message}; at last seen: ${JSON.stringify(last)}` };
  }
}

async function start(tab) {
  await until(tab, () => !document.getElementById("start").disabled, isTrue);
  await tab.evaluate(() => document.getElementById("start").click());
  await until(tab, phase, (word) => word === "live");
}

const write = async (tab, prompt) => {
  await tab.evaluate(() => document.getElementById("prompt").select());
  await tab.keyboard.type(prompt);
  await tab.keyboard.press("Escape"); // what follows are keys of the page again
};

const studio = await open();
const view = await open();

await step("background", async () => {
  await studio.goto(`${url}/?stream=firefox-behind`);
  const hidden = await studio.evaluate(() => document.hidden);
  await start(studio);
  return { hidden, phase: await studio.evaluate(phase) };
});

await step("live", async () => {
  await studio.bringToFront();
  await studio.goto(`${url}/?stream=firefox`);
  await start(studio);
  await studio.evaluate(moving, 10, PATIENCE_MS);
  return {
    phase: await studio.evaluate(phase),
    status: await studio.evaluate(textOf, "status"),
    width: await studio.evaluate(() => output.videoWidth),
  };
});

await step("view", async () => {
  // Whatever is evaluated in a tab counts as a gesture there: until it plays, and Escape is pressed, nothing is.
  const plays = new Promise((resolve) =>
    view.on("console", (message) => message.text() === "plays muted" && resolve()),
  );
  await view.evaluateOnNewDocument(() => {
    addEventListener("playing", ({ target }) => target.muted && console.log("plays muted"), true);
  });
  await view.bringToFront();
  await view.goto(`${url}/view/firefox`);
  const never = new Promise((_, reject) => {
    setTimeout(reject, PATIENCE_MS, new Error("it never played")).unref(); // or it would hold up the end of the walk
  });
  await Promise.race([plays, never]);
  await view.keyboard.press("Escape"); // which Firefox does not take for the gesture that lets a page be heard
  await view.evaluate(moving, 10, PATIENCE_MS);
  return {
    width: await view.evaluate(() => output.videoWidth),
    muted: await view.evaluate(() => output.muted),
    behind: await studio.evaluate(phase),
  };
});

await step("sound", async () => {
  await view.mouse.click(5, 5);
  const silence = await until(view, loudness, (power) => power < 1e-5);
  await studio.evaluate(() => document.getElementById("microphone").click());
  const microphone = await until(view, loudness, (power) => power > 1e-3);
  await studio.evaluate(() => document.getElementById("microphone").click());
  const silenced = await until(view, loudness, (power) => power < 1e-5);
  return { muted: await view.evaluate(() => output.muted), silence, microphone, silenced };
});

await step("listen", async () => {
  await studio.bringToFront();
  await studio.click("#microphone");
  await studio.click("#listen");
  const heard = await until(studio, loudness, (power) => power > 1e-3);
  await studio.click("#listen");
  await until(studio, () => output.muted, isTrue);
  await studio.evaluate(moving, 3, PATIENCE_MS);
  return { heard, phase: await studio.evaluate(phase) };
});

await step("file", async () => {
  await studio.bringToFront();
  await (await studio.$("#file")).uploadFile(clip);
  await until(
    studio,
    () => document.getElementById("input").videoHeight,
    (height) => height === 240,
  );
  return { source: await studio.evaluate(() => document.getElementById("source").value) };
});

await step("loop", async () => {
  await studio.evaluate(() => new Promise((resolve) => setTimeout(resolve, 2500))); // twice its length: it plays in a loop
  await studio.evaluate(moving, 10, PATIENCE_MS);
  const sound = await until(view, loudness, (power) => power > 1e-3);
  const devices = await studio.evaluate(() => {
    const tracks = peers.flatMap((peer) => peer.getSenders()).map(({ track }) => track);
    return tracks.filter((track) => track?.readyState === "live").map((track) => track.getSettings().deviceId ?? null);
  });
  return { sound, devices };
});

await step("prompt", async () => {
  await studio.evaluate(() => {
    const strength = document.getElementById("strength");
    strength.value = 0.7;
    strength.dispatchEvent(new Event("input", { bubbles: true }));
  });
  await write(studio, "pop art");
  const painted = await until(studio, colours, (mean) => mean > colourful);
  await write(studio, "pencil sketch");
  const sketched = await until(studio, colours, (mean) => mean < grey);
  await view.bringToFront();
  const viewed = await until(view, colours, (mean) => mean < grey);
  await studio.bringToFront();
  return { painted, sketched, viewed };
});

await step("recording", async () => {
  await studio.click("#record");
  await until(studio, textOf, (time) => Number(time.split(":")[1]) >= 2, "recording");
  await studio.click("#record");
  const words = await until(studio, textOf, (text) => text.includes("saved"), "film");
  return { words, film: await studio.evaluate(() => document.querySelector("#film a").href) };
});

await step("snapshot", async () => {
  await studio.keyboard.press("s");
  await until(studio, textOf, (words) => words.startsWith("Picture saved"), "status");
  const ends = Date.now() + PATIENCE_MS;
  while (Date.now() < ends) {
    const saved = (await readdir(folder)).filter((name) => name.endsWith(".png"));
    if (saved.length) return { saved };
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error("no file came");
});

await step("mask", async () => {
  await write(studio, "ink");
  await studio.click("#mask");
  await until(studio, shows, isTrue, "mask-bar");
  const box = await (await studio.$("#mask-canvas")).boundingBox();
  for (const height of [0.1, 0.3, 0.5, 0.7, 0.9]) {
    const down = box.y + box.height * height;
    await studio.mouse.move(box.x + box.width * 0.05, down);
    await studio.mouse.down();
    await studio.mouse.move(box.x + box.width * 0.25, down, { steps: 4 });
    await studio.mouse.up();
  }
  await until(studio, isPressed, isTrue, "mask");
  const part = await until(studio, changes, ([left, right]) => left > 20 && right < left / 2);
  await studio.click("#mask-clear");
  await until(studio, isPressed, (pressed) => !pressed, "mask");
  const whole = await until(studio, changes, ([left, right]) => right > left / 2);
  return { part, whole };
});

await browser.close();
console.log(JSON.stringify(seen));
