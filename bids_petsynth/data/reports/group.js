// Sorting and filtering of the group report's tables. Without scripts the tables are still all there.
"use strict";
(() => {
  const text = (row, column) => row.cells[column].textContent.trim();

  function compare(a, b, column, way) {
    const [x, y] = [a.cells[column].dataset.sort, b.cells[column].dataset.sort];
    if (x !== undefined && y !== undefined) return way * (Number(x) - Number(y));
    // numbers before words whatever the order, so that n/a comes last
    if (x !== undefined) return -1;
    if (y !== undefined) return 1;
    return way * text(a, column).localeCompare(text(b, column), "en", { numeric: true });
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.title = head.title;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => compare(a, b, column, down ? -1 : 1));
        body.append(...rows);
      });
    });
  }

  for (const controls of document.querySelectorAll(".controls[data-for]")) {
    const rows = [...document.getElementById(controls.dataset.for).tBodies[0].rows];
    const fields = [...controls.querySelectorAll("[data-filter]")];
    const said = controls.querySelector("[role=status]");
    const apply = () => {
      let shown = 0;
      for (const row of rows) {
        const fits = fields.every((field) => {
          if (!field.value) return true;
          if (field.dataset.filter === "*") return row.textContent.toLowerCase().includes(field.value.toLowerCase());
          return text(row, Number(field.dataset.filter)) === field.value;
        });
        row.hidden = !fits;
        shown += fits;
      }
      said.textContent = shown + " of " + rows.length + " rows";
    };
    for (const field of fields) field.addEventListener("input", apply);
    apply();
  }

  // what is folded is printed, too
  const folded = () => [...document.querySelectorAll("details:not([open])")];
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = folded();
    for (const part of opened) part.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const part of opened) part.open = false;
  });
})();
