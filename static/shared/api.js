// Requests to the server: one fetch, one token, every failure a Problem with a code.

import { Problem } from "./problems.js";
import { read, write } from "./storage.js";

const query = new URLSearchParams(location.search);

export const token = query.get("token") ?? "";

/** Adds the token to an address that cannot carry a header: a WebSocket, a link. */
export function withToken(url) {
  const full = new URL(url, location.href);
  if (token) full.searchParams.set("token", token);
  return full;
}

const CODES = {
  401: "token",
  403: "forbidden",
  404: "missing",
  406: "codec",
  422: "invalid",
  429: "busy",
  503: "busy",
};

async function problemOf(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // A proxy's HTML page says nothing that the status does not.
  }
  const code = CODES[response.status] ?? (response.status >= 500 ? "server" : "refused");
  return new Problem(code, {
    detail: typeof body.error === "string" ? body.error : "",
    field: body.field ?? null,
    retryAfter: Number(response.headers.get("Retry-After")) || null,
  });
}

/** fetch, with the token; rejects with a Problem for every answer that is not 2xx, "gone" when there is none. */
export async function call(path, { headers = {}, ...options } = {}) {
  if (token) headers = { ...headers, Authorization: `Bearer ${token}` };
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("gone");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

export const getJson = async (path) => (await call(path)).json();

export async function patchJson(path, value) {
  const response = await call(path, {
    method: "PATCH",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(value),
  });
  return response.json();
}

const NAME = /^[a-z0-9-]{1,64}$/;

/** `?stream=` where it is a valid name; else one drawn per tab, that a reload keeps. */
export function streamName() {
  const asked = query.get("stream") ?? "";
  if (NAME.test(asked)) return asked;
  const kept = read("sessionStorage", "lcmirror.stream", "");
  if (NAME.test(kept)) return kept;
  const alphabet = "abcdefghijklmnopqrstuvwxyz234567"; // 32 letters: a byte's low 5 bits choose without bias
  const name = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => alphabet[byte & 31]).join("");
  write("sessionStorage", "lcmirror.stream", name);
  return name;
}
