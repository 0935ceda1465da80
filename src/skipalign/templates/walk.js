// Arrow keys go from cell to cell of a heat map, line to line of a plot, token to token of a
// sample, and what the one in focus has to say stands at the foot of the window: for touch and
// keys, which cannot hover. Without this every label is still there for a screen reader.
{
  const SPEAKING = "[data-walk] [aria-label], [data-walk=text] [title]";
  const told = document.createElement("div");
  told.className = "told";
  told.hidden = true;
  told.setAttribute("aria-hidden", "true"); // the element in focus says the same
  document.body.append(told);
  const tell = (one) => {
    told.textContent = one ? (one.getAttribute("aria-label") ?? one.title) : "";
    told.hidden = !one;
  };
  const all = (group) =>
    [...group.querySelectorAll(group.dataset.walk === "text" ? "[title]" : "[aria-label]")];
  const seen = (one) => !one.closest(".out");
  for (const group of document.querySelectorAll("[data-walk]")) {
    if (group.dataset.walk === "grid") {
      group.setAttribute("role", "grid");
      group.setAttribute("aria-readonly", "true");
    }
    all(group).forEach((one, place) => { one.tabIndex = place ? -1 : 0; });
  }
  const inGrid = (one, key) => {
    const row = one.parentElement;
    const rows = { ArrowUp: row.previousElementSibling, ArrowDown: row.nextElementSibling };
    if (key in rows) return rows[key]?.cells[one.cellIndex];
    const cells = [...row.cells].filter((cell) => cell.hasAttribute("aria-label"));
    const place = cells.indexOf(one);
    return { ArrowLeft: cells[place - 1], ArrowRight: cells[place + 1], Home: cells[0],
      End: cells.at(-1) }[key];
  };
  const inList = (group, one, key) => {
    const items = all(group).filter(seen);
    const place = items.indexOf(one);
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[key];
    return step ? items[place + step] : { Home: items[0], End: items.at(-1) }[key];
  };
  document.addEventListener("keydown", (event) => {
    const one = event.target.closest?.(SPEAKING);
    if (!one) return;
    if (event.key === "Escape") tell(null);
    const group = one.closest("[data-walk]");
    const isGrid = group.dataset.walk === "grid";
    const walk = isGrid ? inGrid(one, event.key) : inList(group, one, event.key);
    if (!walk) return;
    event.preventDefault();
    one.tabIndex = -1;
    walk.tabIndex = 0;
    walk.focus();
  });
  document.addEventListener("focusin", (event) => tell(event.target.closest?.(SPEAKING)));
  document.addEventListener("focusout", () => tell(null));
}
