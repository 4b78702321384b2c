// The form: reads the packet and shows its path.

const FIELDS = ["from", "to", "protocol", "uid", "gid", "interface", "mark", "connmark", "state"];
const EXAMPLES = {
  "The app calls the world": () => ({ to: ":443" }),
  "Envoy calls the world": ({ envoy }) => ({ to: ":443", uid: `${envoy.uid}`, gid: `${envoy.gid}` }),
  "A client calls in": () => ({ way: "inbound", to: ":8080" }),
  "The app calls its own pod": (model, family) => ({ to: endpointText(podAddress(model, family), 8080) }),
  "The app calls loopback": (model, family) => ({ to: endpointText(loopback(family), 8080) }),
  "The app asks DNS": () => ({ to: ":53", protocol: "udp" }),
  "Kubelet checks health": () => ({ way: "inbound", to: ":15021" }),
};
const NOTHING = {
  way: "outbound", from: "", to: "", protocol: "tcp", uid: "", gid: "", interface: "", mark: "0", connmark: "0",
  state: "NEW", reply: false,
};

function podAddress(model, family) {
  const away = model.elsewhere[family];
  return primary(model.facts, model.facts.uplink, away) ?? model.pod[family].address;
}

function fill(form, typed) {
  for (const field of [...FIELDS, "way"]) {
    form.elements[field].value = typed[field];
  }
  form.elements.reply.checked = typed.reply;
  byId("more").open ||= ["gid", "interface"].some((field) => typed[field]) || typed.reply
    || ["mark", "connmark", "state"].some((field) => typed[field] !== NOTHING[field]);
  directed(form);
}

function read(form) {
  const texts = Object.fromEntries(FIELDS.map((field) => [field, form.elements[field].value.trim()]));
  return { ...texts, inbound: form.elements.way.value === "inbound", reply: form.elements.reply.checked };
}

/** What comes in has no sender here: user and group are asked for of what is sent. */
function directed(form) {
  const inbound = form.elements.way.value === "inbound";
  for (const field of all(".field.outbound", form)) {
    field.querySelector("input").disabled = inbound;
  }
}

/** Leave out the addresses of the other family: they say which rules a packet meets. */
function ofFamily(model, form, family) {
  for (const field of [form.elements.from, form.elements.to]) {
    try {
      const { address, port } = endpoint(model, field.name, field.value.trim());
      field.value = address && familyOf(address) !== family ? (port === null ? "" : `:${port}`) : field.value;
    } catch (error) {
      // What is no address says nothing of a family.
    }
  }
}

function shownFamily() {
  return document.querySelector('input[name="family"]:checked').value;
}

function showFamily(family) {
  document.querySelector(`input[name="family"][value="${family}"]`).checked = true;
  for (const each of all("[data-family]")) {
    each.hidden = each.dataset.family !== family;
  }
}

/** Show the path of the packet in the form, or what is wrong with it. */
function show(model, form) {
  for (const field of all("[aria-invalid]", form)) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
  let described;
  const typed = read(form);
  try {
    showFamily(parseRequest(model, typed).family ?? shownFamily());
    described = explain(model, typed, shownFamily());
  } catch (error) {
    if (!(error instanceof Refused)) {
      throw error;
    }
    refuse(form.elements[error.field], error.message);
    return;
  }
  byId("wrong").hidden = true;
  document.body.classList.remove("stale");
  showAnswer(described);
  showProxy(model, typed, shownFamily());
  light(highlightsOf(model.families[shownFamily()]?.links ?? {}, described));
}

/** Say what is wrong, and where it was typed; the answer to the last request is hidden. */
function refuse(field, message) {
  byId("wrong").textContent = visible(message);
  byId("wrong").hidden = false;
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-errormessage", "wrong");
  byId("more").open ||= byId("more").contains(field);
  document.body.classList.add("stale");
  light([]);
}

function start() {
  const model = JSON.parse(byId("model").textContent);
  const form = byId("ask");
  for (const [title, typed] of Object.entries(EXAMPLES)) {
    const button = make("button", "example", title);
    button.dataset.t = title;
    button.type = "button";
    button.addEventListener("click", () => {
      fill(form, { ...NOTHING, ...typed(model, shownFamily()) });
      show(model, form);
    });
    byId("examples").append(make("li", "", button));
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    show(model, form);
  });
  form.addEventListener("change", () => {
    directed(form);
    show(model, form);
  });
  for (const choice of all('input[name="family"]')) {
    choice.addEventListener("change", () => {
      ofFamily(model, form, choice.value);
      showFamily(choice.value);
      show(model, form);
    });
  }
  byId("language").addEventListener("click", () => {
    speak(language === "en" ? "zh" : "en");
    show(model, form);
  });
  speak(navigator.language.startsWith("zh") ? "zh" : "en");
  fill(form, { ...NOTHING, ...model.typed });
  showFamily(model.family);
  connect();
  show(model, form);
}

start();
