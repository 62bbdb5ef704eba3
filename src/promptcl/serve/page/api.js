// Talk to the server: requests, uploads with progress, jobs, the token, and whether it answers at all.

import { $ } from "./dom.js";

const KEY = "promptcl-token";
let token = null;
try { token = sessionStorage.getItem(KEY); } catch { /* this browser keeps nothing */ }

function keep(given) {
  token = given;
  try { sessionStorage.setItem(KEY, given); } catch { /* then it is asked for once more when the page is loaded anew */ }
}

/** The server said no, or nothing; `status` 0: it could not be reached. */
export class Fault extends Error {
  constructor(sentence, status) { super(sentence); this.status = status; }
}

export function takeToken() {
  const found = location.hash.match(/^#token=(.+)$/);
  if (!found) return;
  try { keep(decodeURIComponent(found[1])); } catch { /* no token: it is asked for */ }
  history.replaceState(null, "", "#ask");
}

let signingIn = null;

/** Ask for the token, once for all requests that lack it. */
function signIn(wrong) {
  signingIn ??= new Promise((resolve) => {
    $("sign-in-error").textContent = wrong ? "That was not the token." : "";
    $("sign-in").showModal();
    $("sign-in").addEventListener("close", () => {
      keep($("token").value.trim());
      $("token").value = "";
      signingIn = null;
      resolve();
    }, { once: true });
  });
  return signingIn;
}

export function online(answers) {
  $("offline").hidden = answers;
}

/** Send a request; resolves with { status, data }. `progress` is told the share of the body that was sent. */
export async function send(method, path, { body = null, headers = {}, progress = null, signal = null } = {}) {
  for (;;) {
    const sent = token;
    const answer = await once(method, path, body, sent ? { ...headers, Authorization: `Bearer ${sent}` } : headers, progress, signal);
    if (answer.status !== 401) {
      if (answer.status >= 400) throw new Fault(answer.data?.error || `the server answered with status ${answer.status}`, answer.status);
      return answer;
    }
    if (sent === token) await signIn(sent !== null); // else another request has asked for it meanwhile
  }
}

function once(method, path, body, headers, progress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    request.responseType = "json";
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    if (progress) request.upload.onprogress = (event) => { if (event.lengthComputable) progress(event.loaded / event.total); };
    request.onload = () => { online(true); resolve({ status: request.status, data: request.response }); };
    // A refusal in the middle of an upload ends the connection, and looks the same.
    request.onerror = () => reject(new Fault("The server does not answer, or refused what was sent.", 0));
    request.onabort = () => reject(new Fault("Given up.", 0));
    if (signal) signal.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

export async function json(method, path, value, headers = {}) {
  const answer = await send(method, path, { body: JSON.stringify(value), headers: { "Content-Type": "application/json", ...headers } });
  return answer.data;
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** Follow a job to its end; `shown` is told of it each time. Resolves with its result, throws Fault where it failed. */
export async function follow(job, shown) {
  let misses = 0;
  while (job.state !== "done") {
    if (job.state === "failed") throw new Fault(job.error, 400);
    shown(job);
    await pause(misses ? 2 : 0.25);
    try {
      job = (await send("GET", `/v1/jobs/${job.id}`)).data;
      misses = 0;
    } catch (error) {
      if (error.status === 404) {
        throw new Fault("The server was started anew meanwhile, and nothing is half done. Send it again: what was learned before is left out.", 404);
      }
      if (error.status !== 0) throw error;
      online(false);
      misses += 1;
    }
  }
  return job.result;
}
