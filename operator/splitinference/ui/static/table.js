// A list of many things: search, filter, sorting and pages. Only one page is in the document, so a thousand rows stay quick.

import { el, say, sync } from "./dom.js";

const typing = 150;

/**
 * `columns`: {name, text(item), sort(item), cell(td, item), wide}; `filters`: {name: test(item)}.
 * `set(items)` shows other items; the choice of page, order and search stays.
 */
export class List {
  constructor(parent, { what, columns, keyOf, filters = {}, words = keyOf, perPage = 50, order = 0, down = false, empty }) {
    Object.assign(this, { what, columns, keyOf, filters, words, perPage, order, down, empty });
    this.items = [];
    this.page = 0;
    this.search = "";
    this.filter = Object.keys(filters)[0] ?? "";
    const id = what.replace(/\W+/g, "-");
    this.input = el("input", { type: "search", id: `${id}-search`, autocomplete: "off", spellcheck: "false", maxlength: 200, input: () => this.#typed() });
    this.choice = el("select", { id: `${id}-filter`, change: () => this.#chose(() => (this.filter = this.choice.value)) });
    this.choice.append(...Object.keys(filters).map((name) => el("option", { value: name }, name)));
    this.count = el("p", { class: "count", role: "status" });
    this.back = el("button", { type: "button", click: () => this.#turn(-1) }, "Previous");
    this.next = el("button", { type: "button", click: () => this.#turn(1) }, "Next");
    this.heads = columns.map((column, index) => this.#head(column, index));
    this.body = el("tbody");
    const caption = el("caption", { class: "hidden-text" }, what);
    this.table = el("table", {}, caption, el("thead", {}, el("tr", {}, ...this.heads)), this.body);
    this.nothing = el("p", { class: "quiet", hidden: true });
    const tools = el("div", { class: "tools" },
      el("label", { for: `${id}-search` }, `Search ${what.toLowerCase()}`), this.input,
      Object.keys(filters).length > 1 && el("label", { for: `${id}-filter` }, "Show"),
      Object.keys(filters).length > 1 && this.choice,
      this.count);
    this.tools = tools;
    this.pager = el("nav", { class: "pager", "aria-label": `Pages of ${what.toLowerCase()}` }, this.back, this.next);
    parent.append(tools, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Table: ${what.toLowerCase()}` }, this.table), this.nothing, this.pager);
  }

  #head(column, index) {
    if (!column.sort) return el("th", { scope: "col" }, column.name);
    return el("th", { scope: "col" }, el("button", { type: "button", class: "sort", click: () => this.#sortBy(index) }, column.name));
  }

  #sortBy(index) {
    this.#chose(() => {
      this.down = this.order === index ? !this.down : false;
      this.order = index;
    });
  }

  #typed() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#chose(() => (this.search = this.input.value.trim().toLowerCase())), typing);
  }

  #chose(change) {
    change();
    this.page = 0;
    this.draw();
  }

  #turn(by) {
    this.page += by;
    this.draw();
  }

  set(items) {
    this.items = items;
    this.draw();
  }

  draw() {
    const test = this.filters[this.filter] ?? (() => true);
    const found = this.items.filter((item) => test(item) && (!this.search || this.words(item).toLowerCase().includes(this.search)));
    const column = this.columns[this.order];
    if (column?.sort) {
      const sign = this.down ? -1 : 1;
      // What is not known comes last, whichever way.
      const keyed = found.map((item) => [column.sort(item), item]);
      keyed.sort(([a], [b]) => (a === null) - (b === null) || sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b));
      found.splice(0, found.length, ...keyed.map(([, item]) => item));
    }
    const pages = Math.max(1, Math.ceil(found.length / this.perPage));
    this.page = Math.min(Math.max(this.page, 0), pages - 1);
    const shown = found.slice(this.page * this.perPage, (this.page + 1) * this.perPage);
    sync(this.body, shown, this.keyOf, () => this.#row(), (row, item) => this.columns.forEach((c, at) => c.cell(row.children[at], item)));
    this.heads.forEach((head, at) => {
      if (this.columns[at].sort) head.setAttribute("aria-sort", at === this.order ? (this.down ? "descending" : "ascending") : "none");
    });
    const first = found.length ? this.page * this.perPage + 1 : 0;
    const of = found.length === this.items.length ? "" : ` (of ${this.items.length})`;
    say(this.count, found.length ? `${first}–${first + shown.length - 1} of ${found.length}${of}` : "");
    this.pager.hidden = pages === 1;
    this.tools.hidden = this.items.length < 6 && !this.search && pages === 1;
    this.back.disabled = this.page === 0;
    this.next.disabled = this.page === pages - 1;
    this.table.hidden = !found.length;
    this.nothing.hidden = found.length > 0;
    say(this.nothing, this.items.length ? "Nothing matches the search and the filter." : this.empty);
  }

  #row() {
    return el("tr", {}, ...this.columns.map((column, at) => el(at === 0 ? "th" : "td", at === 0 ? { scope: "row", class: column.class } : { class: column.class })));
  }
}

/** A cell of text. */
export const text = (of) => (cell, item) => say(cell, of(item));
