// A packet's whole path: hook after hook, then what the proxy sends because of it. As simulate/path.py and martians.py.

const UNACCEPTED = { DROP: "dropped", QUEUE: "queued", UNDECIDED: "undecided" };

/** All connections in order, and the listener that was reached twice, or nothing. */
function follow(model, packet, facts, envoy) {
  const legs = [];
  let sender = packet.hook === "OUTPUT" ? model.application : model.client;
  let following = packet;
  while (following) {
    const leg = travel(model, following, facts, envoy, sender);
    const again = leg.end in model.senders && legs.some((each) => each.end === leg.end);
    legs.push(leg);
    if (again) {
      return { legs, loop: leg.end };
    }
    following = dialled(model, leg, facts, envoy);
    sender = model.senders[leg.end];
  }
  return { legs, loop: "" };
}

/** One packet's way from the hook that it starts at to where it is delivered, sent or dropped. */
function travel(model, packet, facts, envoy, sender) {
  const passed = [];
  const leg = (end, arrived) => ({ sender, packet, passed, end, arrived });
  const refused = packet.hook === "PREROUTING" ? martianAtTheDoor(packet) : "";
  if (refused) {
    passed.push(decision(packet, null, false, refused));
    return leg("dropped", packet);
  }
  const tables = model.families[familyOf(packet.destination)]?.tables ?? [];
  let current = packet;
  for (;;) {
    const met = trace(tables, current, facts);
    passed.push(met);
    if (met.outcome !== "ACCEPT") {
      return leg(UNACCEPTED[met.outcome], met.packet);
    }
    if (met.hook === "INPUT") {
      return leg(listener(model, envoy, met.packet) ?? "application", met.packet);
    }
    if (met.hook === "POSTROUTING" && met.packet.out_interface !== LOOPBACK_INTERFACE) {
      const forwarded = passed.some((each) => each.decision && each.packet.hook === "FORWARD");
      return leg(forwarded ? "forwarded" : "wire", met.packet);
    }
    const decision = decisionAfter(met, facts, packet.hook === "OUTPUT");
    passed.push(decision);
    if (decision.refused) {
      return leg("dropped", decision.packet);
    }
    current = decision.packet;
  }
}

/** Which of the proxy's listeners a packet that is delivered here reaches; null for a socket of the pod's. */
function listener(model, envoy, packet) {
  const port = packet.tproxy_port || packet.destination_port;
  if (port === model.dns_port) {
    return "dns";
  }
  if (packet.protocol !== TCP) {
    return null;
  }
  const ports = [[envoy.outbound_port, "outbound"], [envoy.inbound_port, "inbound"], [envoy.tunnel_port, "tunnel"]];
  return ports.find(([own]) => own === port)?.[1] ?? null;
}

/** The way from one hook to the next, for a packet that the hook let pass; `fromHere` for one that the pod sent. */
function decisionAfter(met, facts, fromHere) {
  const { packet, before } = met;
  if (met.hook === "PREROUTING") {
    return fromHere ? decision({ ...packet, hook: "INPUT" }) : arriving(packet, facts);
  }
  if (met.hook === "OUTPUT") {
    const sent = { ...packet, hook: "POSTROUTING" };
    const same = packet.destination === before.destination && packet.mark === before.mark;
    return same ? decision(sent) : routed(sent, facts);
  }
  if (met.hook === "FORWARD") {
    return decision({ ...packet, hook: "POSTROUTING", in_interface: "" });
  }
  // Over lo: the packet keeps its mark and its connection; the socket that sent it is forgotten.
  return decision({
    ...packet, hook: "PREROUTING", in_interface: LOOPBACK_INTERFACE, out_interface: "", uid: null, gid: null,
  });
}

function decision(packet, by = null, changed = false, refused = "") {
  return { decision: true, packet, by, changed, refused };
}

/** What came from outside: for the machine itself by its destination, its mark or a socket, or else forwarded. */
function arriving(packet, facts) {
  const refused = martianByRouting(packet, facts);
  if (refused) {
    return decision(packet, null, false, refused);
  }
  if (isLocal(facts, packet.destination)) {
    return decision({ ...packet, hook: "INPUT" });
  }
  const rule = policyRoute(facts, familyOf(packet.destination), packet.mark);
  if (rule || packet.tproxy_port) {
    return decision({ ...packet, hook: "INPUT" }, rule);
  }
  return decision({ ...packet, hook: "FORWARD", out_interface: facts.uplink });
}

/** A packet of the machine's own with the interface that it leaves by: local destinations, then policy routes. */
function routed(packet, facts) {
  const local = isLocal(facts, packet.destination);
  const rule = local ? null : policyRoute(facts, familyOf(packet.destination), packet.mark);
  const away = ["", LOOPBACK_INTERFACE].includes(packet.out_interface) ? facts.uplink : packet.out_interface;
  const device = local || rule ? LOOPBACK_INTERFACE : away;
  return decision({ ...packet, out_interface: device }, rule, packet.out_interface !== device);
}

/** The first packet of the connection that the proxy makes because of one that reached it; null where it makes none. */
function dialled(model, leg, facts, envoy) {
  const start = leg.packet;
  const asked = leg.arrived.tproxy_port || leg.arrived.destination_port;
  if (!(leg.end in model.senders) || start.destination_port === asked) {
    return null;
  }
  let [bound, mark] = [null, 0];
  if (leg.end === "inbound") {
    bound = envoy.mark ? start.source : model.passthrough[familyOf(start.destination)];
    mark = envoy.mark;
  }
  const destination = connected(start.destination, bound);
  const source = bound ?? sourceFor(facts, destination);
  const following = {
    ...start, hook: "OUTPUT", source, destination, source_port: model.ephemeral_port, in_interface: "",
    uid: envoy.uid, gid: envoy.gid, mark, ctstate: "NEW", connmark: 0, zone: null, tracked: false, translated: [],
    redirected: false,
  };
  return routed(following, facts).packet;
}

/** The rule by which a leg ended where it did: the last that changed its way, or else the last that spared it. */
function decisive(leg) {
  const found = leg.passed.filter((each) => !each.decision).map(decisiveOf).filter(Boolean);
  const deciding = found.filter((step) => step.matched === null || changes(step) || drops(step));
  return deciding.at(-1) ?? found.at(-1) ?? null;
}

/** Why the kernel drops a packet from a wire before any rule sees it; empty where it does not. */
function martianAtTheDoor(packet) {
  if (familyOf(packet.destination) === "ipv4") {
    return "";
  }
  for (const side of ["source", "destination"]) {
    if (packet[side] === loopback("ipv6")) {
      return `its ${side}, ::1, is the loopback address, and it comes by ${packet.in_interface}`;
    }
  }
  const text = addressText(packet.source);
  return packet.source.startsWith("ff") ? `its source, ${text}, is a multicast address` : "";
}

/** Why routing drops a packet from a wire behind PREROUTING; empty where it does not. */
function martianByRouting(packet, facts) {
  if (familyOf(packet.destination) === "ipv6") {
    return "";
  }
  const device = packet.in_interface;
  const first = (address) => parseInt(address.slice(0, 2), 16);
  const phrase = (side) => `its ${side}, ${addressText(packet[side])}, is`;
  const unset = (side, name) => `(a martian ${side}: net.ipv4.conf.${device}.${name} is 0)`;
  const source = first(packet.source);
  if (source === 0 || (source >= 0xe0 && source < 0xf0) || packet.source === "ffffffff") {
    return `${phrase("source")} not a host address (a martian source)`;
  }
  if (first(packet.destination) === 0) {
    return `${phrase("destination")} not a host address (a martian destination)`;
  }
  for (const side of ["source", "destination"]) {
    if (first(packet[side]) === 127 && !facts.route_localnet.includes(device)) {
      return `${phrase(side)} a loopback address ${unset(side, "route_localnet")}`;
    }
  }
  if (isLocal(facts, packet.source) && !facts.accept_local.includes(device)) {
    return `${phrase("source")} this machine's own ${unset("source", "accept_local")}`;
  }
  return "";
}
