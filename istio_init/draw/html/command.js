// The command that asks for the proxy's part of a packet: the page has it for its own packet alone.

/** `istio-init explain` for a packet that was typed; empty where no configuration of the proxy was given. */
function commandFor(model, typed, family) {
  if (!model.explain) {
    return "";
  }
  const { inbound, from, to } = settled(model, typed, family);
  const words = [inbound ? "--inbound" : "--outbound"];
  const values = { from, to, protocol: typed.protocol, interface: typed.interface, state: typed.state };
  const usual = { protocol: "tcp", state: "NEW" };
  for (const [flag, value] of Object.entries(inbound ? values : { ...values, uid: typed.uid, gid: typed.gid })) {
    if (value !== (usual[flag] ?? "")) {
      words.push(`--${flag}`, value);
    }
  }
  for (const flag of ["mark", "connmark"]) {
    if (markValue(flag, typed[flag])) {
      words.push(`--${flag}`, typed[flag]);
    }
  }
  return [model.explain, ...words.map(quoted), ...(typed.reply ? ["--reply"] : [])].join(" ");
}

/** The packet with an address where only the page's choice says that it is IPv6: explain takes IPv4. */
function settled(model, typed, family) {
  const request = parseRequest(model, typed);
  if (request.family || family === "ipv4") {
    return typed;
  }
  const field = typed.inbound ? "from" : "to";
  const { port } = typed.inbound ? request.source : request.destination;
  const away = addressText(model.elsewhere.ipv6);
  return { ...typed, [field]: port === null ? away : `[${away}]:${port}` };
}

/** A word as a POSIX shell reads it. */
function quoted(word) {
  return /^[\w@%+=:,.\/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\"'\"'")}'`;
}

/** Whether two packets mean the same, whatever their spelling. */
function isSame(model, one, other) {
  return JSON.stringify(parseRequest(model, one)) === JSON.stringify(parseRequest(model, other));
}
