// Firefox publishes through a relay until it is told to stop: node publish.mjs '{"executable", "url", "script", "arguments"}'
//
// Prints a line once the script has run. Ends with its standard input.

import { createRequire } from "node:module";

const puppeteer = createRequire(new URL("../../clients/package.json", import.meta.url))("puppeteer-core");
const { executable, url, script, arguments: given } = JSON.parse(process.argv[2]);

const browser = await puppeteer.launch({
  browser: "firefox",
  executablePath: executable,
  headless: true,
  extraPrefsFirefox: {
    "media.navigator.streams.fake": true,
    "media.navigator.permission.disabled": true,
    "media.autoplay.default": 0,
    "network.dns.disabled": true,
  },
});
try {
  const page = await browser.newPage();
  await page.goto(url);
  await page.evaluate(`(${script})(${JSON.stringify(given)})`);
  console.log("published");
  process.stdin.resume();
  await new Promise((resolve) => process.stdin.once("end", resolve));
} finally {
  await browser.close();
}
