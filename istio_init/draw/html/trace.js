// One packet's way through one netfilter hook, rule by rule. As simulate/trace.py.

const HOOKS = {
  PREROUTING: ["raw", "mangle", "nat"],
  INPUT: ["mangle", "filter", "security", "nat"],
  FORWARD: ["mangle", "filter", "security"],
  OUTPUT: ["raw", "mangle", "nat", "filter", "security"],
  POSTROUTING: ["mangle", "nat"],
};
const NAT_SIDES = { PREROUTING: "destination", OUTPUT: "destination", INPUT: "source", POSTROUTING: "source" };
const FIRST = ["NEW", "RELATED"];
const ICMP = [1, 58];

/**
 * The packet's way through all tables of its hook: how it came, what it met, how it left, and the verdict.
 *
 * A step is a rule that was met, {end: true} the end of a chain, {skipped} a table that the packet skipped.
 */
function trace(tables, packet, facts) {
  const before = packet;
  const steps = [];
  let outcome = "ACCEPT";
  for (const name of HOOKS[packet.hook]) {
    for (const table of tablesOf(tables, name)) {
      let why = name === "nat" ? notTranslated(packet) : "";
      if (why && table.name === name) {
        packet = translated(table, packet, facts);
      } else if (name === "nat" && !why && ends(packet) !== ends(before)) {
        why = "another table has translated the connection";
      }
      if (why) {
        steps.push({ table: table.name, skipped: why });
        continue;
      }
      [packet, outcome] = walk(table, packet, facts, steps);
      if (outcome !== "ACCEPT") {
        return { hook: before.hook, before, steps, packet: leaving(packet), outcome };
      }
    }
  }
  return { hook: before.hook, before, steps, packet: leaving(packet), outcome };
}

/** The tables of this name, those of other backends first: theirs are called such as `nat (nft)`. */
function tablesOf(tables, name) {
  const found = tables.filter((each) => each.name.split(" ")[0] === name);
  return [...found.filter((each) => each.name !== name), ...found.filter((each) => each.name === name)];
}

function ends({ source, source_port, destination, destination_port }) {
  return [source, source_port, destination, destination_port].join();
}

/** The packet behind its hook: tracked, and its connection's translation decided on that hook's side. */
function leaving(packet) {
  const side = NAT_SIDES[packet.hook];
  if (UNCONNECTED.includes(packet.ctstate) || !side) {
    return packet;
  }
  const sides = packet.translated.includes(side) ? packet.translated : [...packet.translated, side];
  return { ...packet, tracked: true, zone: packet.zone ?? 0, translated: sides };
}

/** Why nat skips this packet; empty where it does not. */
function notTranslated(packet) {
  if (UNCONNECTED.includes(packet.ctstate)) {
    return `the packet is ${packet.ctstate}, it belongs to no connection that could be translated`;
  }
  if (!FIRST.includes(packet.ctstate)) {
    return `the connection is ${packet.ctstate}, it keeps the translation that its first packet was given`;
  }
  if (packet.ctstate === "RELATED" && ICMP.includes(packet.protocol)) {
    return "an error message is translated as the connection that it is about";
  }
  if (packet.translated.includes(NAT_SIDES[packet.hook])) {
    return "the connection's translation was decided when it was sent";
  }
  return "";
}

/** A later packet of a connection, with the translation that its first packet gets from the same rules. */
function translated(nat, packet, facts) {
  const side = NAT_SIDES[packet.hook];
  if ([...UNCONNECTED, ...FIRST].includes(packet.ctstate) || packet.translated.includes(side) || packet.reply) {
    return packet;
  }
  const [first] = walk(nat, { ...packet, ctstate: "NEW" }, facts, []);
  return { ...first, ctstate: packet.ctstate };
}

/** The packet behind one table, and the verdict; what it met is added to the steps. */
function walk(table, packet, facts, steps) {
  const chainOf = (name) => table.chains.find((chain) => chain.name === name);
  const base = chainOf(packet.hook) ?? { name: packet.hook, rules: [], policy: "ACCEPT" };
  // Where to go on behind each jump: the chain, the position, and the jump that led to that chain.
  const stack = [];
  let [chain, at, via] = [base, 0, null];
  const ended = (to, policy) => {
    steps.push({ table: table.name, chain: chain.name, end: true, to, policy });
  };
  for (;;) {
    let answer = "RETURN";
    let jump = null;
    if (at === chain.rules.length) {
      if (stack.length) {
        ended(stack.at(-1)[0].name, "");
      }
    } else {
      const step = meet(table, chain, at, via, packet, facts);
      steps.push(step);
      [packet, answer, jump] = [step.after, step.answer, step];
      at += 1;
    }
    if (answer === "JUMP") {
      const target = jump.rule.target;
      if (!target.goto) {
        stack.push([chain, at, via]);
      }
      [chain, at, via] = [chainOf(target.chain), 0, jump];
    } else if (answer === "RETURN") {
      if (!stack.length) {
        const policy = base.policy === "DROP" ? "DROP" : "ACCEPT";
        ended("", policy);
        return [packet, policy];
      }
      [chain, at, via] = stack.pop();
    } else if (answer !== "CONTINUE") {
      return [packet, answer];
    }
  }
}

/** One rule: the step it makes, and what comes next. */
function meet(table, chain, at, via, before, facts) {
  const rule = chain.rules[at];
  let [matched, failed] = matchesAll(rule.matches, before, facts);
  let [after, answer] = [before, "CONTINUE"];
  if (matched === null) {
    answer = passesOn(rule.target) ? "CONTINUE" : "UNDECIDED";
  } else if (matched) {
    [after, answer] = act(rule.target, before, facts);
    matched = answer === "UNDECIDED" ? null : true;
  }
  return { table: table.name, chain: chain.name, number: at + 1, rule, matched, failed, before, after, answer, via };
}

/** Whether a packet goes on with the next rule as it was, so that it matters little whether the rule matched. */
function passesOn(target) {
  return isVerdict(target, "") || (target.is === "Fixed" && target.answer === "CONTINUE");
}

function isVerdict(target, ...names) {
  return target.is === "Verdict" && names.includes(target.name);
}

/** The rule that decided at a hook: the last that gave a verdict, or else the last that returned the packet. */
function decisiveOf(met) {
  const reached = met.steps.filter((step) => step.rule && step.matched !== false);
  const ends = (step) => drops(step) || (step.matched === null && step.answer === "UNDECIDED");
  const ending = met.outcome === "ACCEPT" ? undefined : reached.find(ends);
  if (ending) {
    return ending; // a later table may refuse what an earlier one redirected
  }
  let last = null;
  for (const step of reached) {
    const captures = ["Redirect", "Tproxy"].includes(step.rule.target.is);
    const translates = step.answer === "ACCEPT" && changes(step);
    if (captures || translates) {
      return step;
    }
    if (step.matched && ["RETURN", "ACCEPT"].includes(step.answer)) {
      last = step;
    }
  }
  return last;
}

function changes(step) {
  return JSON.stringify(step.after) !== JSON.stringify(step.before);
}

function drops(step) {
  return step.matched === true && ["DROP", "QUEUE"].includes(step.answer);
}
