// Answers for places where the map is wrong. One is kept when the server says so.

(function (app) {
  "use strict";
  const CANNOT_TELL = "?";
  const SVG = "http://www.w3.org/2000/svg";

  app.makeCorrections = function (state, stage) {
    const settings = state.corrections;
    const start = document.getElementById("correct");
    if (!settings || !start) return null;
    const form = document.getElementById("answer");
    const status = document.getElementById("corrected");
    const marks = document.getElementById("marks");
    const answers = [...form.querySelectorAll("[data-answer]")];
    const [wide, tall] = settings.size; // of a patch, pixels of the slide
    let known = []; // corrections of this slide
    let place = null; // center of the one that is being answered
    let pointer = null;
    let isBusy = false;
    let isConfirming = false; // that no class is there

    const frame = document.createElementNS(SVG, "rect");
    frame.classList.add("chosen");

    function draw() {
      marks.querySelectorAll(".correction").forEach((each) => each.remove());
      for (const each of known) {
        const box = document.createElementNS(SVG, "rect");
        box.classList.add("correction");
        setBox(box, each.x, each.y);
        const title = document.createElementNS(SVG, "title");
        title.textContent = `${each.person}: ${name(each.answer)}`;
        box.append(title);
        marks.append(box);
      }
      if (place) {
        setBox(frame, ...place);
        marks.append(frame);
      } else frame.remove();
    }

    function setBox(box, x, y) {
      const [left, top] = stage.project(x - wide / 2, y - tall / 2);
      const [right, bottom] = stage.project(x + wide / 2, y + tall / 2);
      box.setAttribute("x", left);
      box.setAttribute("y", top);
      box.setAttribute("width", Math.max(0, right - left));
      box.setAttribute("height", Math.max(0, bottom - top));
    }

    function name(answer) {
      if (answer === CANNOT_TELL) return "cannot tell";
      const named = state.classes.filter((_, index) => answer[index] === "1");
      return named.map((each) => each.name).join(" + ") || "none of them";
    }

    async function ask(path, body) {
      if (body) isBusy = true; // one change at a time
      try {
        const answer = await fetch(path, body && {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify(body),
        });
        if (!answer.ok) throw new Error(await answer.text());
        return await answer.json();
      } catch (error) {
        status.textContent = `Not saved: ${error.message}`;
        return null;
      } finally {
        if (body) isBusy = false;
      }
    }

    async function load() {
      const answer = await ask(`/corrections/${encodeURIComponent(state.folder)}`);
      if (!answer) return;
      known = answer;
      document.getElementById("undo").disabled = !known.some((each) => each.person === settings.person);
      draw();
    }

    function open(x, y) {
      place = [x, y];
      isConfirming = false;
      form.hidden = false;
      start.setAttribute("aria-pressed", true);
      answers.forEach((button) => button.setAttribute("aria-pressed", false));
      status.textContent = "";
      draw();
    }

    function close() {
      place = null;
      form.hidden = true;
      setChoosing(false);
      draw();
    }

    function setChoosing(is) {
      start.setAttribute("aria-pressed", is);
      document.body.classList.toggle("choosing", is);
    }

    const makeKey = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("-");

    async function save(isUnsure) {
      if (!place || isBusy) return;
      const chosen = answers.map((button) => Number(button.getAttribute("aria-pressed") === "true"));
      if (!isUnsure && !chosen.includes(1) && !isConfirming) {
        isConfirming = true;
        status.textContent = "None of these? Save once more.";
        return;
      }
      const answer = isUnsure ? CANNOT_TELL : chosen.join("");
      const [x, y] = place;
      if (await ask("/correction", { key: makeKey(), slide: state.folder, x, y, answer })) {
        close();
        status.textContent = `Saved: ${name(answer)}`;
        await load();
      }
    }

    async function undo() {
      if (isBusy) return;
      if (await ask("/correction/undo", { key: makeKey(), slide: state.folder })) {
        status.textContent = "The last correction is taken back.";
        await load();
      }
    }

    const element = document.getElementById("stage");
    element.addEventListener("pointermove", (event) => { pointer = stage.locate(event); });
    element.addEventListener("click", (event) => {
      if (!document.body.classList.contains("choosing") || event.target.closest("button")) return;
      document.body.classList.remove("choosing");
      open(...stage.locate(event));
    });
    start.addEventListener("click", () => (place ? close() : setChoosing(!document.body.classList.contains("choosing"))));
    answers.forEach((button) => button.addEventListener("click", () => toggle(Number(button.dataset.answer))));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      save(false);
    });
    document.getElementById("cannot-tell").addEventListener("click", () => save(true));
    document.getElementById("drop").addEventListener("click", close);
    document.getElementById("undo").addEventListener("click", undo);

    function toggle(index) {
      const button = answers[index];
      isConfirming = false;
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    }

    stage.whenMoved(draw);
    load();
    return {
      // Whether a key was for an open answer.
      take(key) {
        if (!place) return false;
        const index = settings.keys.indexOf(key.toLowerCase());
        if (key === "Enter") save(false);
        else if (key === CANNOT_TELL) save(true);
        else if (key === "Escape") close();
        else if (index >= 0 && index < answers.length) toggle(index);
        else return false;
        return true;
      },
      begin: () => pointer && open(...pointer),
    };
  };
})(window.TissueMap);
