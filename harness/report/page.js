"use strict";
// The page is whole without this. It turns headings into buttons that sort, and names of the legend into some that hide.
const makeButton = (place) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...place.childNodes);
  place.append(button);
  return button;
};
const after = { ascending: "descending", descending: "" };
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const before = [...body.rows];
  const said = table.closest("section, details").querySelector("[role=status]");
  const valueOf = (row, column) => row.cells[column].dataset.sort;
  const compare = (a, b) => {
    const numbers = [Number(a), Number(b)];
    return numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
  };
  const sort = (column, way) => {
    const sign = way === "descending" ? -1 : 1;
    // What was not measured has no value and stays below, whichever way.
    const known = before.filter((row) => valueOf(row, column) !== undefined);
    const unknown = before.filter((row) => valueOf(row, column) === undefined);
    known.sort((a, b) => sign * compare(valueOf(a, column), valueOf(b, column)));
    body.append(...(way ? [...known, ...unknown] : before));
  };
  heads.forEach((head, column) => {
    const button = makeButton(head);
    // A browser is content with what lies below the columns that stay.
    button.addEventListener("focus", () => head.scrollIntoView({ block: "nearest", inline: "nearest" }));
    button.addEventListener("click", () => {
      const way = after[head.getAttribute("aria-sort")] ?? "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      if (way) head.setAttribute("aria-sort", way);
      sort(column, way);
      said.textContent = `${button.textContent}: ${way || "as it was"}`;
    });
  });
}
for (const entry of document.querySelectorAll(".legend li")) {
  const button = makeButton(entry);
  const name = button.querySelector("span").textContent; // the drawing has words of its own, its style
  const rows = [...document.querySelectorAll("table[data-sortable] tbody tr")].filter((row) => {
    const heads = [...row.closest("table").tHead.rows[0].cells];
    return row.cells[heads.findIndex((head) => /^method/i.test(head.textContent))]?.textContent === name;
  });
  const drawn = [...document.getElementsByClassName(entry.dataset.series)];
  button.setAttribute("aria-pressed", "true");
  button.addEventListener("click", () => {
    const hidden = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!hidden));
    for (const one of [...drawn, ...rows]) one.classList.toggle("hidden", hidden);
  });
}
