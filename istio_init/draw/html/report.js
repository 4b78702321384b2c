// A path in the format of `istio-init explain --output json`. The same as simulate/report.py and wording.py.

/** The path of the packet in the form. Throws Refused for a wrong value. */
function explain(model, typed, family) {
  const request = parseRequest(model, typed);
  const facts = withRequest(model, request);
  const { legs, loop } = follow(model, packetOf(model, request, facts, family), facts, model.envoy);
  return {
    legs: legs.map((leg) => legJson(model, leg)),
    verdict: verdict(legs, loop),
    end: legs.at(-1).end,
    loop: loop || null,
    stop: loop ? null : model.stops[legs.at(-1).end] ?? null,
    fate: fate(model, legs.at(-1)),
  };
}

/** What happens to the packet, in a word or two. */
function verdict([first], loop) {
  if (loop) {
    return "loop";
  }
  if (["dropped", "queued", "undecided"].includes(first.end)) {
    return first.end;
  }
  if (["application", "wire", "forwarded"].includes(first.end)) {
    return "not captured";
  }
  return first.arrived.redirected || first.arrived.tproxy_port ? "captured" : "addressed to the proxy";
}

function legJson(model, leg) {
  return {
    sender: leg.sender,
    packet: packetJson(model, leg.packet),
    way: leg.passed.map((each) => (each.decision ? decisionJson(each) : hookJson(model, each))),
    end: leg.end,
    arrived: packetJson(model, leg.arrived),
    fate: fate(model, leg),
  };
}

function packetJson(model, packet) {
  const [source, destination] = [addressText(packet.source), addressText(packet.destination)];
  return { ...packet, protocol: protocolText(model, packet.protocol), source, destination };
}

function protocolText(model, protocol) {
  return model.protocols[protocol] ?? `${protocol}`;
}

function decisionJson({ packet, by, changed, refused }) {
  return {
    routing: packet.hook,
    in_interface: packet.in_interface,
    out_interface: packet.out_interface,
    changed,
    refused: refused || null,
    policy_rule: by ? { mark: by.mark, table: by.table } : null,
  };
}

function hookJson(model, met) {
  return { hook: met.hook, outcome: met.outcome, steps: met.steps.map((step) => stepJson(model, step)) };
}

function stepJson(model, step) {
  const { table, chain, number, rule, matched } = step;
  if (step.skipped) {
    return { table, skipped: step.skipped };
  }
  if (step.end) {
    return { table, chain, back_to: step.to || null, policy: step.policy || null };
  }
  const why = step.failed ? whyNot(model, step.failed, step.before) : effect(step);
  return { table, chain, number, rule: rule.text, matched, why, purpose: rule.purpose };
}

/** Where a leg ended and why, in one sentence. */
function fate(model, leg) {
  const { arrived, end } = leg;
  let words = model.ends[end];
  if (["outbound", "inbound", "tunnel", "dns"].includes(end)) {
    const port = arrived.tproxy_port || arrived.destination_port;
    words += `, ${endpointText(arrived.destination, port)}${arrived.tproxy_port ? ", destination kept" : ""}`;
  } else if (end === "application") {
    words += ` at ${endpointText(arrived.destination, arrived.destination_port)}`;
  } else if (end === "wire" || end === "forwarded") {
    words += ` ${arrived.out_interface} to ${endpointText(arrived.destination, arrived.destination_port)}`;
  }
  return `${words}, ${because(model, leg)}`;
}

function because(model, leg) {
  const last = leg.passed.at(-1);
  if (last.refused) {
    return `because ${last.refused}`;
  }
  const end = last.steps?.at(-1);
  if (leg.end === "dropped" && end?.end && end.policy === "DROP") {
    return `because the policy of ${end.chain} in ${end.table} is ${end.policy}`;
  }
  const step = decisive(leg);
  if (!step) {
    return "because no rule applies";
  }
  if (step.matched === null) {
    const why = step.failed ? whyNot(model, step.failed, step.before) : effect(step);
    return `because ${placeOf(step)} cannot be decided: ${why}`;
  }
  // The jump, where it led to one of the chains that do the same to everything.
  const shown = step.via && model.tails.includes(step.chain) ? step.via : step;
  return `because ${placeOf(shown)}: ${shown.rule.purpose?.text ?? shown.rule.text}`;
}

function placeOf(step) {
  return `${step.chain} rule ${step.number}${step.table === "nat" ? "" : ` of ${step.table}`}`;
}

/** Why a match did not hold for a packet, or why that cannot be decided. */
function whyNot(model, match, packet) {
  if (!match.wanted) {
    return match.what;
  }
  if (match.is === "Owner" && ownerOf(match, packet) === null) {
    return "no socket sent it";
  }
  const found = packetValue(model, match, packet);
  if (!match.negated) {
    return `${match.what} ${found}, not ${match.wanted}`;
  }
  return found === match.wanted ? `${match.what} ${found}` : `${match.what} ${found}, which is in ${match.wanted}`;
}

/** What a match finds in a packet. */
function packetValue(model, match, packet) {
  const port = (asked) => (asked ? `${asked}` : "none");
  switch (match.is) {
    case "Source":
      return addressText(packet.source);
    case "Destination":
      return addressText(packet.destination);
    case "InInterface":
      return packet.in_interface || "no interface";
    case "OutInterface":
      return packet.out_interface || "no interface yet";
    case "Protocol":
      return protocolText(model, packet.protocol);
    case "SourcePorts":
      return port(packet.source_port);
    case "DestinationPorts":
      return port(packet.destination_port);
    case "Multiport":
      return portsOf(match, packet).map(port).join(" and ");
    case "Owner":
      return `${ownerOf(match, packet)}`;
    case "Mark":
      return markText(packet.mark);
    case "ConnMark":
      return markText(packet.connmark);
    case "AddressRange":
      return addressText(packet[match.side]);
    case "TcpFlags":
      return "SYN";
    case "Direction":
      return packet.reply ? "REPLY" : "ORIGINAL";
    default: // CtState
      return packet.ctstate;
  }
}

function markText(mark) {
  return `0x${hexadecimal(mark, 1)}`;
}

/** What a rule that matched did to the packet, or why that cannot be decided. */
function effect(step) {
  const { assumed } = step.rule;
  return effectAlone(step) + (assumed ? `, assuming that ${assumed}` : "");
}

function effectAlone({ rule: { target }, before, after, answer }) {
  switch (target.is) {
    case "Verdict":
      return { RETURN: "leaves this chain", ACCEPT: "passes this table", DROP: "is dropped", "": "is counted" }[target.name]
        ?? "is handed to a program";
    case "Jump":
      return `goes to chain ${target.chain}${target.goto ? " (goto)" : ""}`;
    case "Redirect":
      return after.redirected
        ? `destination becomes ${endpointText(after.destination, after.destination_port)}`
        : `is dropped: ${before.in_interface} has no address to redirect to`;
    case "Tproxy":
      return `goes to the transparent socket on port ${after.tproxy_port}, mark ${markText(after.mark)}`;
    case "SetMark":
    case "RestoreMark":
      return `mark ${after.mark === before.mark ? "stays" : "becomes"} ${markText(after.mark)}`;
    case "SaveMark":
      return `the connection's mark becomes ${markText(after.connmark)}`;
    case "CtZone":
      if (before.tracked) {
        return "connection tracking has seen it already";
      }
      return before.zone === null ? `conntrack zone ${target.zone}` : `its conntrack zone stays ${before.zone}`;
    case "SetConnMark":
      return `the connection's mark becomes ${markText(after.connmark)}`;
    case "NoTrack":
      return after.ctstate === "UNTRACKED" ? "connection tracking leaves it alone" : "is tracked already";
    case "Translate": {
      if (target.own && answer === "DROP") {
        return `is dropped: ${before.out_interface} has no address`;
      }
      return `${target.side} becomes ${endpointText(after[target.side], after[`${target.side}_port`])}`;
    }
    case "MapAddress":
      return ["INPUT", "POSTROUTING"].includes(before.hook)
        ? `source becomes ${addressText(after.source)}`
        : `destination becomes ${addressText(after.destination)}`;
    default: // Fixed
      return target.words;
  }
}
