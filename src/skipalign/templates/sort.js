"use strict";
// Tables can be read without this; it lets a column's heading sort the rows.
{
  const SECONDS = { ms: 0.001, s: 1, min: 60, h: 3600, d: 86400 };
  const number = (text) => {
    const plain = text.replace(/[,\s]/g, "").replace(/^\u2212/, "-");
    const times = [...plain.matchAll(/([\d.]+)(ms|min|s|h|d)(?![a-z])/g)];
    if (times.length) return times.reduce((sum, [, n, unit]) => sum + n * SECONDS[unit], 0);
    const found = /^[+-]?[\d.]+/.exec(plain);
    return found ? Number(found[0]) : NaN;
  };
  const text = (row, column) => {
    const cell = row.cells[column];
    const shown = (cell.dataset.value ?? cell.textContent).trim();
    return shown === "–" ? "" : shown;
  };
  const sort = (table, column, down, numeric) => {
    const compare = (one, other) => {
      const [a, b] = [text(one, column), text(other, column)];
      if (!a || !b) return !a - !b; // what was not measured comes last either way
      const order = numeric ? number(a) - number(b) : a.localeCompare(b, "en", { numeric: true });
      return down ? -order : order;
    };
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("heading"));
      body.append(...rows.sort(compare));
    }
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const rows = [...table.tBodies].flatMap((body) => [...body.rows]);
        const shown = rows.filter((row) => row.cells[column]).map((row) => text(row, column));
        const numeric = shown.every((each) => !each || !isNaN(number(each)));
        const before = head.getAttribute("aria-sort");
        const down = before ? before === "ascending" : numeric;
        sort(table, column, down, numeric);
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
      });
    });
  }
}
