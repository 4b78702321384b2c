// What a packet met, lit up in the picture and in the explanations.

/** Light up what the packet met in the shown picture, and in the explanations. */
function light(highlights) {
  const shown = all(`[data-family="${shownFamily()}"]`);
  all(".bar, .lit", byId("picture")).forEach((each) => each.remove());
  for (const svg of shown.flatMap((each) => all("svg.chart", each))) {
    svg.classList.add("asked");
    for (const group of all("g.head, g.box, g.end", svg)) {
      const key = group.dataset.key ?? `hook/${group.dataset.hook}`;
      const legs = legsOf(highlights, key, "reached");
      group.classList.toggle("met", legs.length > 0);
      dye(group, group.matches(".end") ? legs.slice(0, 1) : []);
    }
    all("g.row", svg).forEach((row) => lightRow(row, highlights));
    lightLines(svg, highlights);
    bringIntoView(svg);
  }
  for (const entry of shown.flatMap((each) => all("li[data-key]", each))) {
    const [hit, tried] = [legsOf(highlights, entry.dataset.key, "hit"), legsOf(highlights, entry.dataset.key, "tried")];
    dye(entry, hit.slice(0, 1));
    entry.classList.toggle("hit", hit.length > 0);
    const label = (legs, word) => (legs.length ? `${word} ${legs.map((leg) => leg + 1).join(", ")}` : "");
    const words = [label(hit, t("matched")), label(tried, t("checked"))];
    entry.querySelector(".met").textContent = words.filter(Boolean).join(" · ");
  }
}

/** Scroll the picture's frame, and nothing else, to where the packet's way begins, if it can't be seen. */
function bringIntoView(svg) {
  const frame = svg.closest(".frame");
  const begin = svg.querySelector(".row.hit, .row.tried")?.closest(".box").getBoundingClientRect();
  const seen = frame.getBoundingClientRect();
  if (begin && (begin.left < seen.left || begin.left + 200 > seen.right)) {
    frame.scrollLeft += begin.left - seen.left - 16;
  }
}

function legsOf(highlights, key, part) {
  return highlights.flatMap((way, leg) => (way[part].has(key) ? [leg] : []));
}

function dye(element, legs) {
  for (let leg = 0; leg < LEGS; leg += 1) {
    element.classList.toggle(colour(leg), legs.some((each) => each % LEGS === leg));
  }
}

function lightRow(row, highlights) {
  const [hit, tried] = [legsOf(highlights, row.dataset.key, "hit"), legsOf(highlights, row.dataset.key, "tried")];
  row.classList.toggle("hit", hit.length > 0);
  row.classList.toggle("tried", tried.length > 0 && hit.length === 0);
  dye(row, hit.slice(0, 1));
  const ground = row.querySelector(".ground");
  const [x, y, height] = ["x", "y", "height"].map((name) => Number(ground.getAttribute(name)));
  const bars = [...new Set([...hit, ...tried])].sort((one, other) => one - other).slice(0, 3);
  bars.forEach((leg, at) => {
    const bar = document.createElementNS(SVG, "rect");
    bar.setAttribute("class", `bar ${colour(leg)}${hit.includes(leg) ? "" : " tried"}`);
    const place = { x: x + 2 + 4 * at, y: y + 2, width: 3, height: height - 4 };
    Object.entries(place).forEach(([name, value]) => bar.setAttribute(name, value));
    ground.after(bar);
  });
}

/** Lines that were taken, once for each connection, beside each other, before what they lie under. */
function lightLines(svg, highlights) {
  const first = svg.querySelector("g.box, g.end");
  for (const line of all(".line:not(.lit), .tip:not(.lit)", svg)) {
    legsOf(highlights, line.dataset.key, "links").forEach((leg, shift) => {
      const copy = line.cloneNode();
      copy.classList.add("lit", colour(leg));
      copy.setAttribute("transform", `translate(${3 * shift} ${-3 * shift})`);
      first.before(copy);
    });
  }
}

/** A rule's row in the picture is pointed out while the pointer is over its explanation. */
function connect() {
  for (const entry of all("li[data-key]")) {
    const point = (on) => () => {
      const shown = all("[data-family]:not([hidden]) g.row").find((row) => row.dataset.key === entry.dataset.key);
      shown?.classList.toggle("pointed", on);
    };
    entry.addEventListener("mouseenter", point(true));
    entry.addEventListener("mouseleave", point(false));
  }
}
