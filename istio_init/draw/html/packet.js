// What routing knows about the pod. As model/packet.py.

const LOOPBACK_INTERFACE = "lo";
const TCP = 6;
const UDP = 17;

/** Whether the kernel delivers packets to this address here: an interface's own, or in lo's IPv4 networks. */
function isLocal(facts, address) {
  return facts.addresses.some((each) => owns(each, address));
}

function owns({ device, network }, address) {
  if (network.address.length !== address.length) {
    return false;
  }
  return device === LOOPBACK_INTERFACE && familyOf(address) === "ipv4"
    ? contains(network, address)
    : network.address === address;
}

/** The policy rule by which a marked packet counts as local, whatever its destination; null without one. */
function policyRoute(facts, family, mark) {
  const leads = (rule) => facts.routes.some((route) => route.family === family && route.table === rule.table);
  const named = (rule) => rule.family === family && and(mark, rule.mask ?? 0xffffffff) === rule.mark && leads(rule);
  return [...facts.policy_rules, ...facts.masked_rules].find(named) ?? null;
}

/** The source that the kernel gives a packet: its local route's, or an address of the uplink. */
function sourceFor(facts, destination) {
  const owners = facts.addresses.filter((each) => owns(each, destination));
  if (owners.length) {
    return familyOf(destination) === "ipv6" ? destination : firstAlike(facts, closest(owners, destination));
  }
  return primary(facts, facts.uplink, destination) ?? loopback(familyOf(destination));
}

/** Of those that make an address local the one with the most specific route: that address, or else lo's network. */
function closest(owners, address) {
  const length = ({ network }) => (network.address === address ? 32 : network.prefix);
  return owners.reduce((best, each) => (length(each) > length(best) ? each : best));
}

/** The first address of an address' network on its interface. */
function firstAlike(facts, { device, network }) {
  const alike = (each) => each.device === device && each.network.address.length === network.address.length
    && each.network.prefix === network.prefix && contains(network, each.network.address);
  return facts.addresses.find(alike).network.address;
}

/** Where a socket, bound to `source` or not, connects to: the unspecified address means loopback. */
function connected(destination, source = null) {
  const some = (address) => /[^0]/.test(address);
  if (some(destination)) {
    return destination;
  }
  const bound = familyOf(destination) === "ipv4" && source && familyOf(source) === "ipv4" && some(source);
  return bound ? source : loopback(familyOf(destination));
}

/** The address that REDIRECT chooses for what came in by an interface; null where it has none that fits. */
function primary(facts, device, destination) {
  const own = facts.addresses.filter((each) => each.device === device).map((each) => each.network.address);
  const narrow = scope(destination);
  const fits = (address) => address.length === destination.length && (narrow === "" || scope(address) === narrow);
  return own.find(fits) ?? null;
}

/** The source that MASQUERADE gives what leaves by an interface: its own address, or else any of another one. */
function masquerade(facts, device, destination) {
  const own = facts.addresses.filter((each) => each.device === device);
  const fits = (address) => address.length === destination.length && address !== loopback("ipv6")
    && (familyOf(address) === "ipv6" || !address.startsWith("7f"));
  return [...own, ...facts.addresses].map((each) => each.network.address).find(fits) ?? null;
}

/** The scope of an IPv6 address as REDIRECT compares it (__ipv6_addr_type); empty for all others. */
function scope(address) {
  if (familyOf(address) === "ipv4") {
    return "";
  }
  const second = parseInt(address.slice(2, 4), 16) & 0xc0;
  if (address.startsWith("fe") && second) {
    return { 0x80: "link", 0xc0: "site" }[second] ?? "";
  }
  if (/^0{24}/.test(address) && !/^0{32}$/.test(address)) {
    return address === loopback("ipv6") ? "loopback" : "compatible";
  }
  return "";
}
