// The list of places that deserve a look.

(function (app) {
  "use strict";
  app.makePlaces = function (state, stage) {
    const buttons = [...document.querySelectorAll("[data-place]")];
    let current = -1;

    function show(index) {
      if (!buttons.length) return;
      current = (index + buttons.length) % buttons.length;
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === current));
      stage.fit(state.places[current].box, 0.6);
    }

    buttons.forEach((button, index) => button.addEventListener("click", () => show(index)));
    return { next: () => show(current + 1), previous: () => show(Math.max(current, 0) - 1) };
  };
})(window.TissueMap);
