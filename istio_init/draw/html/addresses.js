// Addresses are hexadecimal digits in network order: 8 of IPv4's, 32 of IPv6's.

function familyOf(address) {
  return address.length === 8 ? "ipv4" : "ipv6";
}

function loopback(family) {
  return family === "ipv4" ? "7f000001" : "1".padStart(32, "0");
}

/** A text as an address, as inet_pton(3) takes it; null where it is none. */
function parseAddress(text) {
  return text.includes(":") ? parseIpv6(text) : parseIpv4(text);
}

function parseIpv4(text) {
  const parts = text.split(".");
  const good = parts.length === 4 && parts.every((part) => /^(0|[1-9]\d{0,2})$/.test(part) && Number(part) < 256);
  return good ? parts.map((part) => hexadecimal(Number(part), 2)).join("") : null;
}

function parseIpv6(text) {
  // The last 32 bits may be written as IPv4's.
  const dotted = text.match(/^(.*:)([\d.]+\.[\d.]+)$/);
  if (dotted) {
    const last = parseIpv4(dotted[2]);
    return last && parseIpv6(`${dotted[1]}${last.slice(0, 4)}:${last.slice(4)}`);
  }
  const halves = text.split("::").map((half) => (half ? half.split(":") : []));
  const groups = halves.flat();
  if (halves.length > 2 || !groups.every((group) => /^[0-9a-f]{1,4}$/i.test(group))) {
    return null;
  }
  const missing = 8 - groups.length;
  if (halves.length === 2 ? missing < 1 : missing !== 0) {
    return null;
  }
  const zeros = halves.length === 2 ? Array(missing).fill("0") : [];
  return [...halves[0], ...zeros, ...(halves[1] ?? [])].map((group) => group.padStart(4, "0")).join("").toLowerCase();
}

/** An address as people write it, as inet_ntop(3) does. */
function addressText(address) {
  if (familyOf(address) === "ipv4") {
    return ipv4Text(address);
  }
  const groups = address.match(/..../g).map((group) => parseInt(group, 16));
  const zeros = longestZeros(groups);
  const compatible = zeros.length === 6 || (zeros.length === 5 && groups[5] === 0xffff);
  if (zeros.start === 0 && compatible) {
    return `${zeros.length === 6 ? "::" : "::ffff:"}${ipv4Text(address.slice(24))}`;
  }
  const text = groups.map((group) => group.toString(16));
  if (zeros.length < 2) {
    return text.join(":");
  }
  return `${text.slice(0, zeros.start).join(":")}::${text.slice(zeros.start + zeros.length).join(":")}`;
}

function ipv4Text(address) {
  return address.match(/../g).map((byte) => parseInt(byte, 16)).join(".");
}

/** The first of the longest runs of zeros. */
function longestZeros(groups) {
  let best = { start: 0, length: 0 };
  for (let start = 0; start < groups.length; start += 1) {
    let length = 0;
    while (groups[start + length] === 0) {
      length += 1;
    }
    best = length > best.length ? { start, length } : best;
  }
  return best;
}

function endpointText(address, port) {
  const text = addressText(address);
  if (!port) {
    return text;
  }
  return familyOf(address) === "ipv6" ? `[${text}]:${port}` : `${text}:${port}`;
}

/** Whether a network holds an address of its family. */
function contains(network, address) {
  const hostBits = BigInt(network.address.length * 4 - network.prefix);
  return BigInt(`0x${network.address}`) >> hostBits === BigInt(`0x${address}`) >> hostBits;
}

function hexadecimal(number, digits) {
  return number.toString(16).padStart(digits, "0");
}

/** Whether an interface is meant by a name that may end in +. */
function isNamed(pattern, name) {
  return pattern.endsWith("+") ? name.startsWith(pattern.slice(0, -1)) : name === pattern;
}
