// A packet as it is typed into the form, with defaults for what is left empty. As cli/verbs/packet_flags.py.

/** What is wrong with what was typed, and where. */
class Refused extends Error {
  constructor(field, text, message) {
    super(`${text}: ${message}`);
    this.field = field;
  }
}

/** The form's texts as a request; Refused where one is wrong, or where they contradict each other. */
function parseRequest(model, typed) {
  const request = {
    inbound: typed.inbound,
    source: endpoint(model, "from", typed.from),
    destination: endpoint(model, "to", typed.to),
    protocol: protocolNumber(model, typed.protocol),
    interface: interfaceName("interface", typed.interface),
    uid: account(model, "uid", typed.uid),
    gid: account(model, "gid", typed.gid || typed.uid),
    mark: markValue("mark", typed.mark),
    connmark: markValue("connmark", typed.connmark),
    ctstate: typed.state,
    reply: typed.reply,
  };
  if (request.reply && !["ESTABLISHED", "RELATED"].includes(request.ctstate)) {
    throw new Refused("reply", request.ctstate, "only an ESTABLISHED or RELATED packet can be a reply");
  }
  const families = [request.source.address, request.destination.address].filter(Boolean).map(familyOf);
  if (new Set(families).size > 1) {
    throw new Refused("to", typed.to, "one address is IPv4, the other IPv6");
  }
  request.family = families[0] ?? null;
  if (!request.inbound && request.destination.address) {
    request.destination.address = connected(request.destination.address, request.source.address);
  }
  return request;
}

/** ADDRESS, ADDRESS:PORT, :PORT, or [ADDRESS]:PORT for IPv6. */
function endpoint(model, field, text) {
  const bracketed = text.match(/^\[([^\]]*:[^\]]*)\](?::(\d*))?$/);
  const colons = text.split(":").length - 1;
  const [address, port] = bracketed?.slice(1) ?? (colons === 1 && !text.startsWith("[") ? text.split(":") : [text, ""]);
  const found = address ? parseAddress(address) : null;
  if (address && !found) {
    throw new Refused(field, text, model.no_endpoint);
  }
  return { address: found, port: port ? number(field, port, 0, 65535, "a port") : null };
}

function number(field, text, lowest, highest, what) {
  if (!/^(0|[1-9]\d*)$/.test(text) || Number(text) < lowest || Number(text) > highest) {
    throw new Refused(field, text, `not ${what}: use a number from ${lowest} to ${highest}`);
  }
  return Number(text);
}

/** An interface's name as the kernel takes it, empty where none is given. */
function interfaceName(field, text) {
  if (text && (!/^[!#-.0-9;-~]{1,15}$/.test(text) || ["!", ".", ".."].includes(text) || text.endsWith("+"))) {
    throw new Refused(field, text, "not an interface's name: up to 15 letters, digits and signs");
  }
  return text;
}

function protocolNumber(model, text) {
  const named = Object.entries(model.protocols).find(([, name]) => name === text.toLowerCase());
  return named ? Number(named[0]) : number("protocol", text, 1, 255, "a protocol");
}

/** An id; the application's if empty, null for -. */
function account(model, field, text) {
  if (text === "-") {
    return null;
  }
  return text ? number(field, text, 0, 2 ** 32 - 2, "an id, or - for no socket's") : model.application_id;
}

function markValue(field, text) {
  return /^0x[0-9a-f]{1,8}$/i.test(text) ? Number(text) : number(field, text, 0, 2 ** 32 - 1, "a mark");
}

/** The facts with what the request says about the pod: which addresses are its own. */
function withRequest(model, request) {
  const facts = model.facts;
  if (model.live || facts.uplink !== model.uplink) {
    return facts;
  }
  const { address } = request.destination;
  const here = request.interface || (request.inbound ? model.uplink : "");
  const further = [];
  // What comes in is for the pod, but from a virtual machine; what leaves by lo is for the pod, too.
  const mine = request.inbound ? !model.virtual_interfaces.includes(here) : here === LOOPBACK_INTERFACE;
  if (address && mine && !isLocal(facts, address)) {
    const device = here === LOOPBACK_INTERFACE ? model.uplink : here;
    further.push({ device, network: { address, prefix: address.length * 4 } });
  }
  if (!["", model.uplink, LOOPBACK_INTERFACE].includes(here)) {
    further.push(...Object.values(model.pod).map((network) => ({ device: here, network })));
  }
  return { ...facts, addresses: [...further, ...facts.addresses] };
}

/** The packet at the hook where it starts, of `family` where no address was given. */
function packetOf(model, request, facts, family = "ipv4") {
  family = request.family ?? family;
  const ports = [TCP, UDP].includes(request.protocol) ? [model.client_port, model.server_port] : [0, 0];
  const away = model.elsewhere[family];
  const common = {
    source_port: request.source.port ?? ports[0], destination_port: request.destination.port ?? ports[1],
    in_interface: "", out_interface: "", uid: null, gid: null, mark: request.mark, ctstate: request.ctstate,
    connmark: request.connmark, zone: null, tracked: false, translated: [], redirected: false, tproxy_port: 0,
    reply: request.reply,
  };
  const packet = (hook, source, destination, more) => ({
    hook, protocol: request.protocol, source, destination, ...common, ...more,
  });
  if (request.inbound) {
    const device = request.interface || facts.uplink;
    const own = primary(facts, device, away) ?? primary(facts, facts.uplink, away) ?? model.pod[family].address;
    return packet("PREROUTING", request.source.address ?? away, request.destination.address ?? own, {
      in_interface: device,
    });
  }
  const destination = request.destination.address ?? away;
  const sent = packet("OUTPUT", request.source.address ?? sourceFor(facts, destination), destination, {
    out_interface: request.interface, uid: request.uid, gid: request.gid,
  });
  return request.interface ? sent : routed(sent, facts).packet;
}
