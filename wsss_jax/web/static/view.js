// The page of a map: what is shown, the address that leads back to it, keys, and the readout.

(function (app) {
  "use strict";
  const state = JSON.parse(document.body.dataset.state);
  const find = (id) => document.getElementById(id);
  const POINT = 60; // milliseconds between two questions about the place under the pointer
  const message = find("message");

  app.say = function (text) {
    message.textContent = text;
    message.hidden = !text;
  };

  const stage = app.makeStage(state);
  const region = app.makeRegion(state, stage);
  const places = app.makePlaces(state, stage);
  const corrections = app.makeCorrections ? app.makeCorrections(state, stage) : null;

  // ---- what is shown

  const layer = find("layer");
  const opacity = find("opacity");
  const beside = find("beside");
  const boxes = [...document.querySelectorAll("[data-class]")];
  const isOff = (value) => !boxes[value].checked;
  let isHidden = false; // the map, by a key

  function show() {
    const name = layer.value;
    const isClasses = name === "classes" || name === "outlines";
    app.paint.setTable(
      isClasses ? app.paint.paintClasses(state.classes, isOff) : app.paint.paintRamp(name === "margin"));
    const isBeside = beside.checked;
    const strength = isHidden ? 0 : isBeside ? 100 : Number(opacity.value);
    find("map").style.opacity = strength / 100;
    opacity.disabled = isBeside;
    stage.showLayer(name);
    showRamp(isClasses ? null : name);
    remember();
  }

  function showRamp(name) {
    const ramp = find("ramp");
    ramp.hidden = !name;
    if (!name) return;
    const colors = [0, 0.25, 0.5, 0.75, 1].map((share) => `rgb(${app.paint.mix(share).map(Math.round).join(" ")})`);
    ramp.querySelector("i").style.background = `linear-gradient(to right, ${colors.join(", ")})`;
    const [low, high] = ramp.querySelectorAll("span");
    [low.textContent, high.textContent] = name.startsWith("class-") ? ["0", "1"] : ["sure", "not sure"];
  }

  function setBeside() {
    stage.setBeside(beside.checked);
    show();
    setTimeout(stage.refresh, 50);
  }

  for (const element of [layer, opacity, ...boxes]) element.addEventListener("input", () => {
    isHidden = false;
    show();
  });
  beside.addEventListener("input", setBeside);

  // ---- the address: #x and y of the center, and width of the screen, in micrometers from where
  // QuPath begins to count; layer, opacity, off and beside

  const [originX, originY] = state.bounds;
  const [mppX, mppY] = state.mpp;
  let timer = 0;

  function makeHash() {
    const { x, y, um } = stage.getPlace();
    const values = new URLSearchParams({
      x: ((x - originX) * mppX).toFixed(1),
      y: ((y - originY) * mppY).toFixed(1),
      width: um.toFixed(1),
    });
    if (layer.value !== "classes") values.set("layer", layer.value);
    if (opacity.value !== "50") values.set("opacity", opacity.value);
    const off = boxes.filter((box) => !box.checked).map((box) => box.dataset.class);
    if (off.length) values.set("off", off.join("."));
    if (beside.checked) values.set("beside", "1");
    return `#${values}`;
  }

  function remember() {
    clearTimeout(timer);
    timer = setTimeout(() => history.replaceState(null, "", makeHash()), 300);
  }

  function goToHash(immediately) {
    const values = new URLSearchParams(location.hash.slice(1));
    const number = (name) => (values.has(name) ? Number(values.get(name)) : NaN);
    if (state.layers[values.get("layer")]) layer.value = values.get("layer");
    if (number("opacity") >= 0 && number("opacity") <= 100) opacity.value = number("opacity");
    const off = (values.get("off") || "").split(".");
    for (const box of boxes) box.checked = !off.includes(box.dataset.class);
    beside.checked = values.get("beside") === "1";
    setBeside();
    const [x, y, um] = [number("x"), number("y"), number("width")];
    if (Number.isFinite(x) && Number.isFinite(y) && um > 0)
      stage.goTo(originX + x / mppX, originY + y / mppY, um, immediately);
    else stage.fit(state.bounds, 0.95, immediately);
  }

  addEventListener("hashchange", () => goToHash(false));
  find("link").addEventListener("click", async () => {
    history.replaceState(null, "", makeHash());
    try {
      await navigator.clipboard.writeText(location.href);
      app.say("The link is copied.");
    } catch {
      app.say(`The link: ${location.href}`); // browsers refuse it without a secure connection
    }
    setTimeout(() => app.say(""), 4000);
  });

  // ---- scale bar, magnification

  function showScale() {
    const um = stage.getScale();
    const longest = 160 * um;
    const power = 10 ** Math.floor(Math.log10(longest));
    const length = [5, 2, 1].map((digit) => digit * power).find((each) => each <= longest);
    const format = (value) => Number(value.toPrecision(3)).toString();
    find("scale").querySelector("i").style.width = `${length / um}px`;
    find("scale").querySelector("span").textContent =
      `${length < 1000 ? `${format(length)} µm` : `${format(length / 1000)} mm`} · ${format(10 / um)}×`;
  }

  for (const button of document.querySelectorAll("[data-power]"))
    button.addEventListener("click", () => stage.setPower(Number(button.dataset.power)));
  document.querySelector("[data-fit]").addEventListener("click", () => stage.fit(state.bounds, 0.95));
  stage.whenMoved(() => {
    showScale();
    remember();
  });

  // ---- what is under the pointer

  let asked = 0;
  let last = 0;
  let waiting = 0;

  function describe(x, y, found) {
    const at = `${((x - originX) * mppX).toFixed(0)}, ${((y - originY) * mppY).toFixed(0)} µm`;
    if (!found) return at;
    const label = state.classes[found.label] ? state.classes[found.label].name : "no class";
    const share = found.probabilities && found.probabilities[found.label];
    return `${label}${share === null || share === undefined ? "" : ` ${share.toFixed(2)}`} · ${at}`;
  }

  // A copy without a server has a small map in the page.
  let overview = null;
  if (state.overview) {
    const picture = new Image();
    picture.addEventListener("load", () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [picture.width, picture.height];
      overview = canvas.getContext("2d", { willReadFrequently: true });
      overview.drawImage(picture, 0, 0);
    });
    picture.src = state.overview.picture;
  }

  function readOverview(x, y) {
    const [stepX, stepY] = state.overview.step;
    const [column, row] = [Math.floor(x / stepX), Math.floor(y / stepY)];
    if (!overview) return null;
    if (column < 0 || row < 0 || column >= overview.canvas.width || row >= overview.canvas.height)
      return { label: -1 };
    return { label: overview.getImageData(column, row, 1, 1).data[0] };
  }

  async function readPoint(x, y) {
    const number = ++asked;
    if (state.overview) {
      find("readout").textContent = describe(x, y, readOverview(x, y));
      return;
    }
    try {
      const answer = await fetch(`point?x=${x.toFixed(2)}&y=${y.toFixed(2)}`);
      if (!answer.ok) throw new Error(await answer.text());
      const found = await answer.json();
      if (number === asked) find("readout").textContent = describe(x, y, found);
    } catch (error) {
      if (number === asked) find("readout").textContent = `${describe(x, y, null)} · ${error.message}`;
    }
  }

  find("stage").addEventListener("pointermove", (event) => {
    const [x, y] = stage.locate(event);
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      last = performance.now();
      readPoint(x, y);
    }, Math.max(0, POINT - (performance.now() - last)));
  });
  find("stage").addEventListener("pointerleave", () => {
    clearTimeout(waiting);
    asked += 1;
    find("readout").textContent = "";
  });

  // ---- keys

  function step(element, by) {
    element.value = Math.min(100, Math.max(0, Number(element.value) + by));
    isHidden = false;
    show();
  }

  function nextLayer() {
    layer.selectedIndex = (layer.selectedIndex + 1) % layer.options.length;
    show();
  }

  function toggleBeside() {
    beside.checked = !beside.checked;
    setBeside();
  }

  const KEYS = {
    ArrowLeft: () => stage.move(-1, 0),
    ArrowRight: () => stage.move(1, 0),
    ArrowUp: () => stage.move(0, -1),
    ArrowDown: () => stage.move(0, 1),
    "+": () => stage.zoom(true),
    "=": () => stage.zoom(true),
    "-": () => stage.zoom(false),
    h: () => stage.fit(state.bounds, 0.95),
    o: () => { isHidden = !isHidden; show(); },
    "[": () => step(opacity, -10),
    "]": () => step(opacity, 10),
    l: nextLayer,
    b: toggleBeside,
    r: region.toggle,
    n: places.next,
    p: places.previous,
    c: () => corrections && corrections.begin(),
    "?": () => { find("help").open = !find("help").open; },
    Escape: region.remove,
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isField = event.target.matches("select, input[type=range], textarea, input[type=text]");
    if (isField) return;
    const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code);
    const key = digit && !event.shiftKey ? digit[1] : event.key;
    const isPress = event.target.matches("button, summary, a, input") && (key === "Enter" || key === " ");
    if (!isPress && corrections && corrections.take(key)) {
      event.preventDefault();
      return;
    }
    const action = KEYS[key.length === 1 ? key.toLowerCase() : key];
    if (digit && !event.shiftKey) {
      const box = boxes[Number(key) - 1];
      if (!box) return;
      box.checked = !box.checked;
      isHidden = false;
      show();
    } else if (action) action();
    else return;
    event.preventDefault();
  });

  if (state.problem) app.say(`${state.problem}. Its thumbnail is shown instead.`);
  goToHash(true);
  show();
  showScale();
  app.state = state; // for who wants to know
  app.stage = stage;
})(window.TissueMap);
