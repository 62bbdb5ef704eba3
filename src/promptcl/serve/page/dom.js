// Make elements from texts and properties. Nothing here, or anywhere on this page, turns a text into HTML.

export const $ = (id) => document.getElementById(id);

/** An element with properties and children; `data-`, `aria-` and other names with a hyphen are attributes. */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for" || name === "list") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function fill(parent, ...children) {
  parent.replaceChildren(...children.flat().filter(Boolean));
}

export const button = (text, onclick, props = {}) => el("button", { type: "button", onclick, ...props }, text);

/** A bar, `share` (0 to 1) of it filled; what it means is said in a text beside it. */
export function bar(share) {
  const inner = el("span", { className: "fill" });
  inner.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return el("span", { className: "track", "aria-hidden": "true" }, inner);
}

const numbers = new Intl.NumberFormat("en");
export const number = (value) => numbers.format(value);

/** `1 image`, `2 images`, `2 classes`. */
export function count(value, noun) {
  return `${number(value)} ${value === 1 ? noun : noun + (noun.endsWith("s") ? "es" : "s")}`;
}

/** A share as `97.7 %`; never 100 or 0 where it only nearly is. */
export function percent(share, digits = 1) {
  const value = 100 * share;
  if (value > 99.9 && value < 100) return "> 99.9 %";
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value.toFixed(value === 100 || value === 0 ? 0 : digits)} %`;
}

export function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}

export function some(names, most = 6) {
  return names.slice(0, most).join(", ") + (names.length > most ? `, and ${names.length - most} more` : "");
}

/** Have a screen reader say something. */
export function say(text) {
  $("live").textContent = "";
  setTimeout(() => { $("live").textContent = text; }, 50);
}

export function fault(text) {
  return el("p", { className: "notice fault", role: "alert" }, text);
}

const addresses = new Map();

/** An address by which this page shows a file. The file never leaves the browser for it. */
function addressOf(file) {
  if (!addresses.has(file)) addresses.set(file, URL.createObjectURL(file));
  return addresses.get(file);
}

export function dropAddress(file) {
  if (addresses.has(file)) URL.revokeObjectURL(addresses.get(file));
  addresses.delete(file);
}

/** The image in a file, small ones without blur; where the browser cannot show its kind, a word for it. */
export function view(file, alt, className = "") {
  const image = el("img", { src: addressOf(file), alt, className, loading: "lazy", decoding: "async" });
  image.addEventListener("load", () => { if (image.naturalWidth <= 96) image.classList.add("small-image"); });
  image.addEventListener("error", () => {
    const kind = (file.name.match(/\.(\w+)$/) || [, "this kind"])[1];
    image.replaceWith(el("span", { className: `no-view ${className}`, role: "img", "aria-label": `${alt} (no preview)` }, `no preview of ${kind}`));
  });
  return image;
}
