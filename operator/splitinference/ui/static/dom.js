// Small helpers around the DOM. Text goes in as text alone: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children. `class` and data go in as attributes; a function is a listener. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Set text only if it is another: a screen reader and a selection are left in peace. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
  return element;
}

export function show(element, shown) {
  element.hidden = !shown;
}

/** Make the children of `parent` be those of `items`, in order. Elements of a key stay, so that focus and scrolling do. */
export function sync(parent, items, keyOf, create, update) {
  const there = new Map();
  for (const child of [...parent.children]) {
    if (child.dataset.key === undefined) child.remove();
    else there.set(child.dataset.key, child);
  }
  let before = null;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = there.get(key);
    if (child) there.delete(key);
    else {
      child = create(item);
      child.dataset.key = key;
    }
    update(child, item);
    const next = before === null ? parent.firstElementChild : before.nextElementSibling;
    if (next !== child) parent.insertBefore(child, next);
    before = child;
  }
  for (const child of there.values()) child.remove();
}

const formats = new Map();

/** A number for people; a dash where it is not known. */
export function number(value, digits = 0) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (!formats.has(digits)) formats.set(digits, new Intl.NumberFormat("en", { maximumFractionDigits: digits }));
  return formats.get(digits).format(value);
}

export const ms = (value) => (value === null || value === undefined ? "–" : `${number(value, value < 10 ? 1 : 0)} ms`);
export const percent = (value) => (value === null || value === undefined ? "unknown" : `${number(value * 100)} %`);

export function memory(mib) {
  if (mib === null || mib === undefined) return "–";
  return mib >= 10240 ? `${number(mib / 1024)} GiB` : mib >= 1024 ? `${number(mib / 1024, 1)} GiB` : `${number(mib)} MiB`;
}

/** Seconds in words. */
export function span(seconds) {
  if (seconds < 90) return `${number(seconds)} s`;
  if (seconds < 5400) return `${number(seconds / 60)} min`;
  return `${number(seconds / 3600, 1)} h`;
}

/** Layers [start, end) in words: both ends are meant. */
export function layers(segment) {
  return segment.end - segment.start === 1 ? `layer ${segment.start}` : `layers ${segment.start}–${segment.end - 1}`;
}

export function clock(text) {
  const time = new Date(text);
  if (Number.isNaN(time.getTime())) return text;
  return time.toLocaleString("en-GB", { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" });
}
