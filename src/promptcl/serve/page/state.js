// What the server's learner knows: asked for now and then, and told to all sections.

import { Fault, online, send } from "./api.js";
import { $, count, el, fill, percent } from "./dom.js";

export let learner = null;
const listeners = [];

export function onLearner(listener) {
  listeners.push(listener);
  if (learner) listener(learner);
}

/** Ask for the learner; sections hear of it only where it has changed. */
export async function refresh() {
  const headers = learner ? { "If-None-Match": `"${learner.version}"` } : {};
  const answer = await send("GET", "/v1/learner", { headers });
  if (answer.status === 304) return;
  learner = answer.data;
  document.title = `${learner.name} · promptcl`;
  $("name").textContent = learner.name;
  fill($("summary"), summary(learner));
  $("summary").removeAttribute("aria-busy");
  fill($("class-names"), learner.classes.map((one) => el("option", { value: one.name })));
  for (const listener of listeners) listener(learner);
}

function summary(it) {
  const parts = [count(it.classes.length, "class"), count(it.images, "image")];
  if (it.read_only) parts.push("answers only");
  if (it.left_out) parts.push(`${percent(it.left_out.right / it.left_out.images)} right when left out`);
  return parts.map((part) => part.replaceAll(" ", "\u00a0")).join(" · "); // where it is broken into lines, between parts
}

/** Look again and again, more often while the server is away. */
export function watch() {
  const look = async () => {
    let seconds = 5;
    if (!document.hidden) {
      try {
        await refresh();
      } catch (error) {
        if (!(error instanceof Fault)) throw error;
        online(error.status !== 0);
        if (!learner) $("summary").textContent = "no answer yet";
        seconds = 2;
      }
    }
    setTimeout(look, 1000 * seconds);
  };
  look();
}
