// A region that somebody draws, and what is counted in it or on the screen.

(function (app) {
  "use strict";
  const MOST = 1500; // corners
  const PAUSE = 400; // milliseconds without movement before the screen is counted

  const percent = (share) => (share === null ? "n/a" : `${(100 * share).toFixed(1)} %`);
  const area = (mm2) => (mm2 >= 0.1
    ? `${mm2.toFixed(2)} mm²`
    : `${Number((mm2 * 1e6).toPrecision(2)).toLocaleString("en")} µm²`);

  app.makeRegion = function (state, stage) {
    const marks = document.getElementById("marks");
    const draw = document.getElementById("draw");
    const clear = document.getElementById("clear");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polygon");
    line.id = "region";
    marks.append(line);
    let corners = null; // of the region: pixels of the slide
    let isDrawing = false; // until the pointer is lifted
    let asked = 0;
    let timer = 0;

    const total = state.areas.reduce((sum, row) => sum + row.mm2, 0);
    state.areas.forEach((row, index) => {
      const cell = document.querySelector(`[data-whole="${index}"]`);
      cell.textContent = percent(total ? row.mm2 / total : null);
      cell.title = area(row.mm2);
    });
    document.getElementById("whole-area").textContent = area(total);

    async function count() {
      if (!draw) return; // without a server
      const number = ++asked;
      const [left, top, right, bottom] = stage.getView();
      const shown = corners || [[left, top], [right, top], [right, bottom], [left, bottom]];
      const title = corners ? "Region" : "On screen";
      let found;
      try {
        const answer = await fetch("count", {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({ corners: shown }),
        });
        if (!answer.ok) throw new Error(await answer.text());
        found = await answer.json();
      } catch (error) {
        if (number === asked) app.say(`Not counted: ${error.message}`);
        return;
      }
      if (number !== asked) return; // something else is shown by now
      app.say("");
      document.getElementById("part-title").textContent = title;
      found.shares.forEach((share, index) => {
        const cell = document.querySelector(`[data-part="${index}"]`);
        cell.textContent = percent(share);
        cell.title = `${area(found.mm2[index])}, ${Math.round(found.pixels[index]).toLocaleString("en")} pixels`;
      });
      const sum = found.mm2.slice(0, found.shares.length).reduce((a, b) => a + b, 0);
      document.getElementById("part-area").textContent = area(sum);
      document.getElementById("part-note").textContent =
        found.step > 1 ? `Every ${found.step}th pixel along both axes was counted.` : "";
    }

    function countSoon() {
      if (corners) return;
      clearTimeout(timer);
      timer = setTimeout(count, PAUSE);
    }

    function show() {
      const points = corners ? corners.map(([x, y]) => stage.project(x, y).join(",")) : [];
      line.setAttribute("points", points.join(" "));
      if (clear) clear.hidden = !corners || isDrawing;
    }

    function setDrawing(is) {
      isDrawing = is;
      draw.setAttribute("aria-pressed", is);
      stage.setMovable(!is);
      document.body.classList.toggle("drawing", is);
    }

    function remove() {
      corners = null;
      if (isDrawing) setDrawing(false);
      show();
      count();
    }

    const element = document.getElementById("stage");
    element.addEventListener("pointerdown", (event) => {
      if (!isDrawing || event.button !== 0 || event.target.closest("button")) return;
      corners = [stage.locate(event)];
      event.preventDefault();
    });
    element.addEventListener("pointermove", (event) => {
      if (!isDrawing || !corners || !event.buttons || corners.length >= MOST) return;
      corners.push(stage.locate(event));
      show();
    });
    element.addEventListener("pointerup", () => {
      if (!isDrawing || !corners) return;
      if (corners.length < 3) corners = null;
      setDrawing(false);
      show();
      count();
    });
    if (draw) {
      draw.addEventListener("click", () => setDrawing(!isDrawing));
      clear.addEventListener("click", remove);
    }
    stage.whenMoved(() => {
      show();
      countSoon();
    });
    return { remove, toggle: () => draw && setDrawing(!isDrawing), isDrawing: () => isDrawing };
  };
})(window.TissueMap);
