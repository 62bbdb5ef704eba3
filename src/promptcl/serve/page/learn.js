// Learn: images in groups, one a class, looked at and sorted out here, sent when they are to be learned.

import { Fault } from "./api.js";
import { $, button, count, dropAddress, el, fault, fill, say, size, view } from "./dom.js";
import { choose, onDrop, onPaste, photo } from "./files.js";
import { learner, onLearner } from "./state.js";
import { form, learnedTitle, outcome, work } from "./work.js";

const SHOWN = 120; // thumbnails of a group at first
let groups = [];
let numbered = 0;
let busy = false;

function add(parts) {
  $("learn-result").replaceChildren();
  if (!parts.length) {
    fill($("learn-result"), fault("None of that is an image that can be read."));
    return;
  }
  let nameless = null;
  for (const { file, folder } of parts) {
    let group = folder ? groups.find((one) => one.name === folder) : nameless ?? groups.find((one) => !one.name);
    if (!group) {
      numbered += 1;
      group = { id: numbered, name: folder, files: [], shown: SHOWN, place: el("section", { className: "group" }) };
      groups.push(group);
    }
    if (!folder) nameless = group;
    if (!group.files.some((other) => other.name === file.name && other.size === file.size && other.lastModified === file.lastModified)) group.files.push(file);
  }
  show();
  say(`${count(parts.length, "image")} in ${count(groups.length, "class")}`);
  if (nameless) nameless.place.querySelector("input").focus();
}

function show() {
  groups.forEach(draw);
  fill($("groups"), groups.map((group) => group.place));
  total();
}

function draw(group) {
  const id = `group-${group.id}`;
  const input = el("input", { id, value: group.name, list: "class-names", autocomplete: "off", maxLength: 200, placeholder: "Name of the class" });
  input.addEventListener("input", () => { group.name = input.value; input.removeAttribute("aria-invalid"); total(); });
  group.place.setAttribute("aria-label", group.name || "Images without a class");
  const thumbs = group.files.slice(0, group.shown).map((file) => el("li", {}, view(file, file.name),
    button("×", (event) => takeOut(group, file, event.target), { "aria-label": `Take out ${file.name}`, title: `Take out ${file.name}` })));
  fill(group.place,
    el("div", { className: "head" }, el("div", { className: "name" }, el("label", { for: id }, "Class"), input),
      el("div", { className: "row" }, el("span", { className: "soft" }, count(group.files.length, "image")),
        button("Take all out", () => { group.files.forEach(dropAddress); groups = groups.filter((one) => one !== group); show(); $("learn-title").focus(); }, { className: "quiet" }))),
    el("ul", { className: "thumbs", "aria-label": "Images of this class" }, thumbs),
    group.files.length > group.shown && el("p", { className: "row" }, button(`Show all ${group.files.length}`, () => { group.shown = Infinity; draw(group); }, { className: "quiet" })));
}

function takeOut(group, file, pressed) {
  const row = [...pressed.closest("ul").children].indexOf(pressed.closest("li"));
  dropAddress(file);
  group.files = group.files.filter((other) => other !== file);
  if (!group.files.length) groups = groups.filter((one) => one !== group);
  show();
  say(`Took out ${file.name}`);
  const rest = group.place.isConnected ? group.place.querySelectorAll(".thumbs button") : [];
  (rest[Math.min(row, rest.length - 1)] ?? $("learn-title")).focus();
}

/** How much there is to learn, and the button. */
function total() {
  if (busy) return;
  $("learn-bar").hidden = !groups.length;
  if (!groups.length) return;
  const files = groups.flatMap((group) => group.files);
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  const names = new Set(groups.map((group) => group.name.trim()));
  fill($("learn-bar"), el("div", { className: "row between" },
    el("p", {}, el("strong", {}, count(files.length, "image")), ` of ${count(names.size, "class")} `, el("span", { className: "soft" }, size(bytes))),
    button("Learn", learn, { className: "primary", id: "learn-now" })), el("div", { id: "learn-fault" }));
}

/** What is wrong with the groups, and where; null: nothing. */
function wrong() {
  const limits = learner?.limits;
  const nameless = groups.find((group) => !group.name.trim());
  if (nameless) return ["Write the name of the class.", nameless];
  const reserved = groups.find((group) => group.name.trim() === "unknown");
  if (reserved) return ["The name unknown is kept for images of no class; write another one.", reserved];
  const files = groups.flatMap((group) => group.files);
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  if (limits && files.length > limits.learn_images) return [`At most ${limits.learn_images} images are learned at once; take some out and learn them afterwards.`];
  if (limits && bytes > limits.learn_bytes - 1e6) return [`${size(bytes)} are more than the ${size(limits.learn_bytes)} that can be sent at once; take some out and learn them afterwards.`];
  return null;
}

async function learn() {
  const problem = wrong();
  if (problem) {
    const [text, group] = problem;
    fill($("learn-fault"), fault(text));
    const input = group?.place.querySelector("input");
    input?.setAttribute("aria-invalid", "true");
    input?.focus();
    return;
  }
  const byClass = new Map();
  for (const group of groups) byClass.set(group.name.trim(), [...(byClass.get(group.name.trim()) ?? []), ...group.files]);
  const images = groups.reduce((sum, group) => sum + group.files.length, 0);
  busy = true;
  $("groups").inert = true;
  try {
    const result = await work($("learn-bar"), "/v1/learn", form(byClass), `Learning ${count(images, "image")}`);
    groups.flatMap((group) => group.files).forEach(dropAddress);
    groups = [];
    fill($("learn-result"), outcome(learnedTitle(result), result));
    say(learnedTitle(result));
    $("learn-title").focus();
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    fill($("learn-result"), fault(error.message));
  } finally {
    busy = false;
    $("groups").inert = false;
    show();
  }
}

export function begin() {
  onDrop($("learn-drop"), add);
  onPaste(() => !$("learn").hidden, add);
  $("learn-folder").onclick = () => choose(add, { folder: true });
  $("learn-choose").onclick = () => choose(add);
  $("learn-photo").onclick = () => photo(add);
  onLearner((it) => {
    $("learn-read-only").hidden = !it.read_only;
    $("learn-body").hidden = it.read_only;
  });
}
