// The what-if form: changes, a question to the planner, and its answer beside what happens if nothing moves.

import { el, layers, memory, ms, number, say, show, sync } from "./dom.js";
import { ask } from "./stream.js";

export class WhatIf {
  constructor(section, form, answer) {
    Object.assign(this, { section, form, answer, removed: [], busy: new Map(), rules: [] });
    const names = el("datalist", { id: "node-names" });
    this.names = names;
    this.gone = field("What if a node goes away?", "what-if-gone", { list: "node-names", placeholder: "name of a node" });
    this.loaded = field("What if others use a node?", "what-if-busy", { list: "node-names", placeholder: "name of a node" });
    this.load = field("by percent", "what-if-load", { type: "number", min: 0, max: 100, step: 5, value: 80 });
    this.first = field("Limit on time to first token (ms)", "what-if-first", { type: "number", min: 0, step: 10 });
    this.next = field("Limit on time per token (ms)", "what-if-next", { type: "number", min: 0, step: 1 });
    this.layers = field("Layers", "what-if-layers", { placeholder: "first, last or 0:4" });
    this.label = field("only on nodes with the label", "what-if-label", { placeholder: "example.com/zone=a" });
    this.changes = el("ul", { class: "changes", "aria-label": "Changes" });
    this.button = el("button", { type: "submit" }, "Ask the planner");
    this.wrong = el("p", { class: "bad-text", role: "alert" });
    form.append(
      names,
      group("Nodes", this.gone, add("Take it away", () => this.#gone()), this.loaded, this.load, add("Load it", () => this.#busy())),
      group("Limits (empty: as in the resource; 0: none)", this.first, this.next),
      group("Privacy rule", this.layers, this.label, add("Add the rule", () => this.#rule())),
      this.changes, this.wrong, this.button);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask();
    });
  }

  set(item, nodes) {
    show(this.section, Boolean(item) && nodes.size > 0);
    if (this.item?.key !== item?.key) this.answer.replaceChildren();
    this.item = item;
    this.nodes = nodes;
    const listed = [...nodes.keys()].slice(0, 2000);
    if (this.names.children.length !== listed.length) this.names.replaceChildren(...listed.map((name) => el("option", { value: name })));
  }

  #node(input) {
    const name = input.value.trim();
    if (!this.nodes.has(name)) return this.#fault(name ? `There is no node ${name}.` : "Name a node.", input);
    this.#fault("");
    input.value = "";
    return name;
  }

  #fault(words, input) {
    say(this.wrong, words);
    input?.focus();
    return null;
  }

  #gone() {
    const name = this.#node(this.gone.input);
    if (name && !this.removed.includes(name)) this.removed.push(name);
    this.#list();
  }

  #busy() {
    const load = Number(this.load.input.value);
    if (!(load >= 0 && load <= 100)) return this.#fault("The load is a percentage from 0 to 100.", this.load.input);
    const name = this.#node(this.loaded.input);
    if (name) this.busy.set(name, load);
    return this.#list();
  }

  #rule() {
    const run = this.layers.input.value.trim();
    const [key, value, more] = this.label.input.value.trim().split("=");
    if (!run) return this.#fault("Say which layers: first, last or a range such as 0:4.", this.layers.input);
    if (!key || value === undefined || more !== undefined) return this.#fault("A label is written as key=value.", this.label.input);
    this.rules.push({ layers: run, labels: { [key]: value } });
    this.layers.input.value = this.label.input.value = "";
    this.#fault("");
    return this.#list();
  }

  #list() {
    const all = [
      ...this.removed.map((name) => ({ words: `${name} goes away`, undo: () => (this.removed = this.removed.filter((n) => n !== name)) })),
      ...[...this.busy].map(([name, load]) => ({ words: `others use ${load} % of ${name}`, undo: () => this.busy.delete(name) })),
      ...this.rules.map((rule) => ({ words: `layers ${rule.layers} only on nodes with ${Object.entries(rule.labels)[0].join("=")}`, undo: () => (this.rules = this.rules.filter((r) => r !== rule)) })),
    ];
    sync(this.changes, all, (change) => change.words, () => el("li", {}, el("span"), el("button", { type: "button", class: "plain" }, "Undo")), (row, change) => {
      say(row.children[0], change.words);
      row.children[1].setAttribute("aria-label", `Undo: ${change.words}`);
      row.children[1].onclick = () => {
        change.undo();
        this.#list();
      };
    });
  }

  async #ask() {
    const limit = (input) => (input.value === "" ? null : Number(input.value));
    const question = { resource: this.item.key, remove: this.removed, busy: Object.fromEntries(this.busy), first_token_ms: limit(this.first.input), next_token_ms: limit(this.next.input), rules: this.rules };
    this.button.disabled = true;
    this.#fault("");
    this.answer.replaceChildren(el("p", { class: "quiet" }, "The planner is at work."));
    try {
      const found = await ask("/api/what-if", { method: "POST", body: JSON.stringify(question), headers: { "Content-Type": "application/json" } });
      this.answer.replaceChildren(...answered(found));
    } catch (error) {
      this.answer.replaceChildren();
      this.#fault(error.status ? error.message : "The page's server does not answer. Ask again.");
    } finally {
      this.button.disabled = false;
    }
  }
}

function field(label, id, attributes) {
  const input = el("input", { id, autocomplete: "off", spellcheck: "false", ...attributes });
  const row = el("div", { class: "field" }, el("label", { for: id }, label), input);
  row.input = input;
  return row;
}

const group = (name, ...parts) => el("fieldset", {}, el("legend", {}, name), ...parts);
const add = (name, click) => el("button", { type: "button", click }, name);

function answered(found) {
  const head = {
    solved: found.optimal ? "This plan is proven best for these figures." : `This plan is at most ${number((found.gap ?? 0) * 100, 1)} % from the best.`,
    infeasible: "No plan exists.",
    timedOut: found.plan ? "The time was over. This is the best plan so far." : "The time was over before a plan was found.",
  }[found.outcome];
  const parts = [el("h3", {}, "Answer"), el("p", {}, head)];
  for (const reason of found.reasons ?? []) parts.push(el("p", {}, `${reason.message} ${reason.relaxation ? `What would do: ${reason.relaxation}` : ""}`));
  parts.push(comparison(found));
  if (found.stay?.violations.length) parts.push(el("p", {}, `If nothing moves: ${found.stay.violations.join("; ")}.`));
  if (found.plan) parts.push(plan(found));
  if (found.notes.length) parts.push(el("ul", { class: "quiet" }, ...found.notes.map((note) => el("li", {}, note))));
  return parts;
}

function comparison(found) {
  const rows = [["Now", found.now?.predicted], ["Then, if nothing moves", found.stay?.predicted], ["Then, with the new plan", found.plan?.predicted]];
  const heads = ["", "Time to first token", "Time per token", "Tokens per second"];
  return el("table", {}, el("caption", { class: "hidden-text" }, "Predicted times"),
    el("thead", {}, el("tr", {}, ...heads.map((h) => (h ? el("th", { scope: "col" }, h) : el("td"))))),
    el("tbody", {}, ...rows.map(([name, p]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, ms(p?.firstTokenMs)), el("td", {}, ms(p?.nextTokenMs)), el("td", {}, number(p?.tokensPerSecond, 1))))));
}

function plan(found) {
  const before = found.now?.segments ?? [];
  const rows = found.plan.segments.map((s) => {
    const same = before.find((b) => b.pipeline === s.pipeline && b.start === s.start && b.end === s.end);
    const change = !same ? "new cut" : same.node === s.node ? "stays" : `moves from ${same.node}`;
    return el("tr", {}, el("th", { scope: "row" }, layers(s)), el("td", {}, s.nodes.join(", ")), el("td", {}, change), el("td", {}, memory(s.memoryMib)), el("td", {}, ms(s.predictedMs)), el("td", {}, ms(s.hopMs || null)));
  });
  const heads = ["Layers", "Node", "Change", "Memory", "Predicted", "Hop to next"];
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The new plan" },
    el("table", {}, el("caption", { class: "hidden-text" }, "The new plan"), el("thead", {}, el("tr", {}, ...heads.map((h) => el("th", { scope: "col" }, h)))), el("tbody", {}, ...rows)));
}
