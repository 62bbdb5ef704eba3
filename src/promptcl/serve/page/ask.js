// Ask: images, their answers as bars, and corrections that gather in a tray until they are learned.

import { Fault, send } from "./api.js";
import { $, bar, button, count, dropAddress, el, fault, fill, percent, say, some, view } from "./dom.js";
import { choose, onDrop, onPaste, photo } from "./files.js";
import { learner, onLearner } from "./state.js";
import { form, learnedTitle, outcome, work } from "./work.js";

const SHOWN = 5; // classes of each answer
const AT_ONCE = 16; // images of a request
let cards = [];
let busy = false;

async function ask(parts, left = 0) {
  if (!parts.length) {
    fill($("ask-note"), "None of that is an image that can be read.");
    return;
  }
  $("ask-note").textContent = `Images are answered and not kept.${left ? ` ${count(left, "file")} left out: no image.` : ""}`;
  const fresh = parts.map(({ file }) => ({ file, answer: null, error: null, picked: null, place: el("li", { className: "card" }) }));
  cards = [...fresh, ...cards];
  show();
  await answer(fresh);
  const said = fresh.filter((card) => card.answer).map((card) => card.answer.label);
  say(said.length === 1 ? `It is ${said[0]}.` : `${count(said.length, "answer")}: ${some(said)}`);
}

/** Ask the server about cards, some images at a time. */
async function answer(asked) {
  const most = learner?.limits.ask_bytes ?? 6e7;
  const rest = [...asked];
  while (rest.length) {
    let bytes = 0;
    const now = [];
    while (rest.length && now.length < AT_ONCE && (!now.length || bytes + rest[0].file.size < most - 1e5)) {
      bytes += rest[0].file.size;
      now.push(rest.shift());
    }
    const data = new FormData();
    for (const card of now) data.append("images", card.file, card.file.name);
    try {
      const found = (await send("POST", `/v1/predict?top=${SHOWN}`, { body: data })).data.answers;
      now.forEach((card, i) => { card.answer = found[i].error ? null : found[i]; card.error = found[i].error ?? null; });
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      for (const card of now) { card.error = error.message; card.retry = error.status === 0 || error.status === 429; }
    }
    now.forEach(draw);
  }
}

function show() {
  $("answers-head").hidden = !cards.length;
  $("answers-hint").hidden = Boolean(learner?.read_only);
  $("ask-drop").classList.toggle("small", cards.length > 0);
  cards.forEach(draw);
  fill($("answers"), cards.map((card) => card.place));
  tray();
}

function draw(card) {
  const name = el("span", { className: "file", title: card.file.name }, card.file.name);
  const said = card.error ? problem(card) : card.answer ? told(card) : el("p", { className: "soft", "aria-busy": "true" }, "Asking…");
  fill(card.place, view(card.file, card.file.name, "shown"), el("div", {}, name, said));
}

function problem(card) {
  return el("div", {}, el("p", { className: "wrong" }, card.error),
    el("p", { className: "row" }, card.retry && button("Ask again", () => { card.error = card.retry = null; draw(card); answer([card]); }),
      button("Remove", () => remove(card), { className: "quiet" })));
}

function remove(card) {
  dropAddress(card.file);
  cards = cards.filter((other) => other !== card);
  show();
}

function told(card) {
  const { label, top, probability } = card.answer;
  const unknown = label === "unknown";
  const head = el("p", { className: `answer${unknown ? " unknown" : ""}` }, label, " ", !unknown && el("span", { className: "share" }, percent(probability)));
  const note = unknown && el("p", { className: "soft" }, "Less familiar than nearly all images it was right about. Were it one of its classes:");
  const rows = top.map((one) => el("li", {}, learner?.read_only
    ? el("div", { className: "plain" }, el("span", {}, one.label), el("span", { className: "number soft" }, percent(one.probability)), bar(one.probability))
    : button([el("span", {}, one.label), el("span", { className: "number soft" }, percent(one.probability)), bar(one.probability)],
      () => pick(card, one.label), { "aria-pressed": String(card.picked === one.label), "aria-label": `${one.label}, ${percent(one.probability)}: this is right` })));
  return el("div", {}, head, note, el("ul", { className: "bars", "aria-label": "Press the class that is right" }, rows),
    !learner?.read_only && other(card));
}

function other(card) {
  if (card.picked !== null) {
    return el("p", { className: "picked" }, el("span", {}, "Right is ", el("strong", {}, card.picked)),
      button("Take back", () => pick(card, null), { className: "quiet" }));
  }
  const input = el("input", { list: "class-names", placeholder: "Another class", "aria-label": `Another class for ${card.file.name}`, maxLength: 200, autocomplete: "off" });
  return el("form", { className: "other", onsubmit: (event) => { event.preventDefault(); if (input.value.trim()) pick(card, input.value.trim()); } },
    input, el("button", {}, "Set"));
}

function pick(card, name) {
  card.picked = name;
  draw(card);
  (card.place.querySelector(name === null ? ".other input" : ".picked button"))?.focus();
  say(name === null ? "Taken back." : `${card.file.name}: right is ${name}. In the tray.`);
  tray();
}

/** The corrections that wait, and the button that has them learned. */
function tray() {
  if (busy) return;
  const picked = cards.filter((card) => card.picked !== null);
  $("tray").hidden = !picked.length;
  if (!picked.length) return;
  const names = [...new Set(picked.map((card) => card.picked))];
  fill($("tray"), el("div", { className: "row between" },
    el("p", {}, el("strong", {}, count(picked.length, "correction")), ` to ${some(names, 4)}`),
    el("div", { className: "row" }, button("Discard", () => { picked.forEach((card) => { card.picked = null; }); show(); }, { className: "quiet" }),
      button("Learn them", () => correct(picked), { className: "primary", id: "correct" }))));
}

async function correct(picked) {
  const byClass = new Map();
  for (const card of picked) byClass.set(card.picked, [...(byClass.get(card.picked) ?? []), card.file]);
  busy = true;
  const done = () => { busy = false; tray(); };
  try {
    const result = await work($("tray"), "/v1/correct", form(byClass), `Learning ${count(picked.length, "correction")}`);
    picked.forEach((card) => { card.picked = null; });
    fill($("tray"), outcome(learnedTitle(result), result, () => { done(); $("ask-title").focus(); }));
    say(learnedTitle(result));
    await answer(cards.filter((card) => card.answer || card.retry)); // what has changed is seen on the cards too
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    fill($("tray"), fault(error.message), el("p", { className: "row end" }, button("Back", done)));
  }
}

export function begin() {
  onDrop($("ask-drop"), ask);
  onPaste(() => !$("ask").hidden && !$("ask-body").hidden, ask);
  $("ask-choose").onclick = () => choose(ask);
  $("ask-photo").onclick = () => photo(ask);
  $("answers-clear").onclick = () => { cards.forEach((card) => dropAddress(card.file)); cards = []; show(); };
  onLearner((it) => {
    $("ask-empty").hidden = it.classes.length > 0;
    $("ask-body").hidden = it.classes.length === 0;
    if (it.classes.length === 1) $("ask-note").textContent = "It knows one class only, so every answer is that; let it learn another one.";
    else if (it.classes.length) $("ask-note").textContent = "Images are answered and not kept.";
  });
}
