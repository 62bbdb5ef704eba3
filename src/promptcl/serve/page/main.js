// Start: the token, the sections, and the one that the address names.

import { takeToken } from "./api.js";
import { begin as ask } from "./ask.js";
import { begin as classes } from "./classes.js";
import { $ } from "./dom.js";
import { begin as learn } from "./learn.js";
import { watch } from "./state.js";

const SECTIONS = ["ask", "learn", "classes", "history"];

function turn(first = false) {
  const wanted = location.hash.slice(1);
  const name = SECTIONS.includes(wanted) ? wanted : first || !wanted ? "ask" : null;
  if (!name) return;
  for (const section of SECTIONS) $(section).hidden = section !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (first) return;
  scrollTo(0, 0);
  $(`${name}-title`).focus({ preventScroll: true });
}

takeToken();
ask();
learn();
classes();
// A file that is dropped beside its place must not take the page away.
for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());
addEventListener("hashchange", () => turn());
turn(true);
watch();
