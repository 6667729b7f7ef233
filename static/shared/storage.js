// What the browser remembers for the page: JSON by key. A browser that refuses, or a spoilt value, is no memory.

/** area: "localStorage" or "sessionStorage" by name, since blocked site data makes even touching them throw. */
export function read(area, key, fallback) {
  try {
    const value = JSON.parse(window[area].getItem(key));
    return value !== null && typeof value === typeof fallback ? value : fallback;
  } catch {
    return fallback;
  }
}

export function write(area, key, value) {
  try {
    window[area].setItem(key, JSON.stringify(value));
  } catch {
    // Full or blocked: the page works without a memory.
  }
}
