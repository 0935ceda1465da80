// Shows the methods that are chosen in every table, plot and map; all of them without this.
{
  const box = document.getElementById("choose");
  const MOST_LABELS = 32, MOST_COLOURS = 7, GAP = 14;
  const setUp = () => {
    const boxes = [...box.querySelectorAll("input[type=checkbox]")];
    const parts = new Map(boxes.map((each) => [each.value, []]));
    for (const part of document.querySelectorAll("[data-m]")) parts.get(part.dataset.m).push(part);
    const plots = [...document.querySelectorAll("svg.many")].filter((plot) => plot.querySelector("[data-m]"));
    const colours = new Map(plots.flatMap((plot) => [...plot.querySelectorAll(".series")])
      .map((line) => [line, line.getAttribute("stroke")]));
    const count = box.querySelector("output");
    const tell = (chosen) => { count.textContent = `(${chosen} of ${boxes.length} shown)`; };
    const apply = () => {
      const chosen = boxes.filter((each) => each.checked).map((each) => each.value);
      for (const [name, found] of parts) {
        for (const part of found) part.classList.toggle("out", !chosen.includes(name));
      }
      plots.forEach((plot) => draw(plot, chosen, colours));
      tell(chosen.length);
    };
    const set = (wanted) => { boxes.forEach((each) => { each.checked = wanted(each); }); apply(); };
    const listed = (each) => !each.closest("li").hidden;
    const wanted = { listed, all: () => true, none: () => false };
    box.addEventListener("change", (event) => { if (boxes.includes(event.target)) apply(); });
    box.addEventListener("click", (event) => { if (event.target.value in wanted && event.target.matches("button")) set(wanted[event.target.value]); });
    box.querySelector("[type=search]").addEventListener("input", (event) => {
      const part = event.target.value.toLowerCase();
      for (const each of boxes) {
        const item = each.closest("li");
        item.hidden = !item.textContent.toLowerCase().includes(part);
      }
    });
    box.hidden = false;
    if (boxes.some((each) => !each.checked)) apply(); // as a browser restores a page
    else tell(boxes.length);
  };
  // A few lines get the first colours, and names beside their ends.
  const draw = (plot, chosen, colours) => {
    const lines = [...plot.querySelectorAll(".series")].filter((line) => !line.classList.contains("out"));
    plot.classList.toggle("crowded", lines.length > MOST_LABELS);
    const few = chosen.length <= MOST_COLOURS;
    const ends = lines.map((line) => {
      const colour = few ? `var(--s${chosen.indexOf(line.dataset.m) + 1})` : colours.get(line);
      line.setAttribute("stroke", colour);
      line.setAttribute("fill", colour);
      const [x, y, right] = line.querySelector(".leader").getAttribute("d").match(/-?[\d.]+/g).map(Number);
      return { line, x, y, right };
    });
    if (lines.length > MOST_LABELS) return;
    spread(ends, Number(plot.dataset.top), Number(plot.dataset.bottom));
    for (const { line, x, y, right, place } of ends) {
      line.querySelector(".leader").setAttribute("d", `M${x} ${y}L${right} ${place}`);
      line.querySelector(".label").setAttribute("y", place + 4);
    }
  };
  const spread = (ends, low, high) => {
    const order = [...ends].sort((one, other) => one.y - other.y);
    let free = low;
    for (const end of order) { end.place = Math.max(end.y, free); free = end.place + GAP; }
    free = Math.max(high, low + GAP * (ends.length - 1));
    for (const end of order.reverse()) { end.place = Math.min(end.place, free); free = end.place - GAP; }
  };
  if (box) setUp();
}
