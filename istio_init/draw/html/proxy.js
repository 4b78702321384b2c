// The proxy's part: that of the packet which the page was made for, or how to ask for that of the packet in the form.

function showProxy(model, typed, family) {
  if (!byId("proxy")) {
    return;
  }
  const own = { ...model.typed, inbound: model.typed.way === "inbound" };
  const same = family === model.family && isSame(model, typed, own);
  byId("proxy-lines").hidden = !same;
  byId("proxy-other").hidden = same;
  byId("proxy-command").textContent = same ? "" : visible(commandFor(model, typed, family));
}
