// The picture of one model: the bar of its layers, nodes as cards, segments on them, and the way of a request.
// Segments fly from where they were: from the bar when the model is split, from the other node when they move.

import { el, layers, ms, number, percent, say, svg, sync } from "./dom.js";

const MOST_CARDS = 24;
const FLIGHT_MS = 1100;
const COLOURS = 6;
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Picture {
  constructor(root) {
    this.root = root;
    this.bar = el("div", { class: "bar" });
    this.cards = el("div", { class: "cards" });
    this.arrows = svg("svg", { class: "arrows" }, svg("defs", {}, svg("marker", { id: "tip", markerWidth: 7, markerHeight: 7, refX: 6, refY: 3.5, orient: "auto" }, svg("path", { d: "M0,0 L7,3.5 L0,7 z" }))));
    this.ways = svg("g");
    this.arrows.append(this.ways);
    this.stage = el("div", { class: "stage" }, this.arrows, this.cards);
    this.rest = el("p", { class: "quiet" });
    root.append(this.bar, this.stage, this.rest);
    this.chips = new Map();
    this.sticky = new Set();
    new ResizeObserver(() => this.#draw()).observe(this.stage);
  }

  /** `item`: the resource; `nodes`: all nodes by name. Gives words for what moved since the last time. */
  set(item, nodes) {
    if (this.key !== item.key) {
      this.key = item.key;
      this.sticky.clear();
      for (const chip of this.chips.values()) chip.remove();
      this.chips.clear();
      this.fresh = true;
    }
    const found = segmentsOf(item);
    const before = this.#rectangles();
    const earlier = this.last ?? new Map();
    this.#bar(item, found);
    this.#cards(item, found, nodes);
    const moved = this.#chips(found, earlier);
    this.item = item;
    this.last = new Map(found.map((segment) => [segment.name, segment]));
    this.root.setAttribute("aria-label", inWords(item, found));
    this.#fly(before, earlier, found);
    this.fresh = false;
    return moved;
  }

  #rectangles() {
    const found = new Map();
    for (const [name, chip] of this.chips) found.set(name, chip.getBoundingClientRect());
    return found;
  }

  #bar(item, found) {
    const planned = found.filter((segment) => segment.planned && segment.pipeline === 0);
    sync(this.bar, planned.length ? planned : [{ name: "none", start: 0, end: item.layers || 1, none: true }], (s) => `${s.start}-${s.end}`,
      () => el("div", { class: "piece" }),
      (piece, segment) => {
        piece.style.flexGrow = String(segment.end - segment.start);
        piece.dataset.colour = segment.none ? "none" : String(segment.stage % COLOURS);
        say(piece, segment.none ? "not split yet" : layers(segment));
      });
  }

  #cards(item, found, nodes) {
    for (const segment of found) this.sticky.add(segment.node);
    const shown = [...this.sticky].filter((name) => nodes.has(name) || found.some((s) => s.node === name)).slice(-MOST_CARDS);
    // Others that could hold a segment, so that one can see where nothing went. In their order by name, so that cards stay where they are.
    for (const name of nodes.keys()) {
      if (shown.length >= Math.max(12, this.sticky.size)) break;
      if (!shown.includes(name)) shown.push(name);
    }
    shown.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    sync(this.cards, shown, (name) => name, card, (element, name) => drawCard(element, name, nodes.get(name)));
    const more = nodes.size - shown.filter((name) => nodes.has(name)).length;
    say(this.rest, more > 0 ? `${more} more nodes are in the list of nodes below.` : "");
  }

  #chips(found, earlier) {
    const moved = [];
    const wanted = new Set(found.map((segment) => segment.name));
    for (const [name, chip] of this.chips) {
      if (!wanted.has(name)) {
        chip.remove();
        this.chips.delete(name);
      }
    }
    const places = new Map([...this.cards.children].map((child) => [child.dataset.key, child.querySelector(".slot")]));
    for (const segment of found) {
      let chip = this.chips.get(segment.name);
      if (!chip) {
        chip = el("div", { class: "chip" }, el("span", { class: "stage-number" }), el("span", { class: "chip-layers" }), el("span", { class: "chip-time" }), el("span", { class: "chip-phase" }));
        this.chips.set(segment.name, chip);
        if (!this.fresh) moved.push(movement(segment, earlier));
      }
      drawChip(chip, segment);
      const slot = places.get(segment.node);
      if (slot && chip.parentElement !== slot) slot.append(chip);
    }
    return moved;
  }

  /** Let each new or displaced segment fly to its place. Where people want no motion, new ones are only marked for a while. */
  #fly(before, earlier, found) {
    let flights = 0;
    for (const segment of found) {
      const chip = this.chips.get(segment.name);
      const now = chip.getBoundingClientRect();
      if (!now.width) continue;
      const is_new = !before.has(segment.name);
      const from = before.get(segment.name) ?? this.#origin(segment, before, earlier);
      if (is_new) {
        chip.classList.add("new");
        setTimeout(() => chip.classList.remove("new"), 6000);
      }
      const [dx, dy] = from ? [from.left - now.left, from.top - now.top] : [0, 0];
      if (still.matches || !from || (Math.abs(dx) < 2 && Math.abs(dy) < 2)) continue;
      flights += 1;
      chip.classList.add("flying");
      const scale = is_new ? Math.max(0.2, Math.min(4, from.width / now.width)) : 1;
      const steps = [{ transform: `translate(${dx}px, ${dy}px) scaleX(${scale})`, transformOrigin: "top left" }, { transform: "none", transformOrigin: "top left" }];
      const flight = chip.animate(steps, { duration: FLIGHT_MS, easing: "cubic-bezier(.3,.1,.2,1)" });
      flight.finished.catch(() => null).then(() => chip.classList.remove("flying"));
    }
    this.ways.classList.toggle("waiting", flights > 0);
    this.#draw();
    clearTimeout(this.timer);
    if (flights) this.timer = setTimeout(() => { this.ways.classList.remove("waiting"); this.#draw(); }, FLIGHT_MS + 30);
  }

  /** Where a new segment comes from: the same layers on another node, else its piece of the bar. */
  #origin(segment, before, earlier) {
    for (const [name, old] of earlier) {
      if (old.pipeline === segment.pipeline && old.start === segment.start && old.end === segment.end && before.has(name)) return before.get(name);
    }
    const piece = [...this.bar.children].find((child) => child.dataset.key === `${segment.start}-${segment.end}`);
    return (piece ?? this.bar).getBoundingClientRect();
  }

  #draw() {
    if (!this.item) return;
    const box = this.stage.getBoundingClientRect();
    this.arrows.setAttribute("viewBox", `0 0 ${Math.max(1, box.width)} ${Math.max(1, box.height)}`);
    const at = (name) => this.chips.get(name)?.closest(".card")?.getBoundingClientRect();
    const lines = [];
    for (const chain of chainsOf(this.item)) {
      for (let i = 0; i + 1 < chain.length; i += 1) {
        const [a, b] = [at(chain[i].name), at(chain[i + 1].name)];
        if (a && b && chain[i].node !== chain[i + 1].node) lines.push({ key: `${chain[i].name} ${chain[i + 1].name}`, d: line(a, b, box) });
      }
    }
    sync(this.ways, lines, (l) => l.key, () => svg("path", { class: "way", "marker-end": "url(#tip)" }), (path, l) => path.setAttribute("d", l.d));
  }
}

/** All segments to draw: those of the plan, and those that are still there from an earlier one. */
export function segmentsOf(item) {
  const planned = (item.plan?.pipelines ?? []).flatMap((pipeline) => pipeline.segments).map((s) => ({ ...s, planned: true }));
  const known = new Set(planned.map((s) => s.name));
  const serves = new Set(item.serving.flatMap((pipeline) => pipeline.segments).map((s) => s.name));
  const old = item.leaving.filter((s) => !known.has(s.name) && s.node);
  return [...planned, ...old.map((s) => ({ ...s, planned: false, serves: serves.has(s.name) }))];
}

/** The chains that requests take now. */
function chainsOf(item) {
  if (item.serving.length) return item.serving.map((pipeline) => pipeline.segments);
  return item.transition_from ? [] : (item.plan?.pipelines ?? []).map((pipeline) => pipeline.segments);
}

function movement(segment, earlier) {
  const same = [...earlier.values()].find((old) => old.start === segment.start && old.end === segment.end && old.pipeline === segment.pipeline && old.name !== segment.name);
  return same ? `${layers(segment)} move from ${same.node} to ${segment.node}` : `${layers(segment)} go to ${segment.node}`;
}

export function phaseOf(segment) {
  if (!segment.planned) return segment.serves ? "serves until cutover" : "leaving";
  return { Proven: "", Missing: "planned", Starting: "starting", Ready: "being proved", Failed: "failed", Leaving: "leaving" }[segment.phase] ?? segment.phase;
}

function drawChip(chip, segment) {
  const phase = phaseOf(segment);
  chip.dataset.colour = segment.planned ? String(segment.stage % COLOURS) : "old";
  chip.dataset.phase = segment.planned ? segment.phase : "old";
  const [stage, run, time, state] = chip.children;
  say(stage, segment.planned ? String(segment.stage + 1) : "·");
  say(run, layers(segment) + (segment.pipeline ? `, pipeline ${segment.pipeline + 1}` : ""));
  say(time, segment.predicted_ms === null || !segment.planned ? "" : ms(segment.observed_ms ?? segment.predicted_ms));
  say(state, phase);
}

function card() {
  return el("div", { class: "card" },
    el("p", { class: "card-name" }), el("p", { class: "card-state" }),
    el("div", { class: "gauge" }, el("span", { class: "others" }), el("span", { class: "ours" })), el("p", { class: "card-cpu" }),
    el("div", { class: "gauge" }, el("span", { class: "others" }), el("span", { class: "ours" })), el("p", { class: "card-memory" }),
    el("div", { class: "slot" }));
}

function drawCard(element, name, node) {
  const [title, state, cpu, cpuText, bytes, bytesText] = element.children;
  say(title, name);
  title.title = name;
  element.classList.toggle("down", !node || !node.ready);
  say(state, node ? stateOf(node) : "no figures");
  gauge(cpu, node?.usedByOthers, node?.usedByUs);
  say(cpuText, node ? `CPU: others ${percent(node.usedByOthers)}${node.usedByUs ? `, we ${percent(node.usedByUs)}` : ""}` : "");
  const whole = node?.memoryMib || 0;
  gauge(bytes, whole ? node.othersMib / whole : 0, whole ? node.oursMib / whole : 0);
  say(bytesText, node ? `memory: ${room(node.freeMib, whole)} free` : "");
}

/** Both in the unit of the whole, so that the line is short. */
function room(free, whole) {
  const [unit, name] = whole >= 1024 ? [1024, "GiB"] : [1, "MiB"];
  const [left, all] = [free, whole].map((mib) => number(mib === null || mib === undefined ? null : mib / unit, unit > 1 ? 1 : 0));
  return `${left} of ${all} ${name}`;
}

export function stateOf(node) {
  if (!node.ready) return "not ready";
  if (node.cordoned) return "cordoned";
  if (node.excluded) return "no room";
  if (node.pressured) return "runs out of memory";
  return node.zone ? `ready, ${node.zone}` : "ready";
}

export function gauge(element, others, ours) {
  const [first, second] = element.children;
  first.style.width = `${Math.min(100, (others ?? 0) * 100)}%`;
  second.style.width = `${Math.min(100 - (others ?? 0) * 100, (ours ?? 0) * 100)}%`;
  element.classList.toggle("unknown", others === null || others === undefined);
}

/** From card to card, from edge to edge: the line is drawn below the cards, so it covers no text. */
function line(a, b, box) {
  const from = [a.left + a.width / 2 - box.left, a.top + a.height / 2 - box.top];
  const to = [b.left + b.width / 2 - box.left, b.top + b.height / 2 - box.top];
  const end = edge(to, from, b.width / 2 + 3, b.height / 2 + 3);
  const start = edge(from, to, a.width / 2, a.height / 2);
  return `M${start[0].toFixed(1)},${start[1].toFixed(1)} L${end[0].toFixed(1)},${end[1].toFixed(1)}`;
}

function edge([x, y], [towardsX, towardsY], halfWide, halfHigh) {
  const [dx, dy] = [towardsX - x, towardsY - y];
  const share = Math.min(dx ? halfWide / Math.abs(dx) : Infinity, dy ? halfHigh / Math.abs(dy) : Infinity, 1);
  return [x + dx * share, y + dy * share];
}

function inWords(item, found) {
  const planned = found.filter((s) => s.planned);
  if (!planned.length) return `${item.name} is not split yet.`;
  return `${item.name} is split into ${planned.length}: ${planned.map((s) => `${layers(s)} on ${s.node}`).slice(0, 40).join(", ")}.`;
}
