"use strict";
// Shows one trial at a time. The server decides what comes next; nothing is kept here that a reload could lose.

const main = document.getElementById("main");
const notice = document.getElementById("notice");
let wording = {};
let keys = new Map(); // what a key does now

function element(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}

function button(label, key, action, options = {}) {
  const hint = key === "" ? [] : [element("kbd", { ariaHidden: "true" }, key === "Enter" ? "↵" : key.toUpperCase())];
  const made = element("button", { type: "button", ...options }, label, ...hint);
  const run = (event) => { if (!made.disabled) action(event); };
  made.addEventListener("click", run);
  if (key !== "") {
    made.setAttribute("aria-keyshortcuts", key);
    keys.set(key.toLowerCase(), run);
  }
  return made;
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const key = event.key.toLowerCase();
  if (key === "enter" && event.target instanceof HTMLButtonElement) return; // it clicks that button
  const action = keys.get(key);
  if (action) { event.preventDefault(); action(event); }
});

function show(title, ...children) {
  const heading = element("h1", { tabIndex: -1 }, title);
  main.replaceChildren(heading, ...children);
  heading.focus({ preventScroll: true });
  window.scrollTo(0, 0);
  return heading;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));

// Sends until the server has replied: an answer that may not be stored is sent again, and refused if it was.
async function send(path, content) {
  for (let wait = 500, tried = false; ; wait = Math.min(2 * wait, 5000), tried = true) {
    try {
      const options = content === undefined ? {} : {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
      };
      const response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
      if (response.status < 500) { if (tried) notice.textContent = ""; return response; }
    } catch { /* no connection: try again */ }
    notice.textContent = wording.retrying || "No connection. Trying again.";
    await pause(wait);
  }
}

async function load(message = "") {
  const state = await (await send("/api/state")).json();
  wording = state.wording;
  document.documentElement.lang = wording.language;
  document.title = wording.title;
  notice.textContent = message;
  const invitation = new URLSearchParams(location.hash.slice(1)).get("invitation") || "";
  if (invitation) { // it says who the rater is, whoever used this browser before
    const response = await send("/api/join", { agreed: false, invitation, screen: "" });
    if (response.ok) { history.replaceState(null, "", "/"); follow(await response.json()); return; }
  }
  if (invitation || state.page === "consent") consent(state.open, invitation); else follow(state);
}

function follow(state) {
  if (state.page === "done") { done(state); return; }
  const now = state.trial;
  if (now.number === 1 && !now.practice && now.practiced && !now.seen) practiced(now); else trial(now, now.seen);
}

function practiced(now) {
  keys = new Map();
  show(wording.title, element("p", {}, wording.practiced),
    button(wording.begin, "Enter", () => trial(now), { className: "main" }));
}

function consent(open, invitation) {
  keys = new Map();
  if (!open && !invitation) { show(wording.title, element("p", {}, wording.refused)); return; }
  const agree = button(wording.agree, "Enter", async () => {
    agree.disabled = true;
    const screen = `${window.screen.width}x${window.screen.height}@${window.devicePixelRatio}`;
    const response = await send("/api/join", { agreed: true, invitation, screen });
    if (response.ok) { history.replaceState(null, "", "/"); instructions(await response.json()); return; }
    notice.textContent = response.status === 429 ? wording.full : wording.refused;
    agree.disabled = false;
  }, { className: "main" });
  const contact = wording.contact ? [element("p", {}, wording.contact)] : [];
  show(wording.title, element("p", {}, wording.consent), ...contact, agree);
}

function instructions(state) {
  keys = new Map();
  const begin = button(wording.begin, "Enter", () => follow(state), { className: "main" });
  show(wording.title, element("p", {}, wording.instructions), element("p", {}, wording.keys), begin);
}

// One thing to look at; ready once it can be painted.
function item(content, caption, size) {
  if (content.text !== undefined) {
    const text = element("div", { className: "text", tabIndex: 0 }, content.text);
    return [element("figure", {}, ...caption, text), async () => {}];
  }
  const image = element("img", { alt: caption.length ? caption[0].textContent : wording.title, draggable: false });
  const ratio = size.most / Math.max(size.width, size.height);
  const scale = ratio >= 1 ? Math.floor(ratio) : ratio; // whole multiples, as real and generated pictures alike
  image.width = Math.round(scale * size.width);
  image.height = Math.round(scale * size.height);
  image.src = content.picture;
  const ready = async () => {
    try { await image.decode(); } catch (error) { if (!image.complete || !image.naturalWidth) throw error; }
  };
  return [element("figure", {}, ...caption, image), ready];
}

// hidden: whether the trial was out of sight before, so that its response time does not count.
async function trial(now, hidden = false) {
  keys = new Map();
  const pair = now.items.length > 1;
  const texts = now.items[0].text !== undefined ? " texts" : "";
  const stage = element("div", { className: `stage waiting${texts}` });
  const count = now.items.length + (now.given ? 1 : 0);
  const most = Math.max(64, Math.min(256, Math.floor((main.clientWidth - 24 * count) / count)));
  const size = { width: now.width, height: now.height, most };
  const caption = (text) => [element("figcaption", {}, text)];
  const single = now.given && wording.shown ? caption(wording.shown) : [];
  const parts = now.items.map((one, i) =>
    item(one, pair ? caption(i ? wording.rightmost : wording.left) : single, size));
  if (now.given) parts.unshift(item(now.given, caption(wording.given), size));
  stage.append(...parts.map(([figure]) => figure));
  const label = wording.progress.replace("{number}", now.number).replace("{total}", now.total);
  const bar = element("progress", { max: now.total, value: now.number - 1, ariaLabel: label });
  const top = element("div", { className: "top" },
    element("span", {}, now.practice ? `${wording.practice}: ${label}` : label), bar);
  show(wording.question, stage);
  main.prepend(top);
  const several = wording.choices.length > 3 ? " scale" : "";
  const choices = element("div", { className: `choices${several}`, role: "group", ariaLabel: wording.question });
  main.append(choices);

  let onset = null, answered = false;
  const leave = () => { if (document.visibilityState === "hidden") hidden = true; };
  const blur = () => { hidden = true; };
  document.addEventListener("visibilitychange", leave);
  window.addEventListener("blur", blur);
  const stop = () => {
    answered = true;
    document.removeEventListener("visibilitychange", leave);
    window.removeEventListener("blur", blur);
  };
  const buttons = wording.choices.map((text, i) => button(text, i < 9 ? String(i + 1) : i === 9 ? "0" : "-", async (event) => {
    if (answered) return;
    const rt = event.timeStamp - onset;
    stop();
    for (const one of buttons) one.disabled = true;
    buttons[i].classList.add("chosen");
    await answer(now, i, rt, onset, hidden, choices);
  }, { disabled: true }));
  if (buttons.length === 2) {
    keys.set("arrowleft", keys.get("1"));
    keys.set("arrowright", keys.get("2"));
  }
  choices.append(...buttons);
  top.append(button(wording.pause, "p", () => { if (!answered) { stop(); rest(now); } }, { className: "quiet" }));

  try {
    await Promise.all(parts.map(([, ready]) => ready()));
  } catch {
    if (answered) return;
    stop();
    keys = new Map();
    show(wording.question, element("p", {}, wording.missing), button(wording.retry, "Enter", () => load(), { className: "main" }));
    return;
  }
  if (answered) return;
  const again = now.exposure && now.seen; // the time to look is over, and no second look
  if ((await send("/api/shown", { trial: now.id })).status === 409) { stop(); await load(wording.elsewhere); return; }
  now.seen = true;
  if (answered) return;
  await frame();
  if (!again) stage.classList.remove("waiting");
  await frame();
  onset = performance.now();
  for (const one of buttons) one.disabled = false;
  if (again) notice.textContent = wording.hidden;
  if (now.exposure && !again) {
    await pause(now.exposure);
    if (!answered) { stage.classList.add("waiting"); notice.textContent = wording.hidden; }
  }
}

function rest(now) {
  keys = new Map();
  const resume = button(wording.resume, "Enter", () => trial(now, true), { className: "main" });
  keys.set("p", () => trial(now, true));
  show(wording.paused, resume);
}

async function answer(now, choice, rt, onset, hidden, choices) {
  notice.textContent = "";
  const response = await send("/api/answer", { trial: now.id, choice, rt, onset, hidden });
  if (response.status === 409) { await load(wording.elsewhere); return; }
  if (!response.ok) { await load(); return; }
  const state = await response.json();
  if (!state.feedback) { follow(state); return; }
  const { right, expected } = state.feedback;
  const said = right ? wording.right : `${wording.wrong} ${wording.truth.replace("{truth}", wording.choices[expected])}`;
  keys = new Map();
  const next = button(wording.next, "Enter", () => follow(state), { className: "main" });
  choices.after(element("p", { className: "feedback", role: "status" }, said), element("div", { className: "after" }, next));
  next.focus();
}

function done(state) {
  keys = new Map();
  const leave = async () => { await send("/api/leave", {}); await load(); };
  const another = state.open ? [button(wording.another, "", leave, { className: "quiet" })] : [];
  show(wording.title, element("p", {}, wording.thanks), element("p", {}, `${wording.code}: `,
    element("span", { className: "code" }, state.code)), ...another);
}

window.addEventListener("pageshow", (event) => { if (event.persisted) load(); });
load();
