// The labeling page. A key is answered only after the server has stored it.

const AHEAD = 20; // patches whose pictures are loaded before they are needed
const RETRY = 1000; // milliseconds between two attempts to reach the server
const SWIPE = 60; // pixels

const { texts, keys, classes, idle, start } = JSON.parse(document.body.dataset.state);
const find = (id) => document.getElementById(id);
const picture = find("picture");
const message = find("message");
const rows = [...document.querySelectorAll("#classes li")];
const fields = [...document.querySelectorAll("#fields button")];

const pictures = new Map(); // patch -> Image that is loaded, or loading
let queue = start.patches; // { patch, draft }: the first is shown
let progress = start.progress;
let field = 1; // sides of the patch that are shown
let confirming = false; // Next was pressed without any class

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

// ---- time of looking: while the page is seen, and somebody is there

let looked = 0; // milliseconds at the patch
let since = null; // when counting went on; null = it does not

function count() {
  const now = performance.now();
  if (since !== null) looked += Math.min(now - since, idle);
  since = document.hidden ? null : now;
}

for (const event of ["keydown", "pointerdown", "pointermove", "wheel", "touchmove"])
  addEventListener(event, count, { passive: true, capture: true });
document.addEventListener("visibilitychange", count);

// ---- what is shown

function show() {
  const current = queue[0];
  confirming = false;
  document.body.classList.toggle("finished", !current);
  for (const button of document.querySelectorAll("#classes button, #next, #cannot-tell"))
    button.disabled = !current;
  showProgress();
  if (!current) {
    picture.removeAttribute("src");
    say(texts.finished);
    return;
  }
  say("");
  showDraft();
  showField(1);
  looked = 0;
  since = document.hidden ? null : performance.now();
}

function showDraft() {
  for (const row of rows) {
    const value = queue[0].draft[row.dataset.class];
    for (const button of row.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(value) === button.dataset.value);
  }
}

function showField(sides) {
  field = sides;
  for (const button of fields)
    button.setAttribute("aria-pressed", Number(button.dataset.field) === field);
  const patch = queue[0].patch;
  const image = sides === 1 ? load(patch) : Object.assign(new Image(), { src: `/surroundings/${patch}/${sides}` });
  const reveal = () => {
    if (queue[0]?.patch === patch && field === sides) picture.classList.remove("waiting");
  };
  // Never the last patch above the answers to this one.
  if (!image.complete) picture.classList.add("waiting");
  picture.src = image.src;
  picture.decode().then(reveal, () => {
    reveal();
    if (queue[0]?.patch === patch && field === sides)
      say(sides === 1 ? texts.no_picture : texts.no_slide);
  });
}

function showProgress() {
  const { done, total, seconds } = progress;
  find("progress").textContent = fill(texts.progress, { done, total });
  find("bar").value = total ? done / total : 1;
  find("pace").textContent = seconds === null ? "" : fill(texts.pace, {
    seconds: seconds.toFixed(1),
    left: formatMinutes(Math.ceil((seconds * (total - done)) / 60)),
  });
}

function formatMinutes(minutes) {
  const hours = Math.floor(minutes / 60);
  return hours
    ? fill(texts.hours, { hours, minutes: minutes % 60 })
    : fill(texts.minutes, { minutes });
}

function say(text) {
  message.textContent = text;
  message.hidden = !text;
}

function load(patch) {
  if (!pictures.has(patch)) {
    const image = new Image();
    image.src = `/patch/${patch}`;
    image.decode().catch(() => pictures.delete(patch));
    pictures.set(patch, image);
  }
  return pictures.get(patch);
}

// ---- the server

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

let isUnsaved = false; // keys are not taken while one waits for the server

async function request(path, body) {
  for (;;) {
    let response;
    try {
      response = await fetch(path, body && {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
      });
    } catch {
      response = null;
    }
    if (response && response.status < 500) {
      isUnsaved = false;
      if (response.ok) return response.json();
      say(response.status === 401 ? texts.no_access : fill(texts.refused, { reason: await response.text() }));
      return null;
    }
    isUnsaved = true;
    say(texts.not_saved);
    await wait(RETRY);
  }
}

async function send(kind, patch, value) {
  const wasShown = message.textContent;
  const key = crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random()}`;
  if (kind === "done") count();
  const time = kind === "done" ? Math.round(looked) : 0;
  const answer = await request("/event", { key, kind, patch, value, looked: time });
  if (!answer) return null;
  if (message.textContent !== wasShown) say("");
  progress = answer.progress;
  return answer;
}

async function refill() {
  const last = queue.length ? queue[queue.length - 1].patch : 0;
  const more = await request(`/next?after=${last}`);
  if (!more) return;
  const known = new Set(queue.map((each) => each.patch));
  queue.push(...more.patches.filter((each) => !known.has(each.patch)));
  progress = more.progress;
  queue.slice(0, AHEAD).forEach((each) => load(each.patch));
  const kept = new Set(queue.map((each) => each.patch));
  for (const patch of pictures.keys()) if (!kept.has(patch)) pictures.delete(patch);
}

// ---- keys, one after the other

let last = Promise.resolve();

function enqueue(act) {
  if (isUnsaved) return;
  last = last.then(act, act);
}

async function set(index, value) {
  const current = queue[0];
  if (!current) return;
  const answer = await send("set", current.patch, `${index}=${value}`);
  if (!answer) return;
  current.draft = answer.draft;
  confirming = false;
  say("");
  showDraft();
}

async function finish(value) {
  const current = queue[0];
  if (!current) return;
  const label = classes.map((_, index) => current.draft[index] ?? 0).join("");
  if (!value && !label.includes("1") && !confirming) {
    confirming = true;
    say(texts.none);
    return;
  }
  if (!(await send("done", current.patch, value || label))) return;
  queue.shift();
  if (!queue.length) await refill();
  show();
  if (queue.length < AHEAD) refill(); // while the next patch is looked at
}

async function undo() {
  const answer = await send("undo", 0, "");
  if (!answer?.undone) return;
  const { patch } = answer.undone;
  if (queue[0]?.patch === patch) {
    queue[0].draft = answer.draft;
    confirming = false;
    say("");
    showDraft();
    return;
  }
  queue = [{ patch, draft: answer.draft }, ...queue.filter((each) => each.patch !== patch)];
  show();
}

const toggle = (index) => set(index, queue[0]?.draft[index] === 1 ? 0 : 1);

function turnField() {
  if (!queue.length || !fields.length) return;
  const sides = fields.map((button) => Number(button.dataset.field));
  showField(sides[(sides.indexOf(field) + 1) % sides.length]);
}

addEventListener("keydown", (event) => {
  if (event.repeat || event.altKey || event.metaKey) return;
  if (event.ctrlKey && event.key !== "z") return;
  const index = event.ctrlKey ? -1 : keys.indexOf(event.key.toLowerCase());
  if (index >= 0 && index < classes.length) enqueue(() => toggle(index));
  else if (event.key === "Enter") enqueue(() => finish(""));
  else if (event.key === "Backspace" || event.ctrlKey) enqueue(undo);
  else if (event.key === "?") enqueue(() => finish("?"));
  else if (event.key.toLowerCase() === "s") turnField();
  else return;
  event.preventDefault();
});

for (const row of rows)
  for (const button of row.querySelectorAll("button"))
    button.addEventListener("click", () =>
      enqueue(() => set(Number(row.dataset.class), Number(button.dataset.value))));
find("next").addEventListener("click", () => enqueue(() => finish("")));
find("cannot-tell").addEventListener("click", () => enqueue(() => finish("?")));
find("undo").addEventListener("click", () => enqueue(undo));
for (const button of fields)
  button.addEventListener("click", () => queue.length && showField(Number(button.dataset.field)));
find("answer").addEventListener("submit", (event) => event.preventDefault());

// A finger that moves left goes on, to the right takes back.
let touched = null;
picture.addEventListener("touchstart", (event) => {
  touched = event.touches.length === 1 ? event.touches[0] : null;
}, { passive: true });
picture.addEventListener("touchend", (event) => {
  if (!touched) return;
  const across = event.changedTouches[0].clientX - touched.clientX;
  const down = event.changedTouches[0].clientY - touched.clientY;
  touched = null;
  if (Math.abs(across) < SWIPE || Math.abs(across) < 2 * Math.abs(down)) return;
  enqueue(across < 0 ? () => finish("") : undo);
}, { passive: true });

// Another tab may have gone on meanwhile.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) enqueue(async () => {
    const fresh = await request("/next?after=0");
    if (!fresh) return;
    const shown = queue[0]?.patch;
    queue = fresh.patches;
    progress = fresh.progress;
    if (queue[0]?.patch === shown) showProgress();
    else show();
  });
});

show();
queue.slice(0, AHEAD).forEach((each) => load(each.patch));
