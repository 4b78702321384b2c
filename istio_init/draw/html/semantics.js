// The semantics of matches and targets. The same as simulate/semantics.py.

const UNCONNECTED = ["INVALID", "UNTRACKED"];
const SYN = 2;

/** Whether all matches hold (null where that hangs on what is not known), and the first that does not. */
function matchesAll(matches, packet, facts) {
  let undecided = null;
  for (const match of matches) {
    const held = holds(match, packet, facts);
    if (held === false) {
      return [false, match];
    }
    if (held === null) {
      undecided ??= match;
    }
  }
  return undecided ? [null, undecided] : [true, null];
}

function holds(match, packet, facts) {
  const negated = match.negated;
  const hasPorts = packet.protocol === TCP || packet.protocol === UDP;
  switch (match.is) {
    case "Source":
      return contains(match.network, packet.source) !== negated;
    case "Destination":
      return contains(match.network, packet.destination) !== negated;
    case "InInterface":
      return isNamed(match.name, packet.in_interface) !== negated;
    case "OutInterface":
      return isNamed(match.name, packet.out_interface) !== negated;
    case "Protocol":
      return match.number === 0 || (packet.protocol === match.number) !== negated;
    case "SourcePorts":
      return hasPorts && within(match.ports, packet.source_port) !== negated;
    case "DestinationPorts":
      return hasPorts && within(match.ports, packet.destination_port) !== negated;
    case "Multiport":
      return hasPorts && among(match.ports, portsOf(match, packet)) !== negated;
    case "Owner": {
      const owner = ownerOf(match, packet);
      return owner === null ? negated : within([match.low, match.high], owner) !== negated;
    }
    case "Mark":
      return (and(packet.mark, match.mask) === match.value) !== negated;
    case "ConnMark":
      return !UNCONNECTED.includes(packet.ctstate) && (and(packet.connmark, match.mask) === match.value) !== negated;
    case "CtState":
      return inState(match.states, packet) !== negated;
    case "Comment":
      return true;
    case "AddressType":
      return addressTypes(packet[match.side], facts).some((type) => match.types.includes(type)) !== negated;
    case "AddressRange": {
      const address = packet[match.side];
      return (address.length === match.low.length && match.low <= address && address <= match.high) !== negated;
    }
    case "TcpFlags": // a connection's first packet has SYN alone; of a later one they are not known
      if (packet.protocol !== TCP) {
        return false;
      }
      return packet.ctstate === "NEW" ? ((SYN & match.mask) === match.compared) !== negated : null;
    case "Direction":
      return (packet.reply === match.reply) !== negated;
    case "Assumed":
      return match.held;
    default: // Undecidable
      return null;
  }
}

/** The types of an address as xt_addrtype has them; with IPv6 a local address is UNICAST as well. */
function addressTypes(address, facts) {
  const first = parseInt(address.slice(0, 2), 16);
  const ipv6 = familyOf(address) === "ipv6";
  if (ipv6 ? first === 0xff : first >= 0xe0 && first < 0xf0) {
    return ["MULTICAST"];
  }
  if (address === "ffffffff") {
    return ["BROADCAST"];
  }
  const local = isLocal(facts, address);
  return [...(local ? ["LOCAL"] : []), ...(!local || ipv6 ? ["UNICAST"] : [])];
}

function within([low, high], number) {
  return low <= number && number <= high;
}

function among(ranges, ports) {
  return ports.some((port) => ranges.some((range) => within(range, port)));
}

function inState(states, packet) {
  return states.includes(packet.ctstate) || (packet.redirected && states.includes("DNAT"));
}

function portsOf(match, packet) {
  const sides = { sports: [packet.source_port], dports: [packet.destination_port] };
  return sides[match.side] ?? [packet.source_port, packet.destination_port];
}

function ownerOf(match, packet) {
  return match.kind === "uid" ? packet.uid : packet.gid;
}

// Marks are 32 bits without a sign.
function and(mark, mask) {
  return (mark & mask) >>> 0;
}

function remarked(mark, mask, bits) {
  return ((mark & ~mask) ^ bits) >>> 0;
}

/** What a target makes of a packet that its rule matches: the packet behind it, and what comes next. */
function act(target, packet, facts) {
  switch (target.is) {
    case "Verdict":
      return [packet, target.name || "CONTINUE"];
    case "Jump":
      return [packet, "JUMP"];
    case "Redirect":
      return redirected(target, packet, facts);
    case "Tproxy": {
      const socket = target.port || packet.destination_port;
      return [{ ...packet, mark: remarked(packet.mark, target.mask, target.mark), tproxy_port: socket }, "ACCEPT"];
    }
    case "SetMark":
      return [{ ...packet, mark: remarked(packet.mark, target.mask, target.value) }, "CONTINUE"];
    case "SaveMark":
    case "RestoreMark":
      return [connectionMark(target, packet), "CONTINUE"];
    case "CtZone":
      return [packet.tracked || packet.zone !== null ? packet : { ...packet, zone: target.zone }, "CONTINUE"];
    case "SetConnMark":
      if (UNCONNECTED.includes(packet.ctstate)) {
        return [packet, "CONTINUE"];
      }
      return [{ ...packet, connmark: remarked(packet.connmark, target.mask, target.value) }, "CONTINUE"];
    case "NoTrack":
      return [packet.tracked ? packet : { ...packet, ctstate: "UNTRACKED" }, "CONTINUE"];
    case "Translate":
      return translate(target, packet, facts);
    case "MapAddress": {
      const side = ["INPUT", "POSTROUTING"].includes(packet.hook) ? "source" : "destination";
      const redirected = packet.redirected || side === "destination";
      return [{ ...packet, [side]: mapped(packet[side], target.network), redirected }, "ACCEPT"];
    }
    default: // Fixed
      return [packet, target.answer];
  }
}

/** An address in another network, with its own host part. */
function mapped(address, network) {
  const hosts = (1n << BigInt(address.length * 4 - network.prefix)) - 1n;
  const bits = (BigInt(`0x${network.address}`) & ~hosts) | (BigInt(`0x${address}`) & hosts);
  return bits.toString(16).padStart(address.length, "0");
}

function translate(target, packet, facts) {
  const address = target.own ? masquerade(facts, packet.out_interface, packet.destination) : target.address;
  if (target.own && address === null) {
    return [packet, "DROP"];
  }
  const ends = address === null ? {} : { [target.side]: address };
  if (target.port && [TCP, UDP].includes(packet.protocol)) {
    ends[`${target.side}_port`] = target.port;
  }
  return [{ ...packet, ...ends, redirected: packet.redirected || target.side === "destination" }, "ACCEPT"];
}

function redirected(target, packet, facts) {
  const [low, high] = target.ports;
  const output = packet.hook === "OUTPUT";
  const address = output
    ? loopback(familyOf(packet.destination))
    : primary(facts, packet.in_interface, packet.destination);
  if (address === null) {
    return [packet, "DROP"];
  }
  if (low !== high) {
    return [packet, "UNDECIDED"]; // the kernel chooses the port
  }
  return [{ ...packet, destination: address, destination_port: low, redirected: true }, "ACCEPT"];
}

function connectionMark(target, packet) {
  if (UNCONNECTED.includes(packet.ctstate)) {
    return packet;
  }
  if (target.is === "SaveMark") {
    const bits = and(packet.mark, target.nfmask);
    return { ...packet, connmark: remarked(packet.connmark, target.ctmask, bits) };
  }
  return { ...packet, mark: remarked(packet.mark, target.nfmask, and(packet.connmark, target.ctmask)) };
}
