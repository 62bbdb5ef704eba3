// A change on its way: sent, learned, done; and what is different afterwards.

import { follow, send } from "./api.js";
import { bar, button, count, el, fill, percent, say, some } from "./dom.js";
import { learner, refresh } from "./state.js";

const FEW = 5; // images

/** The multipart form of images by class: a field `class`, then its files. */
export function form(byClass, task = "") {
  const data = new FormData();
  if (task) data.append("task", task);
  for (const [name, files] of byClass) {
    data.append("class", name);
    for (const file of files) data.append("images", file, file.name);
  }
  return data;
}

/** Send images to be learned and show in `place` how far it is. Resolves with the result, throws Fault. */
export async function work(place, path, data, title) {
  const giveUp = new AbortController();
  let job = null;
  const line = el("span", {}), inner = bar(0);
  const meter = el("div", { role: "progressbar", "aria-label": title, "aria-valuemin": "0", "aria-valuemax": "100" }, inner);
  const cancel = button("Cancel", async () => {
    cancel.disabled = true;
    if (!job) giveUp.abort();
    else await send("DELETE", `/v1/jobs/${job.id}`).catch(() => null);
  });
  const show = (share, text) => {
    inner.firstChild.style.width = `${100 * share}%`;
    meter.setAttribute("aria-valuenow", String(Math.round(100 * share)));
    line.textContent = text;
  };
  fill(place, el("div", { className: "work" }, el("div", { className: "row between" }, el("p", {}, el("strong", {}, title), " ", line), cancel), meter));
  show(0, "sending");
  say(title);
  job = (await send("POST", path, { body: data, signal: giveUp.signal, progress: (share) => show(share, share < 1 ? "sending" : "waiting") })).data;
  const result = await follow(job, (now) => show(now.progress, now.doing));
  await refresh().catch(() => null);
  return result;
}

/** What the classes with very few images mean for the others; null where there are none, or all have few. */
function few() {
  const small = learner.classes.filter((one) => one.images < FEW);
  if (!small.length || small.length === learner.classes.length) return null;
  return el("p", { className: "soft" }, `Few images: ${some(small.map((one) => `${one.name} (${one.images})`))}. Others are easily taken for them; let it learn some more of each.`);
}

/** What a change did, for somebody to read. */
export function outcome(title, result, onClose) {
  const rows = moved(result.classes ?? []);
  const { before, after } = result;
  return el("div", { className: "result" },
    el("div", { className: "head" }, el("h3", {}, title), onClose && button("Close", onClose, { className: "quiet" })),
    !after && result.held_out?.length > 0 && el("dl", { className: "compared" }, share("Right on images held out", total(result.held_out))),
    (before || after) && el("dl", { className: "compared" }, before && share("Right before", before), after && share(before ? "Right now" : "Right answers", after)),
    (before || after) && el("p", { className: "soft" }, "Counted on the images it learned, each left out of what answers it."),
    few(),
    rows.length > 0 && el("ul", { className: "moved" }, rows.slice(0, 5)),
    (result.warnings ?? []).length > 0 && el("ul", { className: "warnings" }, result.warnings.map((text) => el("li", {}, text))));
}

function total(counts) {
  return { right: counts.reduce((sum, one) => sum + one.right, 0), images: counts.reduce((sum, one) => sum + one.images, 0) };
}

function share(title, { right, images }) {
  return el("div", {}, el("dt", {}, title), el("dd", {}, `${percent(right / images)} `, el("span", { className: "soft" }, `${right} of ${images}`)));
}

/** The classes whose share of right answers has changed most. */
function moved(classes) {
  const both = classes.filter((one) => one.before && one.after);
  const rows = both.map((one) => ({ name: one.name, was: one.before[0] / one.before[1], is: one.after[0] / one.after[1] }));
  const changed = rows.filter((row) => Math.abs(row.is - row.was) > 0.004).sort((a, b) => Math.abs(b.is - b.was) - Math.abs(a.is - a.was));
  return changed.map((row) => el("li", {}, el("strong", {}, row.name), ` ${percent(row.was, 0)} before, ${percent(row.is, 0)} now`));
}

export function learnedTitle(result) {
  const parts = [];
  if (result.learned) parts.push(`Learned ${count(result.learned, "image")}`);
  if (result.moved) parts.push(`${parts.length ? "moved" : "Moved"} ${count(result.moved, "image")}`);
  if (!parts.length) parts.push("Nothing new to learn");
  if (result.new?.length) parts.push(`${count(result.new.length, "new class")}: ${some(result.new)}`);
  if (result.known) parts.push(`${count(result.known, "image")} learned before`);
  if (result.gone?.length) parts.push(`no image is left of ${some(result.gone)}`);
  return parts.join("; ");
}
