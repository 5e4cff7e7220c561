// The page: what the server said last, what is chosen, and which parts show it.

import { byId, say, show, span, sync, el } from "./dom.js";
import { drawFleet, drawModel, drawTiles, linkList, modelList, nodeList, segmentTable } from "./lists.js";
import { Picture } from "./picture.js";
import { ask, dropToken, follow, keepToken, takeToken } from "./stream.js";
import { Timeline } from "./timeline.js";
import { WhatIf } from "./whatif.js";

const state = { nodes: new Map(), resources: new Map(), links: new Map(), notes: [], read: "", age: null, problem: "", at: 0, linked: false, first: false };
const chosen = { key: decodeURIComponent(new URLSearchParams(location.search).get("resource") ?? ""), choose };

const models = modelList(byId("models-list"), chosen);
const nodes = nodeList(byId("nodes-list"));
const links = linkList(byId("links-list"));
const picture = new Picture(byId("picture"));
const segments = segmentTable(byId("segments"));
const timeline = new Timeline(byId("chart"), byId("decisions"));
let whatIf = null;
let drawn = "";

function choose(key) {
  chosen.key = key;
  const url = new URL(location.href);
  url.searchParams.set("resource", key);
  history.replaceState(null, "", url);
  draw();
  byId("model").scrollIntoView({ block: "start" });
}

function apply(kind, change) {
  if (!change) return;
  for (const key of change.gone) state[kind].delete(key);
  for (const [key, item] of Object.entries(change.set)) state[kind].set(key, item);
}

function got(event, data) {
  state.linked = true;
  if (event === "end") return signIn(data.error);
  if (event === "beat") {
    if (data.problem) Object.assign(state, { problem: data.problem });
    return status();
  }
  if (data.full) for (const kind of ["nodes", "resources", "links"]) state[kind] = new Map();
  for (const kind of ["nodes", "resources", "links"]) apply(kind, data[kind]);
  if (data.nodes) state.nodes = new Map([...state.nodes].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true })));
  Object.assign(state, { notes: data.notes, read: data.read, age: data.age, problem: data.problem, at: performance.now(), first: true });
  draw();
  return undefined;
}

function lost(error) {
  state.linked = false;
  if (error.status === 401 || error.status === 403) {
    signIn(error.message);
    return;
  }
  state.problem = error.status === 503 ? error.message : "The page's server does not answer. The page tries again.";
  status();
}

const sentence = (words) => `${words.charAt(0).toUpperCase()}${words.slice(1).replace(/[.\s]+$/, "")}.`;

/** How old what is shown is, and what is wrong. */
function status() {
  const age = state.age === null ? null : state.age + (performance.now() - state.at) / 1000;
  const old = state.linked && !state.problem && age !== null && age < 30;
  const words = age === null ? "Connecting" : old ? "Live" : `Shown as of ${span(age)} ago`;
  say(byId("link"), words);
  byId("link").dataset.state = old ? "good" : age === null ? "wait" : "bad";
  // The age is above, and goes on there: a message that changes would be read aloud again and again.
  const trouble = state.problem && (state.first || age === null) ? `${sentence(state.problem)}${age === null ? "" : " You see the last known state."}` : "";
  show(byId("problem"), Boolean(trouble));
  say(byId("problem"), trouble);
}

function draw() {
  status();
  const empty = state.age === null;
  show(byId("content"), !empty);
  show(byId("sign-in"), false);
  show(byId("notes"), state.notes.length > 0);
  sync(byId("notes"), state.notes, (note) => note, () => el("li"), (row, note) => say(row, note));
  if (empty) return;
  const resources = [...state.resources.values()];
  const list = [...state.nodes.values()];
  if (!state.resources.has(chosen.key)) chosen.key = resources[0]?.key ?? "";
  drawTiles(byId("tiles"), resources, list);
  models.set(resources);
  nodes.set(list);
  links.set([...state.links.values()]);
  drawFleet(byId("fleet"), list);
  model(state.resources.get(chosen.key));
}

function model(item) {
  show(byId("model"), Boolean(item));
  show(byId("time"), Boolean(item));
  whatIf?.set(item, state.nodes);
  if (!item) return;
  drawModel(item);
  segments(item);
  const moved = picture.set(item, state.nodes);
  if (moved.length && drawn === item.key) say(byId("said"), moved.slice(0, 4).join("; "));
  if (drawn === item.key) timeline.add(state.read, item);
  else {
    drawn = item.key;
    timeline.load({ points: [], decisions: item.decisions });
    ask(`/api/history?resource=${encodeURIComponent(item.key)}`).then((past) => drawn === item.key && timeline.load(past)).catch(() => null);
  }
}

function signIn(words) {
  show(byId("content"), false);
  show(byId("sign-in"), asksForToken);
  show(byId("sign-out"), false);
  show(byId("notes"), false);
  show(byId("problem"), !asksForToken);
  state.age = null;
  state.first = false;
  if (!asksForToken) say(byId("problem"), words);
  else if (words && takeToken()) say(byId("sign-in-problem"), words);
  dropToken();
  say(byId("link"), "Not connected");
  byId("link").dataset.state = "bad";
  if (asksForToken) byId("token").focus();
}

byId("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(byId("token").value.trim());
  byId("token").value = "";
  say(byId("sign-in-problem"), "");
  show(byId("sign-out"), true);
  follow(got, lost);
});
byId("sign-out").addEventListener("click", () => {
  dropToken();
  location.reload();
});

let asksForToken = false;
async function begin() {
  takeToken();
  for (;;) {
    try {
      const about = await ask("/api/about");
      asksForToken = about.signIn;
      if (about.whatIf) whatIf = new WhatIf(byId("what-if"), byId("what-if-form"), byId("what-if-answer"));
      show(byId("sign-out"), asksForToken && Boolean(takeToken()));
      break;
    } catch (error) {
      lost(error);
      await new Promise((done) => setTimeout(done, 2000));
    }
  }
  follow(got, lost);
}

setInterval(status, 1000);
begin();
