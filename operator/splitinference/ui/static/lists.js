// Models, segments, nodes and links as tables, and the tiles above them.

import { byId, el, layers, memory, ms, number, percent, say, sync } from "./dom.js";
import { gauge, phaseOf, segmentsOf, stateOf } from "./picture.js";
import { List, text } from "./table.js";

const BUSY = 0.7;

export function modelList(parent, chosen) {
  return new List(parent, {
    what: "Models", keyOf: (r) => r.key, perPage: 15, order: 0, words: (r) => `${r.key} ${r.model} ${ready(r).reason}`,
    empty: "There is no SplitInference here. kubectl apply -f makes one; the tutorial has an example.",
    filters: { all: () => true, "not ready": (r) => ready(r).status !== "True", moving: (r) => Boolean(r.transition_to) },
    columns: [
      { name: "Name", sort: (r) => r.key, cell: (cell, r) => pick(cell, r, chosen) },
      { name: "State", sort: (r) => ready(r).status, cell: (cell, r) => state(cell, r) },
      { name: "Model", sort: (r) => r.model, cell: text((r) => r.model || "–") },
      { name: "Segments", cell: text((r) => r.proven || "–") },
      { name: "Time per token", sort: (r) => r.point.observedMs ?? r.point.predictedMs, cell: text((r) => (r.point.observedMs === null ? `${ms(r.point.predictedMs)} predicted` : `${ms(r.point.observedMs)} observed`)) },
      { name: "In flight", sort: (r) => r.running, cell: text((r) => number(r.running)) },
    ],
  });
}

function pick(cell, item, chosen) {
  let button = cell.firstElementChild;
  if (!button) cell.append((button = el("button", { type: "button", class: "pick", click: () => chosen.choose(button.dataset.of) })));
  button.dataset.of = item.key;
  button.setAttribute("aria-pressed", String(chosen.key === item.key));
  say(button, item.key);
}

export function ready(item) {
  return item.conditions.find((c) => c.kind === "Ready") ?? { status: "Unknown", reason: "NotSeen", message: "The operator has not looked at this resource yet. Is it running, and does it serve this namespace?" };
}

/** A state in one word, and how good it is. */
export function stateOfModel(item) {
  const found = ready(item);
  if (found.status === "True") return item.transition_to ? ["moving", "wait"] : ["ready", "good"];
  return found.status === "False" ? [found.reason, "bad"] : [found.reason === "NotSeen" ? "not seen yet" : found.reason, "wait"];
}

function state(cell, item) {
  const [words, how] = stateOfModel(item);
  let badge = cell.firstElementChild;
  if (!badge) cell.append((badge = el("span", { class: "badge" })));
  badge.dataset.how = how;
  say(badge, words);
}

export function segmentTable(parent) {
  const heads = ["Layers", "Node", "State", "Weights", "KV", "Predicted", "Observed", "Hop to next", "Stage"];
  const body = el("tbody");
  parent.append(el("table", {}, el("caption", { class: "hidden-text" }, "Segments of the plan"), el("thead", {}, el("tr", {}, ...heads.map((h) => el("th", { scope: "col" }, h)))), body));
  const nothing = el("p", { class: "quiet", hidden: true }, "There is no plan yet. The conditions above say why.");
  parent.append(nothing);
  return (item) => {
    const found = segmentsOf(item).slice(0, 400);
    sync(body, found, (s) => s.name, () => el("tr", {}, el("th", { scope: "row" }), ...heads.slice(1).map(() => el("td"))), (row, s) => {
      const hop = s.observedHopMs || s.hopMs || null; // the last stage has none
      const words = [layers(s), s.node + (s.processor ? ` (${s.processor})` : ""), phaseOf(s) || "serves", memory(s.weight_mib), memory(s.kv_mib), ms(s.predicted_ms), ms(s.observed_ms), ms(hop), s.planned ? `${s.stage + 1}${s.pipeline ? ` of pipeline ${s.pipeline + 1}` : ""}` : "–"];
      words.forEach((w, at) => say(row.children[at], w));
    });
    body.parentElement.hidden = !found.length;
    nothing.hidden = found.length > 0;
  };
}

export function nodeList(parent) {
  const serves = (n) => n.held.length > 0;
  return new List(parent, {
    what: "Nodes", keyOf: (n) => n.name, words: (n) => `${n.name} ${n.zone} ${n.held.map((h) => `${h.namespace}/${h.resource}`).join(" ")}`,
    empty: "No node is known here.", order: 0,
    filters: { all: () => true, "with segments": serves, "not usable": (n) => !n.ready || n.cordoned || Boolean(n.excluded) || Boolean(n.pressured), "busy (over 70 %)": (n) => n.usedByOthers !== null && n.usedByOthers > BUSY, "use unknown": (n) => n.usedByOthers === null },
    columns: [
      { name: "Node", sort: (n) => n.name, cell: text((n) => n.name) },
      { name: "State", sort: stateOf, cell: text((n) => stateOf(n) + (n.excluded || n.pressured ? `: ${n.excluded || n.pressured}` : "")) },
      { name: "Cores", sort: (n) => n.cores, cell: text((n) => number(n.cores, 1)) },
      { name: "CPU used by others, by us", sort: (n) => n.usedByOthers, cell: (cell, n) => meter(cell, n.usedByOthers, n.usedByUs, n.usedByOthers === null ? "unknown" : percent(n.usedByOthers) + (n.usedByUs === null ? "" : `, ${percent(n.usedByUs)}`)) },
      { name: "Memory: others, we, free", sort: (n) => n.freeMib, cell: (cell, n) => meter(cell, n.memoryMib ? n.othersMib / n.memoryMib : null, n.memoryMib ? n.oursMib / n.memoryMib : null, `${memory(n.othersMib)}, ${memory(n.oursMib)}, ${memory(n.freeMib)}`) },
      { name: "Holds", sort: (n) => n.held.length, cell: text((n) => n.held.slice(0, 6).map((h) => `${h.resource} ${run(h)}`).join(", ") + (n.held.length > 6 ? ` and ${n.held.length - 6} more` : "")) },
    ],
  });
}

/** What a pod holds: labels have layers as start-end, half-open. */
function run(held) {
  const [start, end] = held.layers.split("-").map(Number);
  return end > start ? layers({ start, end }) : held.component;
}

function meter(cell, others, ours, words) {
  if (!cell.firstElementChild) cell.append(el("div", { class: "gauge", "aria-hidden": "true" }, el("span", { class: "others" }), el("span", { class: "ours" })), el("span", { class: "nowrap" }));
  gauge(cell.children[0], others, ours);
  say(cell.children[1], words);
}

/** How many nodes are how busy: a thousand at one glance. */
export function drawFleet(parent, nodes) {
  const bands = [["idle to 20 %", 0, 0.2], ["20 to 40 %", 0.2, 0.4], ["40 to 60 %", 0.4, 0.6], ["60 to 80 %", 0.6, 0.8], ["over 80 %", 0.8, 1.01]];
  const usable = nodes.filter((n) => n.ready);
  const found = bands.map(([name, low, high]) => ({ name, count: usable.filter((n) => n.usedByOthers !== null && n.usedByOthers >= low && n.usedByOthers < high).length }));
  found.push({ name: "unknown", count: usable.filter((n) => n.usedByOthers === null).length }, { name: "not ready", count: nodes.length - usable.length });
  const most = Math.max(1, ...found.map((f) => f.count));
  parent.hidden = nodes.length < 2;
  if (!parent.firstElementChild) parent.append(el("h3", {}, "CPU that others use"), el("ul", { "aria-label": "Nodes by CPU that others use" }));
  sync(parent.children[1], found, (f) => f.name, () => el("li", {}, el("span", { class: "band" }), el("span", { class: "band-bar" }, el("span")), el("span", { class: "band-count" })), (row, band) => {
    say(row.children[0], band.name);
    row.children[1].firstElementChild.style.width = `${(band.count / most) * 100}%`;
    say(row.children[2], `${number(band.count)} ${band.count === 1 ? "node" : "nodes"}`);
  });
}

export function linkList(parent) {
  return new List(parent, {
    what: "Links", keyOf: (l) => `${l.source}→${l.target}`, perPage: 25, order: 3, down: true,
    words: (l) => `${l.source} ${l.target}`, empty: "No link differs from the usual one, or none was measured.",
    columns: [
      { name: "From", sort: (l) => l.source, cell: text((l) => l.source) },
      { name: "To", sort: (l) => l.target, cell: text((l) => l.target) },
      { name: "Bandwidth", sort: (l) => l.mbps, cell: text((l) => (l.mbps >= 1000 ? `${number(l.mbps / 1000, 1)} Gbit/s` : `${number(l.mbps, 1)} Mbit/s`)) },
      { name: "Round trip", sort: (l) => l.rttMs, cell: text((l) => ms(l.rttMs)) },
    ],
  });
}

export function drawTiles(parent, resources, nodes) {
  const running = resources.map((r) => r.running).filter((n) => n !== null);
  const free = nodes.filter((n) => n.ready).reduce((sum, n) => sum + n.freeMib, 0);
  const tiles = [
    ["Models ready", `${resources.filter((r) => ready(r).status === "True").length} of ${resources.length}`],
    ["Requests in flight", running.length ? number(running.reduce((a, b) => a + b, 0)) : "unknown"],
    ["Nodes ready", nodes.length ? `${nodes.filter((n) => n.ready).length} of ${nodes.length}` : "unknown"],
    ["Nodes with segments", number(nodes.filter((n) => n.held.length).length)],
    ["Memory free", nodes.length ? memory(free) : "unknown"],
  ];
  sync(parent, tiles, ([name]) => name, () => el("li", {}, el("span", { class: "tile-value" }), el("span", { class: "tile-name" })), (tile, [name, value]) => {
    say(tile.children[0], value);
    say(tile.children[1], name);
  });
}

const LIMITS = { timeToFirstToken: "first token", timePerOutputToken: "each token" };

/** Limits of the resource in words: first token 2500 ms. */
function limits(slo) {
  return Object.entries(slo).map(([name, value]) => `${LIMITS[name] ?? name} ${String(value).replace(/^([\d.]+)([a-z]+)$/, "$1 $2")}`).join(", ");
}

export function drawModel(item) {
  const [words, how] = stateOfModel(item);
  say(byId("model-title"), item.key);
  say(byId("model-state"), words);
  byId("model-state").dataset.how = how;
  const bad = item.conditions.filter((c) => !c.good).map((c) => `${c.kind} is ${c.status} (${c.reason}): ${c.message}`);
  const steps = item.steps.length ? [`Next steps: ${item.steps.join("; ")}${item.waiting.length ? `; waiting for ${item.waiting.join(", ")}` : ""}.`] : [];
  say(byId("model-message"), [ready(item).status === "True" ? "" : ready(item).message, ...bad.filter((b) => !b.startsWith("Ready")), ...steps].filter(Boolean).join(" · "));
  const seen = item.traffic;
  const figures = [
    ["Predicted time per token", ms(item.point.predictedMs)],
    ["Observed time per token", ms(item.point.observedMs)],
    ["Predicted time to first token", ms(item.plan?.predicted.timeToFirstTokenMs)],
    ["Requests in flight", item.running === null ? "unknown" : number(item.running)],
    ["Requests seen", seen ? `${number(seen.requests)} in ${number(seen.window_seconds)} s, ${number(seen.failed)} failed` : "none"],
    ["Proof", item.plan ? (item.plan.optimal ? "proven best" : item.plan.gap === null ? "not proven" : `at most ${number(item.plan.gap * 100, 1)} % from the best`) : "–"],
    ["Limits", limits(item.slo) || "none"],
    ["Mode", item.mode || "–"],
  ];
  sync(byId("model-figures"), figures, ([name]) => name, () => el("div", {}, el("dt"), el("dd")), (row, [name, value]) => {
    say(row.children[0], name);
    say(row.children[1], value);
  });
  byId("why").hidden = !item.plan?.explanation.length;
  sync(byId("explanation"), item.plan?.explanation ?? [], (line) => line, () => el("li"), (row, line) => say(row, line));
}
