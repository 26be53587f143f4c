// Makes the pages live: the stream, ages, keys, the slider and copying. Without it they work as plain links and forms.

const policy = window.trustedTypes?.createPolicy("stepfold", { createHTML: (html) => html }) ?? { createHTML: (html) => html };
const parsed = (html) => new DOMParser().parseFromString(policy.createHTML(html), "text/html");
const one = (selector, inside = document) => inside.querySelector(selector);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

// Ages and clocks.

function ago(ms) {
  for (const [unit, length] of [["d", 864e5], ["h", 36e5], ["min", 6e4], ["s", 1e3]]) {
    if (Math.abs(ms) >= length) {
      const amount = `${Math.floor(Math.abs(ms) / length)} ${unit}`;
      return ms > 0 ? `${amount} ago` : `in ${amount}`;
    }
  }
  return "now";
}

function span(ms) {
  const s = Math.floor(ms / 1000), min = Math.floor(s / 60), h = Math.floor(min / 60), d = Math.floor(h / 24);
  if (d) return `${d} d ${h % 24} h`;
  if (h) return `${h} h ${min % 60} min`;
  return min ? `${min} min ${s % 60} s` : `${s} s`;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function tick() {
  const now = Date.now();
  for (const time of all("time[data-ago]")) say(time, ago(now - Date.parse(time.dateTime)));
  for (const since of all("[data-since]")) say(since, span(Math.max(0, now - Date.parse(since.dataset.since))));
}

// Patches: each element of a fragment takes the place of the one with its id. In a list, rows keep their places.

const last = new Map();
let waiting = null;

function patch(fragment) {
  for (const fresh of all("[data-live][id]", fragment)) {
    const html = fresh.outerHTML, old = document.getElementById(fresh.id);
    if (!old || last.get(fresh.id) === html || old.outerHTML === html) continue;
    last.set(fresh.id, html);
    if (fresh.id === "list" && one("tbody", old) && one("tbody", fresh)) patchRows(old, fresh);
    else if (fresh.hasAttribute("data-keep") && inUse(old)) continue;
    else replace(old, fresh);
  }
  prepare();
  tick();
}

function inUse(element) {
  return element.contains(document.activeElement) || one("details[open], dialog[open]", element) !== null;
}

function replace(old, fresh) {
  const focused = old.contains(document.activeElement) ? all("a, button, input, [tabindex]", old).indexOf(document.activeElement) : -1;
  const scrolled = all(".scroll, pre", old).map((element) => [element.scrollLeft, element.scrollTop]);
  const added = document.importNode(fresh, true);
  for (const { name, value } of old.attributes) if (name === "data-stream") added.setAttribute(name, value);
  old.replaceWith(added);
  all(".scroll, pre", added).forEach((element, at) => {
    if (scrolled[at]) [element.scrollLeft, element.scrollTop] = scrolled[at];
  });
  if (focused >= 0) all("a, button, input, [tabindex]", added)[focused]?.focus({ preventScroll: true });
}

function patchRows(old, fresh) {
  const shown = new Map(all("tbody tr", old).map((row) => [row.dataset.key, row]));
  const now = new Map(all("tbody tr", fresh).map((row) => [row.dataset.key, row]));
  for (const [key, row] of shown) {
    const next = now.get(key);
    row.classList.toggle("gone", !next);
    if (!next) continue;
    all("td", next).forEach((cell, at) => {
      const before = row.cells[at];
      if (before.innerHTML !== cell.innerHTML && !before.contains(document.activeElement)) before.replaceWith(document.importNode(cell, true));
    });
  }
  const added = [...now.keys()].filter((key) => !shown.has(key)).length;
  waiting = added ? fresh : null;
  one("#fresh").hidden = !added;
  if (added) say(one("#fresh button"), `${added}${added === now.size ? " or more" : ""} new`);
}

one("#fresh button")?.addEventListener("click", () => {
  const before = new Set(all("#list tbody tr").map((row) => row.dataset.key));
  replace(one("#list"), waiting);
  for (const row of all("#list tbody tr")) if (!before.has(row.dataset.key)) row.classList.add("new");
  one("#fresh").hidden = true;
  tick();
  one("#list .scroll")?.focus({ preventScroll: true });
});

// The stream: one a page, closed while nobody sees the page.

let source = null, again = 0;

function tell(words, lost = false) {
  const live = one("#live");
  live.hidden = !words;
  live.classList.toggle("lost", lost);
  say(live, words);
}

function listen() {
  clearTimeout(again);
  source?.close();
  source = null;
  const path = one("[data-stream]")?.dataset.stream;
  if (!path) return tell("");
  if (document.hidden) return;
  const opened = source = new EventSource(path);
  opened.onopen = () => tell("live");
  opened.onmessage = (message) => patch(parsed(message.data));
  opened.addEventListener("over", () => {
    opened.close();
    tell("");
  });
  opened.onerror = () => {
    tell("connection lost, trying again", true);
    if (opened.readyState === EventSource.CLOSED) again = setTimeout(listen, 5000);
  };
}

document.addEventListener("visibilitychange", listen);
addEventListener("pagehide", () => source?.close());
addEventListener("pageshow", (event) => event.persisted && listen());

// The slider: the run after each event.

let asked = 0;

async function travel(path, dragging) {
  const number = ++asked;
  source?.close();
  const answer = await fetch(path);
  const page = parsed(await answer.text());
  if (number !== asked || !answer.ok) return;
  const fresh = one("#run", page), old = one("#run");
  if (!fresh || !old) return location.assign(path);
  const stay = document.activeElement?.id;
  for (const part of [...fresh.children]) {
    const target = document.getElementById(part.id);
    if (part.id !== "slider" || !dragging) target?.replaceWith(document.importNode(part, true));
    else one("p", target).replaceWith(document.importNode(one("p", part), true));
  }
  if (fresh.dataset.stream) old.dataset.stream = fresh.dataset.stream;
  else delete old.dataset.stream;
  last.clear();
  history.replaceState(null, "", answer.url);
  prepare();
  tick();
  if (stay) document.getElementById(stay)?.focus({ preventScroll: true });
  if (!dragging) listen();
}

document.addEventListener("input", (event) => {
  if (event.target.id === "nth") travel(at(event.target), true);
});
document.addEventListener("change", (event) => {
  if (event.target.id === "nth") travel(at(event.target), false);
});
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("#back[href], #on[href]");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  travel(link.href, false);
});

function at(range) {
  const to = new URL(range.form.action);
  for (const [name, value] of new FormData(range.form)) to.searchParams.set(name, value);
  return to.href;
}

// Keys; each is also a visible control. They are dead where somebody types.

const places = { r: "/", e: "/errors", w: "/workers", s: "/start" };
let going = false;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target.closest?.("input, select, textarea, [contenteditable]")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (one("dialog[open]")) return;
  const went = going;
  going = false;
  if (went && places[event.key]) {
    const link = one(`.top nav a[href$="${places[event.key]}"]`);
    if (link) link.click();
  } else if (event.key === "g") going = true;
  else if (event.key === "/") one("#jump").focus();
  else if (event.key === "?") one("#help").showModal();
  else if (event.key === "j" || event.key === "k") move(event.key === "j" ? 1 : -1);
  else if (event.key === "[") one("#back")?.click();
  else if (event.key === "]") one("#on")?.click();
  else return;
  event.preventDefault();
});

function move(by) {
  const links = all("main tbody tr").map((row) => one("a", row)).filter(Boolean);
  const here = links.findIndex((link) => link.closest("tr").contains(document.activeElement));
  const to = links[Math.min(Math.max(here + by, 0), links.length - 1)];
  to?.focus();
  to?.scrollIntoView({ block: "nearest" });
}

// Copying, and forms that are sent once.

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(one("code", button.parentElement).textContent);
  say(button, "Copied");
  setTimeout(() => say(button, "Copy"), 1500);
});
document.addEventListener("submit", (event) => {
  if (event.target.method === "post") setTimeout(() => all("button", event.target).forEach((button) => (button.disabled = true)));
});

function prepare() {
  for (const button of all("[data-copy]")) button.hidden = !navigator.clipboard;
  for (const button of all("[data-noscript]")) button.hidden = true;
}

prepare();
tick();
setInterval(tick, 1000);
listen();
