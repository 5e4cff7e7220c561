// Times per token and decisions over time: a chart, and the same decisions as a table.

import { clock, el, ms, number, say, svg, sync } from "./dom.js";
import { List, text } from "./table.js";

const [WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM] = [900, 220, 54, 12, 34, 26];
const KINDS = { first: "first plan", migration: "migration", "re-split": "re-split", keep: "plan kept" };
const MOST = 720;

export class Timeline {
  constructor(chart, list) {
    this.chart = chart;
    this.points = [];
    this.decisions = [];
    this.list = new List(list, {
      what: "Decisions", keyOf: (d) => `${d.time} ${d.reason} ${d.revision} ${d.transition}`, perPage: 10, order: 0, down: false,
      words: (d) => `${d.reason} ${d.message} ${d.transition}`, empty: "No decision has been made yet.",
      columns: [
        { name: "No.", sort: (d) => -d.number, cell: text((d) => String(d.number)) },
        { name: "Time", sort: (d) => -new Date(d.time).getTime() || 0, cell: text((d) => clock(d.time)), class: "nowrap" },
        { name: "What", sort: (d) => d.transition, cell: text((d) => KINDS[d.transition] ?? d.transition), class: "nowrap" },
        { name: "Reason", sort: (d) => d.reason, cell: text((d) => d.reason) },
        { name: "Numbers", cell: text((d) => d.message), class: "wide" },
        { name: "What came of it", cell: text(outcome) },
      ],
    });
  }

  /** All that the server remembers of a resource. */
  load({ points, decisions }) {
    this.points = points;
    this.decisions = [...decisions];
    this.draw();
  }

  /** One more look at it. */
  add(time, item) {
    const known = new Map(this.decisions.map((d) => [`${d.time} ${d.reason} ${d.revision}`, d]));
    for (const decision of item.decisions) known.set(`${decision.time} ${decision.reason} ${decision.revision}`, decision);
    this.decisions = [...known.values()].sort((a, b) => new Date(b.time) - new Date(a.time)).slice(0, 200);
    const last = this.points.at(-1);
    if (!last || new Date(time) - new Date(last.time) >= 5000) this.points = [...this.points, { time, ...item.point }].slice(-MOST);
    this.draw();
  }

  draw() {
    const numbered = this.decisions.map((d, at) => ({ ...d, number: this.decisions.length - at }));
    this.list.set(numbered);
    const points = this.points.map((p) => ({ ...p, at: new Date(p.time).getTime() })).filter((p) => Number.isFinite(p.at));
    const values = points.flatMap((p) => [p.predictedMs, p.observedMs]).filter((v) => v !== null && v !== undefined);
    if (points.length < 2 || !values.length) {
      this.drawing?.remove();
      this.drawing = null;
      if (!this.empty) this.chart.append((this.empty = el("p", { class: "quiet" }, "The chart begins when two looks have figures.")));
      return;
    }
    this.empty?.remove();
    this.empty = null;
    if (!this.drawing) this.#make();
    this.#paint(points, values, numbered);
  }

  #make() {
    this.grid = svg("g", { class: "grid" });
    this.lines = svg("g");
    this.marks = svg("g", { class: "marks" });
    this.drawing = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img" }, this.grid, this.lines, this.marks);
    this.chart.append(this.drawing);
    if (!this.legend) {
      this.legend = el("p", { class: "legend" }, el("span", { class: "key line-observed" }), " observed time per token ", el("span", { class: "key line-predicted" }), " predicted ", el("span", { class: "key mark" }), " decision (its number is in the table)");
      this.chart.after(this.legend);
    }
  }

  #paint(points, values, decisions) {
    const [begin, end] = [points[0].at, points.at(-1).at];
    const top = nice(Math.max(...values));
    const x = (at) => LEFT + ((at - begin) / Math.max(1, end - begin)) * (WIDE - LEFT - RIGHT);
    const y = (value) => HIGH - BOTTOM - (value / top) * (HIGH - TOP - BOTTOM);
    const ticks = [0, top / 2, top];
    sync(this.grid, [
      ...ticks.map((v) => ({ key: `y${v}`, value: v })),
      { key: "begin", label: clock(points[0].time), x: LEFT, anchor: "start" },
      { key: "end", label: clock(points.at(-1).time), x: WIDE - RIGHT, anchor: "end" },
    ], (t) => t.key, () => svg("g", {}, svg("line"), svg("text")), (group, tick) => {
      const [stroke, label] = group.children;
      if (tick.value === undefined) {
        stroke.setAttribute("visibility", "hidden");
        place(label, tick.x, HIGH - 8, tick.anchor);
        say(label, tick.label);
        return;
      }
      for (const [name, value] of Object.entries({ x1: LEFT, x2: WIDE - RIGHT, y1: y(tick.value), y2: y(tick.value) })) stroke.setAttribute(name, value);
      place(label, LEFT - 6, y(tick.value) + 4, "end");
      say(label, `${number(tick.value, top < 10 ? 1 : 0)} ms`);
    });
    const drawn = [["predicted", "predictedMs"], ["observed", "observedMs"]].map(([kind, field]) => ({ kind, d: path(points, field, x, y) }));
    sync(this.lines, drawn, (l) => l.kind, (l) => svg("path", { class: `line-${l.kind}` }), (element, l) => element.setAttribute("d", l.d));
    this.#decisions(decisions, begin, end, x);
    const inTime = decisions.filter((d) => new Date(d.time) >= begin).length;
    this.drawing.setAttribute("aria-label", `Time per token from ${clock(points[0].time)} to ${clock(points.at(-1).time)}: at most ${ms(Math.max(...values))}, now observed ${ms(points.at(-1).observedMs)} and predicted ${ms(points.at(-1).predictedMs)}. ${inTime} decisions, which the table lists.`);
  }

  #decisions(decisions, begin, end, x) {
    let last = -Infinity;
    const shown = [...decisions].reverse().map((d) => ({ ...d, at: new Date(d.time).getTime() })).filter((d) => d.at >= begin && d.at <= end).map((d) => {
      const at = x(d.at);
      const labelled = at - last > 20;
      if (labelled) last = at;
      return { ...d, x: at, labelled };
    });
    sync(this.marks, shown, (d) => `${d.time} ${d.reason} ${d.revision}`, () => svg("g", {}, svg("line"), svg("circle", { r: 9 }), svg("text")), (group, d) => {
      group.setAttribute("class", d.transition === "keep" ? "mark-keep" : "mark-move");
      const [stroke, dot, label] = group.children;
      for (const [name, value] of Object.entries({ x1: d.x, x2: d.x, y1: TOP - 8, y2: HIGH - BOTTOM })) stroke.setAttribute(name, value);
      dot.setAttribute("cx", d.x);
      dot.setAttribute("cy", TOP - 17);
      dot.setAttribute("visibility", d.labelled ? "visible" : "hidden");
      place(label, d.x, TOP - 13, "middle");
      say(label, d.labelled ? String(d.number) : "");
    });
  }
}

function place(element, x, y, anchor) {
  element.setAttribute("x", x);
  element.setAttribute("y", y);
  element.setAttribute("text-anchor", anchor);
}

function path(points, field, x, y) {
  let d = "";
  let pen = false;
  for (const point of points) {
    const value = point[field];
    if (value === null || value === undefined) {
      pen = false;
      continue;
    }
    d += `${pen ? "L" : "M"}${x(point.at).toFixed(1)},${y(value).toFixed(1)}`;
    pen = true;
  }
  return d;
}

function nice(value) {
  const step = 10 ** Math.floor(Math.log10(Math.max(value, 0.1)));
  return Math.ceil((value * 1.1) / step) * step;
}

function outcome(decision) {
  const found = decision.outcome ?? {};
  if (found.paid === undefined) return "";
  const gain = found.observedGainPercent === undefined ? "" : `, ${number(found.observedGainPercent, 1)} % observed, ${number(found.predictedGainPercent, 1)} % predicted`;
  return (found.paid ? "it paid" : "it did not pay") + gain;
}
