// Colors for gray tiles: a filter of the browser looks every gray value up in a table.

window.TissueMap = window.TissueMap || {};

(function (app) {
  "use strict";
  const NOTHING = 255; // gray value of probabilities where there is no class
  // Corners of the color map viridis (Smith and van der Walt 2015).
  const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

  function mix(share) {
    const at = share * (RAMP.length - 1);
    const first = Math.min(Math.floor(at), RAMP.length - 2);
    return RAMP[first].map((value, i) => value + (at - first) * (RAMP[first + 1][i] - value));
  }

  // Returns 256 times [red, green, blue, seen].
  function paintClasses(classes, isOff) {
    return Array.from({ length: 256 }, (_, value) =>
      value < classes.length && !isOff(value) ? [...classes[value].color, 255] : [0, 0, 0, 0]);
  }

  function paintRamp(isReversed) {
    return Array.from({ length: 256 }, (_, value) => {
      const share = value / (NOTHING - 1);
      return value === NOTHING ? [0, 0, 0, 0] : [...mix(isReversed ? 1 - share : share), 255];
    });
  }

  function setTable(table) {
    const filter = document.getElementById("paint");
    // A quarter more, since browsers cut off what they compute.
    const scale = (value) => Math.min(1, (value + 0.25) / 255).toFixed(5);
    const write = (part, index) =>
      part.setAttribute("tableValues", table.map((row) => scale(row[index])).join(" "));
    const [color, seen] = filter.querySelectorAll("feComponentTransfer");
    [...color.children].forEach(write);
    write(seen.firstElementChild, 3);
  }

  app.paint = { paintClasses, paintRamp, setTable, mix };
})(window.TissueMap);
