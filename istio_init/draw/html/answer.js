// An answer of explain.js, for people: where the packet ended, and each connection rule by rule.

const MOST_MISSES = 6; // of a run of rules that don't match, before they are folded

const CAPTURERS = {
  outbound: "Captured by Envoy, outbound", inbound: "Captured by Envoy, inbound",
  dns: "Captured by the agent's DNS resolver",
};
const TROUBLE = { dropped: "Dropped", queued: "Passed to another program", undecided: "Cannot be decided" };

function showAnswer(described) {
  const capturer = described.legs.map((leg) => CAPTURERS[leg.end]).find(Boolean);
  const summary = byId("summary");
  if (described.loop) {
    summary.textContent = t("A loop: it comes to the same listener again, and never ends");
  } else {
    const outcome = TROUBLE[described.end] ?? capturer;
    summary.textContent = outcome ? t(outcome) : t("Left alone");
  }
  summary.className = described.loop || described.end in TROUBLE ? "trouble" : capturer ? "captured" : "alone";
  byId("legs").replaceChildren(...described.legs.map(legCard));
  if (described.stop) {
    byId("legs").lastChild.append(make("p", "fate", described.stop));
  }
}

function legCard(leg, at) {
  const { packet } = leg;
  const facts = [`${packet.protocol} ${packetEnds(packet)}`, ...packetFacts(packet)];
  return make(
    "li", `leg ${colour(at)}`,
    make("h3", "", make("b", "count", `${at + 1}`), t("From {}", t(leg.sender))),
    make("p", "packet", facts.join(", ")),
    make("p", "fate", `${leg.fate}.`),
    make("details", "", make("summary", "", t("Rule by rule")), ...leg.way.map(hookLines)),
  );
}

function packetEnds(packet) {
  const bracketed = (address) => (address.includes(":") ? `[${address}]` : address);
  const end = (address, port) => (port ? `${bracketed(address)}:${port}` : address);
  return `${end(packet.source, packet.source_port)} → ${end(packet.destination, packet.destination_port)}`;
}

function packetFacts(packet) {
  return [
    packet.in_interface && `in ${packet.in_interface}`,
    packet.out_interface && `out ${packet.out_interface}`,
    packet.uid !== null && `uid ${packet.uid}`,
    packet.gid !== null && `gid ${packet.gid}`,
    packet.mark && `mark ${markText(packet.mark)}`,
    packet.connmark && `connection mark ${markText(packet.connmark)}`,
    packet.ctstate !== "NEW" && packet.ctstate,
  ].filter(Boolean);
}

/** A hook with the rules that were met there, or what routing decided behind it. */
function hookLines(each) {
  if (!each.hook) {
    return make("p", "decision", decisionText(each));
  }
  const lines = [];
  let [table, misses] = ["", []];
  const flush = () => {
    const [first, rest] = [misses.slice(0, MOST_MISSES), misses.slice(MOST_MISSES)];
    lines.push(...first);
    if (rest.length) {
      const title = make("summary", "", t("{} more that don't match", `${rest.length}`));
      lines.push(make("li", "rest", make("details", "", title, make("ul", "", ...rest))));
    }
    misses = [];
  };
  for (const step of each.steps.filter((step) => step.skipped || step.number)) {
    // Long runs of rules that don't match are folded, but for the nine.
    const folds = step.matched === false && !step.purpose?.number;
    if (!folds) {
      flush();
    }
    if (step.table !== table) {
      table = step.table;
      const skipped = step.skipped ? t("{}: skipped, {}", "", step.skipped) : "";
      lines.push(make("li", "table", make("b", "", table), skipped));
    }
    if (!step.skipped) {
      (folds ? misses : lines).push(stepLine(step));
    }
  }
  flush();
  const name = make("p", "hook", lines.length ? each.hook : t("{}: no rules", each.hook));
  return make("div", "", name, make("ul", "", ...lines));
}

const SIGNS = {
  true: ["✓", "matched", "hit"], false: ["–", "did not match", "miss"], null: ["?", "cannot be decided", "trouble"],
};

function stepLine(step) {
  const [sign, said, name] = SIGNS[step.matched];
  const mark = make("span", "sign", sign);
  mark.setAttribute("role", "img");
  mark.setAttribute("aria-label", t(said));
  const rule = make("code", "", `${step.chain} ${step.number} ${step.rule}`);
  return make("li", name, mark, rule, make("span", "why", step.why));
}

function decisionText(decision) {
  if (decision.refused) {
    return t("The kernel drops it, whatever the rules are");
  }
  const table = decision.policy_rule && `${decision.policy_rule.table}`;
  switch (decision.routing) {
    case "INPUT":
      return table ? t("Routing: delivered here, by its mark and table {}", table)
        : t("Routing: delivered here, for the pod itself");
    case "FORWARD":
      return t("Routing: not for the pod itself, forwarded by {}", decision.out_interface);
    case "PREROUTING":
      return t("Looped back into the pod by lo");
    default:
      if (decision.changed) {
        return table ? t("Routing: leaves by {} now, because of its mark and table {}", decision.out_interface, table)
          : t("Routing: leaves by {} now, because of its new destination", decision.out_interface);
      }
      return t("Routing: leaves by {}", decision.out_interface || t("an interface"));
  }
}
