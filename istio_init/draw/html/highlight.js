// Which rows and links of the picture a packet lights up, connection by connection, as draw/highlight.py.

const ALONE = "end/alone/";

function highlightsOf(links, described) {
  return described.legs.map((leg) => highlightOf(links, leg));
}

function highlightOf(links, leg) {
  const tried = new Set();
  const hit = new Set();
  const taken = new Map();
  const hooks = leg.way.filter((each) => each.hook);
  for (const { steps } of hooks) {
    let last = ""; // the row that ended the walk through the hook's tables
    let [table, ended] = ["", false];
    for (const step of steps.filter((each) => !each.skipped)) {
      if (step.table !== table) {
        [table, ended] = [step.table, false];
      }
      const key = `${step.table}/${step.chain}/${step.number ?? 0}`;
      if (step.matched === false) {
        tried.add(key);
        continue;
      }
      if (!step.number && ended) {
        continue; // the end of a chain that a RETURN led back to
      }
      hit.add(key);
      const to = links[key] ?? "";
      if (to.startsWith("end/")) {
        ended = true;
        last = !last || links[last].startsWith(ALONE) ? key : last;
      } else if (to) {
        taken.set(key, to);
      }
    }
    // What one table leaves alone another may still take, and what was taken once is not left alone.
    if (last && !(links[last].startsWith(ALONE) && [...taken.values()].some(takes))) {
      taken.set(last, links[last]);
    }
  }
  const boxes = [...tried, ...hit].map((key) => key.slice(0, key.lastIndexOf("/")));
  return {
    tried: new Set([...tried].filter((key) => !hit.has(key))),
    hit,
    links: new Set(taken.keys()),
    reached: new Set([...boxes, ...taken.values(), ...hooks.map((each) => `hook/${each.hook}`)]),
  };
}

function takes(to) {
  return to.startsWith("end/") && !to.startsWith(ALONE);
}
