"use strict";
// The viewer answers only where a server shows this page.
if (location.protocol !== "file:") {
  for (const link of document.querySelectorAll("[data-viewer]")) link.hidden = false;
}
