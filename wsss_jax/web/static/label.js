// The labeling page. A key is answered only after the server has stored it.

const AHEAD = 20; // patches whose pictures are loaded before they are needed
const RETRY = 1000; // milliseconds between two attempts to reach the server
const PATIENCE = 4000; // milliseconds after which the server is taken not to answer
const SWIPE = 60; // pixels
const ZOOMED = 1.05; // scale from which a finger moves the page

const { texts, keys, classes, idle, person, start } = JSON.parse(document.body.dataset.state);
const find = (id) => document.getElementById(id);
const picture = find("picture");
const message = find("message");
const rows = [...document.querySelectorAll("#classes li")];
const fields = [...document.querySelectorAll("#fields button")];

const pictures = new Map(); // patch -> Image that is loaded, or loading
let queue = start.patches; // { patch, draft, picture }: the first is shown
let progress = start.progress;
let field = 1; // sides of the patch that are shown
let confirming = false; // Next was pressed without any class
let sight = "waiting"; // of the patch: "waiting" for a picture, "seen", or "missing"
let view = null; // another object for each picture that is to be shown

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
  for (const button of document.querySelectorAll("#classes button, #next, #cannot-tell, #fields button"))
    button.disabled = !current;
  showProgress();
  scrollTo(0, 0);
  if (!current) {
    view = null;
    picture.removeAttribute("src");
    picture.ariaBusy = "false";
    say(texts.finished);
    return;
  }
  say("");
  showDraft();
  sight = "waiting";
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

// The answers have changed, the patch has not.
function updateDraft(draft) {
  queue[0].draft = draft;
  if (confirming) say("");
  confirming = false;
  showDraft();
}

async function showField(sides) {
  const current = queue[0];
  const mine = (view = {});
  field = sides;
  for (const button of fields)
    button.setAttribute("aria-pressed", Number(button.dataset.field) === field);
  const address = sides === 1 ? locate(current) : `/surroundings/${current.patch}/${sides}`;
  picture.ariaBusy = "true";
  // Never the last patch above the answers to this one.
  if (sides !== 1 || !load(current).complete) picture.classList.add("waiting");
  for (let isThere = false; ; ) {
    picture.src = address;
    const isDrawn = await picture.decode().then(() => true, () => false);
    if (view !== mine) return;
    if (isDrawn) {
      sight = "seen";
      if (message.textContent === texts.loading) say("");
      break;
    }
    const response = isThere ? null : await reach(address, { method: "HEAD" });
    if (view !== mine) return;
    if (isThere || response?.status === 404) { // no picture, or a file that is none
      if (sides === 1 && sight === "waiting") sight = "missing";
      say(sides === 1 ? texts.no_picture : texts.no_slide);
      break;
    }
    isThere = Boolean(response?.ok);
    if (isThere) continue;
    say(response?.status === 401 ? texts.no_access : texts.loading);
    await wait(RETRY);
    if (view !== mine) return;
  }
  picture.classList.remove("waiting");
  picture.ariaBusy = "false";
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

const locate = (each) => each.picture ?? `/patch/${each.patch}`;

function load(each) {
  if (!pictures.has(each.patch)) {
    const image = new Image();
    image.src = locate(each);
    image.decode().catch(() => pictures.delete(each.patch));
    pictures.set(each.patch, image);
  }
  return pictures.get(each.patch);
}

function loadAhead() {
  queue.slice(0, AHEAD).forEach(load);
}

// ---- the server

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

let isUnsaved = false; // keys are not taken while one waits for the server

// Gives the response; null = the server does not answer, or cannot.
async function reach(path, options) {
  try {
    const response = await fetch(path, { signal: AbortSignal.timeout(PATIENCE), ...options });
    return response.status < 500 ? response : null;
  } catch {
    return null;
  }
}

// Gives { content } or { status, reason }; null = the server does not answer.
async function ask(path, body) {
  const response = await reach(path, body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  try {
    if (!response?.ok) return response && { status: response.status, reason: await response.text() };
    return { content: await response.json() };
  } catch { // broken off, or from something between here and the server
    return null;
  }
}

// Asks until there is an answer, and says so; gives its content, null = refused.
async function insist(path, body) {
  const shown = message.textContent;
  for (;;) {
    const answer = await ask(path, body);
    if (answer) {
      if (isUnsaved) say(shown);
      isUnsaved = false;
      if (answer.content) return answer.content;
      say(answer.status === 401 ? texts.no_access : fill(texts.refused, answer));
      return null;
    }
    isUnsaved = true;
    say(body ? texts.not_saved : texts.no_answer);
    await wait(RETRY);
  }
}

async function send(kind, patch, value) {
  const key = crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random()}`;
  if (kind === "done") count();
  const time = kind === "done" ? Math.round(looked) : 0;
  const answer = await insist("/event", { key, kind, patch, value, person, looked: time });
  if (answer) progress = answer.progress;
  else await renew(message.textContent); // the patch may not be there any more
  return answer;
}

const makeNext = (after) => `/next?after=${after}&person=${person}`;

function getLast() {
  return queue.length ? queue[queue.length - 1].patch : 0;
}

// Goes on with what the server says is next, where it answers at once.
async function renew(text) {
  const fresh = (await ask(makeNext(0)))?.content;
  if (fresh) {
    const shown = queue[0]?.patch;
    queue = fresh.patches;
    progress = fresh.progress;
    if (queue[0]?.patch !== shown) show();
    else if (queue.length) {
      updateDraft(queue[0].draft);
      showProgress();
    }
    loadAhead();
  }
  if (text) say(text);
}

function append(patches) {
  const known = new Set(queue.map((each) => each.patch));
  queue.push(...patches.filter((each) => !known.has(each.patch)));
  loadAhead();
  const kept = new Set(queue.map((each) => each.patch));
  for (const patch of pictures.keys()) if (!kept.has(patch)) pictures.delete(patch);
}

// While a patch is looked at: what fails here is tried again at the next one.
async function appendAhead() {
  const last = getLast();
  const more = (await ask(makeNext(last)))?.content;
  if (more && getLast() === last) append(more.patches);
}

// ---- keys, one after the other

let last = Promise.resolve();

function follow(act) {
  last = last.then(act, act);
}

// What is pressed is meant for the patch that is shown.
function enqueue(act) {
  const patch = queue[0]?.patch;
  if (!isUnsaved) follow(() => queue[0]?.patch === patch && act());
}

const mark = (index, value) => sight === "seen" && enqueue(() => set(index, value));
const toggle = (index) =>
  sight === "seen" && enqueue(() => set(index, queue[0]?.draft[index] === 1 ? 0 : 1));
const goOn = () => sight === "seen" && enqueue(() => finish(""));
const giveUp = () => sight !== "waiting" && enqueue(() => finish("?"));
const takeBack = () => enqueue(undo);

async function set(index, value) {
  const current = queue[0];
  if (!current) return;
  const answer = await send("set", current.patch, `${index}=${value}`);
  if (!answer) return;
  updateDraft(answer.draft);
  say("");
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
  if (!queue.length) {
    const more = await insist(makeNext(0));
    if (!more) return;
    append(more.patches);
  }
  show();
  if (queue.length < AHEAD) appendAhead();
}

async function undo() {
  const answer = await send("undo", 0, "");
  if (!answer?.undone) return;
  const { patch, picture } = answer.undone;
  if (queue[0]?.patch === patch) {
    updateDraft(answer.draft);
    say(sight === "missing" ? texts.no_picture : "");
    return;
  }
  const current = { picture, ...queue.find((each) => each.patch === patch), patch, draft: answer.draft };
  if ((await reach(locate(current), { method: "HEAD" }))?.status === 404) {
    await renew(texts.gone);
    return;
  }
  queue = [current, ...queue.filter((each) => each.patch !== patch)];
  show();
}

function turnField() {
  if (!queue.length || !fields.length) return;
  const sides = fields.map((button) => Number(button.dataset.field));
  showField(sides[(sides.indexOf(field) + 1) % sides.length]);
}

// Says what a key does; null = nothing, it is the browser's.
function chooseAct(event) {
  const key = event.key.toLowerCase();
  if (event.altKey) return null;
  if (event.ctrlKey || event.metaKey) return key === "z" && !event.shiftKey ? takeBack : null;
  if (key === "enter") return goOn;
  if (key === "backspace") return takeBack;
  if (key === "?") return giveUp;
  if (key === "s") return turnField;
  let index = [...keys].indexOf(key);
  // French and Czech keyboards have digits on Shift alone.
  if (index < 0 && !event.shiftKey) index = [...keys].indexOf(event.code.replace(/^Digit/, ""));
  return index >= 0 && index < classes.length ? () => toggle(index) : null;
}

addEventListener("keydown", (event) => {
  const act = chooseAct(event);
  if (!act) return;
  const isOnButton = document.activeElement.matches("button:focus-visible");
  if (event.key === "Enter" && isOnButton && !event.repeat) return; // it presses that button
  event.preventDefault(); // of held keys, too: they would press a button again and again
  if (!event.repeat) act();
});

// Else the next Enter would press that button.
addEventListener("click", (event) => {
  if (event.detail) event.target.closest("button")?.blur();
});

for (const row of rows)
  for (const button of row.querySelectorAll("button"))
    button.addEventListener("click", () =>
      mark(Number(row.dataset.class), Number(button.dataset.value)));
find("next").addEventListener("click", goOn);
find("cannot-tell").addEventListener("click", giveUp);
find("undo").addEventListener("click", takeBack);
for (const button of fields)
  button.addEventListener("click", () => queue.length && showField(Number(button.dataset.field)));
find("answer").addEventListener("submit", (event) => event.preventDefault());

// A finger that moves left goes on, to the right takes back; in a zoomed page it moves the page.
let touched = null;
const isZoomed = () => visualViewport.scale > ZOOMED;
visualViewport.addEventListener("resize", () =>
  document.body.classList.toggle("zoomed", isZoomed()));
picture.addEventListener("touchstart", (event) => {
  touched = event.touches.length === 1 && !isZoomed() ? event.touches[0] : null;
}, { passive: true });
picture.addEventListener("touchend", (event) => {
  if (!touched || isZoomed()) return;
  const across = event.changedTouches[0].clientX - touched.clientX;
  const down = event.changedTouches[0].clientY - touched.clientY;
  touched = null;
  if (Math.abs(across) < SWIPE || Math.abs(across) < 2 * Math.abs(down)) return;
  if (across < 0) goOn();
  else takeBack();
}, { passive: true });

// Another tab may have gone on meanwhile.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) follow(() => renew(""));
});

show();
loadAhead();
