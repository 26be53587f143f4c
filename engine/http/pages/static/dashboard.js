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

const root = document.documentElement;
const zone = root.dataset.zone === "local" ? Intl.DateTimeFormat().resolvedOptions().timeZone : root.dataset.zone;
const local = new Intl.DateTimeFormat("en-CA", {
  timeZone: zone, year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
  hourCycle: "h23", timeZoneName: "short",
});

function clock(at) {
  const part = Object.fromEntries(local.formatToParts(at).map(({ type, value }) => [type, value]));
  return `${part.year}-${part.month}-${part.day} ${part.hour}:${part.minute}:${part.second} ${part.timeZoneName}`;
}

// A zone that only the browser knows: the server writes times in UTC then.

function localize() {
  if (root.dataset.zone !== "local") return;
  for (const time of all("time[data-clock]")) say(time, clock(new Date(time.dateTime)));
  for (const name of all("[data-zone-name]")) say(name, zone);
  for (const field of all("[data-zone-of-browser]")) field.value = zone;
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

function listenAll() {
  if (tail) followTail();
  else listen();
}

document.addEventListener("visibilitychange", listenAll);
addEventListener("pagehide", () => {
  source?.close();
  tailing?.close();
});
addEventListener("pageshow", (event) => event.persisted && listenAll());

// The tail of the whole history: new rows on top, at most some hundreds, until somebody stops it.

const MOST_ROWS = 500;
const tail = one("#tail"), stop = one("#tail-stop");
let tailing = null, from = tail?.dataset.tail, stopped = tail ? !("now" in tail.dataset) : true;

function followTail() {
  tailing?.close();
  tailing = null;
  if (!tail) return;
  stop.hidden = false;
  say(stop, stopped ? "Go on" : "Stop");
  one("#tail-progress").hidden = stopped;
  if (stopped || document.hidden) return tell("");
  const opened = tailing = new EventSource(from);
  const seen = (message) => {
    const address = new URL(from, location.href);
    address.searchParams.set("from", message.lastEventId);
    from = address.href;
  };
  opened.onopen = () => tell("live");
  opened.onerror = () => {
    tell("connection lost, trying again", true);
    if (opened.readyState === EventSource.CLOSED) setTimeout(() => opened === tailing && followTail(), 5000);
  };
  opened.addEventListener("rows", (message) => {
    seen(message);
    const body = one("tbody", tail), known = new Set(all("tr", body).map((row) => row.dataset.key));
    const rows = all("tr", parsed(message.data)).filter((row) => !known.has(row.dataset.key)).map((row) => document.importNode(row, true));
    for (const row of rows) row.classList.add("new");
    body.prepend(...rows);
    for (const row of all("tr", body).slice(MOST_ROWS)) row.remove();
    one("#tail-none")?.remove();
    localize();
  });
  opened.addEventListener("progress", (message) => {
    seen(message);
    const { looked, shown, skipped, done, all: whole } = JSON.parse(message.data);
    const bar = one("#tail-progress"), n = (number) => number.toLocaleString("en");
    bar.max = Math.max(whole, 1);
    bar.value = whole ? done : 1;
    const left = skipped || shown > MOST_ROWS ? `; this page keeps the newest ${n(MOST_ROWS)}` : "";
    say(one("#tail-said"), `${n(shown)} new of ${n(looked)} records looked at${done < whole ? `, ${Math.floor((100 * done) / whole)} % of the way` : ""}${left}`);
  });
}

stop?.addEventListener("click", () => {
  stopped = !stopped;
  followTail();
});

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

// The palette: pages, workflows, runs and actions by their names.

const palette = one("#palette"), typed = one("#palette-text");
const places = all("#palette-list > a");
let search = 0;

function option(words, about, go) {
  const link = document.createElement("a"), name = document.createElement("span"), said = document.createElement("span");
  link.setAttribute("role", "option");
  link.tabIndex = -1;
  name.textContent = words;
  said.textContent = about;
  said.className = "soft";
  link.append(name, said);
  if (typeof go === "string") link.href = go;
  else link.addEventListener("click", (event) => {
    event.preventDefault();
    palette.close();
    go();
  });
  if (typeof go !== "string") link.href = "#";
  return link;
}

function acts() {
  return all("#run-acts summary, #run-acts > div > button").map((control) => option(control.textContent.trim(), "action of this run", () => {
    if (control.localName !== "summary") return control.click();
    control.parentElement.open = true;
    one("input:not([type=hidden]), textarea", control.parentElement)?.focus();
  }));
}

function offer(found = []) {
  const words = typed.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const fitting = [...acts(), ...places].filter((link) => words.every((word) => link.textContent.toLowerCase().includes(word)));
  const list = one("#palette-list");
  list.replaceChildren(...(typed.value.trim() ? [...fitting.slice(0, 8), ...found] : fitting.slice(0, 12)));
  if (typed.value.trim()) list.append(option(`“${typed.value.trim()}”`, "open the run of this id, or search", () => typed.form.requestSubmit()));
  [...list.children].forEach((link, at) => (link.id = `place-${at}`));
  choose(0);
}

function choose(at) {
  const links = [...one("#palette-list").children];
  at = (at + links.length) % links.length;
  links.forEach((link, other) => link.setAttribute("aria-selected", other === at));
  typed.setAttribute("aria-activedescendant", links[at]?.id ?? "");
  links[at]?.scrollIntoView({ block: "nearest" });
}

function chosen() {
  return Math.max(0, [...one("#palette-list").children].findIndex((link) => link.ariaSelected === "true"));
}

async function lookUp() {
  const number = ++search, text = typed.value.trim();
  offer();
  if (!text) return;
  await new Promise((done) => setTimeout(done, 150));
  if (number !== search) return;
  const answer = await fetch(`${root.dataset.base}/v1/runs?${new URLSearchParams({ search: text, limit: 6 })}`).catch(() => null);
  if (number !== search || !answer?.ok) return;
  const { runs } = await answer.json();
  if (number === search) offer(runs.map((run) => option(run.run_id, `${run.state} · ${run.workflow}`, `${root.dataset.base}/open?${new URLSearchParams({ q: run.run_id })}`)));
}

typed?.addEventListener("input", lookUp);
typed?.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") choose(chosen() + 1);
  else if (event.key === "ArrowUp") choose(chosen() - 1);
  else if (event.key === "Enter") one("#palette-list").children[chosen()]?.click();
  else return;
  event.preventDefault();
});
palette?.addEventListener("beforetoggle", (event) => { // "toggle" comes later than the first letters of a quick typist
  if (event.newState !== "open") return;
  typed.value = "";
  offer();
});
palette?.addEventListener("click", (event) => event.target === palette && palette.close());

// Keys; each is also a visible control. They are dead where somebody types.

let going = false;

document.addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() !== "k" || !(event.ctrlKey || event.metaKey) || event.altKey || event.shiftKey || !palette) return;
  event.preventDefault();
  if (!one("dialog:modal")) palette.showModal();
  else if (palette.open) palette.close();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target.closest?.("input, select, textarea, [contenteditable]")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (one("dialog:modal")) return;
  const went = going;
  going = false;
  const link = went && all(".top nav a[data-key]").find((one) => one.dataset.key === event.key);
  if (link) link.click();
  else if (event.key === "g") going = true;
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
// A copied time is ISO 8601 in UTC, whatever zone the page shows.

document.addEventListener("copy", (event) => {
  const selection = getSelection();
  if (selection.isCollapsed || event.target.closest?.("input, textarea")) return;
  const times = all("time[datetime]").filter((time) => selection.containsNode(time, true));
  if (!times.length) return;
  const { anchorNode, anchorOffset, focusNode, focusOffset } = selection, range = selection.getRangeAt(0).cloneRange();
  const shown = times.map((time) => [...time.childNodes]);
  for (const time of times) {
    if (time.contains(range.startContainer)) range.setStartBefore(time);
    if (time.contains(range.endContainer)) range.setEndAfter(time);
  }
  times.forEach((time) => time.replaceChildren(time.dateTime));
  selection.removeAllRanges();
  selection.addRange(range);
  event.clipboardData.setData("text/plain", selection.toString());
  times.forEach((time, at) => time.replaceChildren(...shown[at]));
  selection.setBaseAndExtent(anchorNode, anchorOffset, focusNode, focusOffset);
  event.preventDefault();
});
document.addEventListener("submit", (event) => {
  if (event.target.method === "post") setTimeout(() => all("button", event.target).forEach((button) => (button.disabled = true)));
});

// After a link to another page the keyboard goes on in its content.

try {
  if (sessionStorage.getItem("followed") && !location.hash && !one("[autofocus]", one("#main"))) one("#main").focus({ preventScroll: true });
  sessionStorage.removeItem("followed");
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href]");
    if (link?.origin === location.origin && !link.hash && !event.defaultPrevented) sessionStorage.setItem("followed", "1");
  });
} catch {
  // a browser that keeps nothing
}

// Menus close when something else gets the focus.

document.addEventListener("focusin", (event) => {
  for (const menu of all("details[open] > .menu")) if (!menu.parentElement.contains(event.target)) menu.parentElement.open = false;
});
document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && event.target.closest?.("details[open]");
  if (!menu || !one(".menu", menu)) return;
  menu.open = false;
  one("summary", menu).focus();
});

function prepare() {
  localize();
  for (const button of all("[data-copy]")) button.hidden = !navigator.clipboard;
  for (const button of all("[data-noscript]")) button.hidden = true;
}

prepare();
tick();
setInterval(tick, 1000);
listenAll();
