"use strict";
// Without this script the page is whole: rows are in the order of the names.
{
  const collator = new Intl.Collator(undefined, {numeric: true, sensitivity: "base"});

  const read = (row, column, key) => row.cells[column].dataset[key] ?? "";

  // Rows without a value come last in both directions; equal ones keep their order.
  const compare = (kind, sign) => ([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (kind === "number" ? Number(a) - Number(b) : collator.compare(a, b));
  };

  function sort(table, head, button) {
    const key = button.dataset.key, kind = head.dataset.sort;
    const again = head.hasAttribute("aria-sort") && button.classList.contains("active");
    // Numbers begin with the largest, names with the first.
    const first = kind === "number" ? "descending" : "ascending";
    const other = kind === "number" ? "ascending" : "descending";
    const direction = again && head.getAttribute("aria-sort") === first ? other : first;
    for (const each of head.parentNode.cells) each.removeAttribute("aria-sort");
    for (const each of table.tHead.querySelectorAll("button")) each.classList.remove("active");
    head.setAttribute("aria-sort", direction);
    button.classList.add("active");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => a.dataset.order - b.dataset.order);
    const pairs = rows.map((row) => [read(row, head.cellIndex, key), row]);
    pairs.sort(compare(kind, direction === "ascending" ? 1 : -1));
    table.tBodies[0].append(...pairs.map(([, row]) => row));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tBodies[0].rows].forEach((row, order) => { row.dataset.order = order; });
    for (const head of table.tHead.querySelectorAll("th[data-sort]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.key = "value";
      button.append(...head.childNodes);
      head.append(button);
      if (head.hasAttribute("data-areas")) {
        const unit = document.createElement("button");
        unit.type = "button";
        unit.className = "unit";
        unit.dataset.key = "mm2";
        unit.textContent = "mm²";
        unit.setAttribute("aria-label", `${button.textContent.trim()}, mm²`);
        head.append(unit);
      }
      for (const each of head.querySelectorAll("button")) {
        each.addEventListener("click", () => sort(table, head, each));
      }
    }
  }

  const filter = document.getElementById("filter");
  const named = [...document.querySelectorAll("[data-name]")];
  const names = new Set(named.map((each) => each.dataset.name));

  function show() {
    const wanted = filter.value.trim().toLowerCase();
    const has = (name) => name.toLowerCase().includes(wanted);
    for (const each of named) each.classList.toggle("left-out", !has(each.dataset.name));
    const count = [...names].filter(has).length;
    document.querySelector(".filter output").value =
      wanted ? `${count} of ${names.size} slides` : "";
  }

  filter.addEventListener("input", show);
  document.querySelector(".filter").hidden = names.size < 2;
  show();  // browsers keep what was typed when the page is loaded again
}
