// Classes and history: what it knows, how well, since when; and what takes something of it back, with a question first.

import { Fault, follow, json } from "./api.js";
import { $, bar, button, count, el, fault, fill, number, percent, say, some } from "./dom.js";
import { question } from "./files.js";
import { learner, onLearner, refresh } from "./state.js";
import { outcome } from "./work.js";

/** Have the server change something of the learner as it is seen here. */
async function change(path, value, title) {
  const place = $("classes-message");
  location.hash = "#classes";
  fill(place, el("p", { className: "soft", role: "status" }, "Working…"));
  try {
    const job = await json("POST", path, value, { "If-Match": `"${learner.version}"` });
    const result = await follow(job, () => null);
    await refresh();
    fill(place, outcome(title, result, () => { place.replaceChildren(); $("classes-title").focus(); }));
    say(title);
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    fill(place, fault(error.message));
    refresh().catch(() => null);
  }
}

async function forget(one) {
  const text = `Its ${count(one.images, "image")} will be taken away, exactly as if ${one.images === 1 ? "it" : "they"} had never been learned.`;
  if (await question({ title: `Forget ${one.name}?`, text, action: "Forget", danger: true })) {
    await change("/v1/forget", { classes: [one.name] }, `Forgot ${one.name}`);
  }
}

async function rename(one) {
  const check = (name) => {
    if (!name || name === one.name) return { no: true };
    if (name === "unknown") return { no: true, hint: "This name is kept for images of no class." };
    const there = learner.classes.find((other) => other.name === name);
    return there ? { action: "Join both", hint: `${name} is a class too, of ${count(there.images, "image")}: both become one.` } : {};
  };
  const input = { label: "New name; that of another class joins both", value: one.name, check };
  const name = await question({ title: `Rename ${one.name}`, action: "Rename", input });
  if (!name) return;
  const join = learner.classes.some((other) => other.name === name);
  await change("/v1/rename", { old: one.name, new: name, join }, join ? `${one.name} and ${name} are one class now: ${name}` : `${one.name} is called ${name} now`);
}

async function undo() {
  const last = learner.tasks.at(-1);
  if (!last) return;
  const images = Object.values(last.images).reduce((sum, one) => sum + one, 0);
  const text = `${count(images, "image")} of ${count(Object.keys(last.images).length, "class")} (${some(Object.keys(last.images))}) will be taken away, as if they had never been learned.`;
  if (await question({ title: `Undo ${last.name}?`, text, action: "Undo", danger: true })) await change("/v1/undo", {}, `Undid ${last.name}`);
}

function row(one) {
  const found = one.left_out;
  const right = found
    ? el("div", { className: "share" }, bar(found.right / found.images), el("span", { className: "number" }, `${percent(found.right / found.images, 0)} `, el("span", { className: "soft" }, `${found.right} of ${found.images}`)))
    : el("span", { className: "soft" }, one.images === 1 ? "the only image" : "not measured");
  const other = one.confused_with;
  const actions = !learner.read_only && el("span", { className: "actions" },
    button("Rename", () => rename(one), { className: "quiet", "aria-label": `Rename ${one.name}` }),
    button("Forget", () => forget(one), { className: "quiet", "aria-label": `Forget ${one.name}` }));
  return el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader" }, one.name),
    el("td", { className: "number", role: "cell" }, number(one.images), el("span", { className: "on-phone" }, one.images === 1 ? " image" : " images")),
    el("td", { role: "cell" }, right),
    el("td", { role: "cell" }, found && el("span", { className: "on-phone" }, other ? "Most often taken for " : "Taken for "), other ? `${other.name} (${count(other.images, "time")})` : el("span", { className: "soft" }, found ? "no other" : "")),
    el("td", { role: "cell" }, actions));
}

function rows() {
  const wanted = $("filter").value.trim().toLowerCase();
  const shown = learner.classes.filter((one) => one.name.toLowerCase().includes(wanted));
  fill($("class-rows"), shown.map(row));
  $("classes-none").hidden = shown.length > 0;
}

function showClasses(it) {
  const none = it.classes.length === 0;
  $("classes-empty").hidden = !none;
  $("classes-body").hidden = none && !$("classes-message").hasChildNodes();
  document.querySelector("table.classes").hidden = none;
  $("classes-about").hidden = none;
  $("undo").hidden = it.read_only || !it.tasks.length;
  $("undo").title = it.can_mend || it.tasks.length === 1 ? "" : `The method ${it.method} has not kept what this takes`;
  $("classes-filter").hidden = it.classes.length < 13;
  $("classes-about").textContent = it.left_out
    ? "Each image it learned is answered once more as if it had not been learned; this is how many of these answers are right."
    : "How well it answers is not measured: the method keeps no images' share apart, or there is one image a class.";
  rows();
}

const when = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const WORDS = {
  forget: ({ names }) => `Forgot ${some(names)}`,
  rename: ({ names }) => `Renamed ${names[0]} to ${names.at(-1)}`,
  undo: ({ names }) => `Undid ${some(names)}`,
  correct: ({ names, images }) => `Moved ${count(images, "image")} to ${some(names)}`,
};

function showHistory(it) {
  const tasks = it.tasks.map((task) => ({ when: task.when, title: `Learned ${task.name}`, images: task.images, kind: "task" }));
  const changes = it.changes.map((one) => ({ when: one.when, title: WORDS[one.what](one), images: null, kind: "change", count: one.images }));
  const events = [...tasks, ...changes].sort((a, b) => (a.when < b.when ? 1 : a.when > b.when ? -1 : 0));
  $("history-empty").hidden = events.length > 0;
  fill($("events"), events.map((one) => {
    const names = one.images && Object.keys(one.images);
    const images = names ? Object.values(one.images).reduce((sum, value) => sum + value, 0) : one.count;
    const text = names ? `${count(images, "image")}: ${some(names.map((name) => `${name} (${number(one.images[name])})`), 12)}` : count(images, "image");
    return el("li", { className: one.kind }, el("time", { dateTime: one.when }, when.format(new Date(one.when))), el("h3", {}, one.title), el("p", { className: "soft" }, text));
  }));
  const more = it.tasks_in_all - it.tasks.length;
  $("history-more").hidden = more <= 0;
  $("history-more").textContent = `${count(more, "earlier task")} not shown.`;
}

export function begin() {
  $("undo").onclick = undo;
  $("filter").addEventListener("input", rows);
  onLearner(showClasses);
  onLearner(showHistory);
}
