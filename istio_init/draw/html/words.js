// The page's own words in Chinese. What the program itself says of rules and packets stays as its commands print it.

const CHINESE = {
  "Where a packet goes": "数据包去哪里",
  "istio-init: where a packet goes": "istio-init：数据包去哪里",
  "The rules of": "规则来自",
  "The rules in a network namespace when this page was made. Purposes and flags are those of":
    "生成本页时网络命名空间里的规则。用途和选项取自",
  "The rules of a dump (--from-save). Purposes and flags are those of": "转储文件（--from-save）里的规则。用途和选项取自",
  "A packet": "数据包",
  "Which way": "方向",
  "Outbound": "出站",
  "Inbound": "入站",
  "From": "来自",
  "the pod, or a client": "Pod，或者客户端",
  "To": "去往",
  "address, address:port, :port": "地址、地址:端口、:端口",
  "Protocol": "协议",
  "name or number": "名字或数字",
  "User": "用户",
  "the app: 1000": "应用：1000",
  "Show its way": "显示它的路径",
  "More about it": "更多",
  "Group": "组",
  "as the user": "与用户相同",
  "Interface": "接口",
  "as routing has it": "由路由决定",
  "Mark": "标记",
  "Connection's mark": "连接的标记",
  "decimal, or 0x...": "十进制，或 0x…",
  "State": "状态",
  "a reply": "应答包",
  "For example": "例如",
  "Its way": "它的路径",
  "The chains": "各条链",
  "Family": "协议族",
  "matched": "匹配",
  "checked, did not match.": "检查过，不匹配。",
  "Numbers in a circle are the nine rules below. Chains without rules are left out.": "圆圈里的数字是下面的九条规则。没有规则的链不画。",
  "Wider than the window? Scroll sideways, or use the arrow keys once the picture has the focus.": "比窗口宽？横向滚动，或者选中图片后用方向键。",
  "The nine rules": "九条规则",
  "All other rules": "其他规则",
  "Through the proxy": "穿过代理",
  "What Envoy's configuration does with the packet that this page was made for.": "Envoy 的配置怎样处理生成本页时所给的数据包。",
  "The packet in the form is another one, and this page does not have Envoy's part for it. Ask for it with:": "表单里是另一个数据包，本页没有它在 Envoy 中的那一段。可以这样查询：",
  "Written by istio-init draw. This page loads nothing and sends nothing.": "由 istio-init draw 生成。本页不加载也不发送任何东西。",
  "The app calls the world": "应用调用外部",
  "Envoy calls the world": "Envoy 调用外部",
  "A client calls in": "客户端调用进来",
  "The app calls its own pod": "应用调用自己的 Pod",
  "The app calls loopback": "应用调用环回地址",
  "The app asks DNS": "应用查询 DNS",
  "Kubelet checks health": "kubelet 做健康检查",
  "Captured by Envoy, outbound": "被 Envoy 捕获，出站",
  "Captured by Envoy, inbound": "被 Envoy 捕获，入站",
  "Captured by the agent's DNS resolver": "被代理的 DNS 解析器捕获",
  "Left alone": "不捕获",
  "Dropped": "丢弃",
  "Passed to another program": "交给另一个程序",
  "Cannot be decided": "无法判定",
  "A loop: it comes to the same listener again, and never ends": "环路：它又回到同一个监听器，永无止境",
  "From {}": "来自{}",
  "the application": "应用",
  "a client": "客户端",
  "Envoy, to the original destination": " Envoy，去往原来的目的地",
  "Envoy, to the application": " Envoy，去往应用",
  "the agent, to the DNS server": "代理，去往 DNS 服务器",
  "Rule by rule": "逐条规则",
  "{} more that don't match": "还有 {} 条不匹配",
  "{}: no rules": "{}：没有规则",
  "{}: skipped, {}": "{}：跳过，{}",
  "did not match": "不匹配",
  "cannot be decided": "无法判定",
  "checked": "检查过",
  "The kernel drops it, whatever the rules are": "无论规则如何，内核都会丢弃它",
  "Routing: delivered here, for the pod itself": "路由：在本机投递，属于 Pod 自己",
  "Routing: delivered here, by its mark and table {}": "路由：按它的标记和路由表 {} 在本机投递",
  "Routing: not for the pod itself, forwarded by {}": "路由：不属于 Pod 自己，从 {} 转发",
  "Looped back into the pod by lo": "经 lo 回到 Pod",
  "Routing: leaves by {} now, because of its new destination": "路由：因为新的目的地，现在从 {} 离开",
  "Routing: leaves by {} now, because of its mark and table {}": "路由：按它的标记和路由表，现在从 {} 离开（表 {}）",
  "Routing: leaves by {}": "路由：从 {} 离开",
  "an interface": "某个接口",
};
const LANGUAGES = { en: "English", zh: "中文" };

let language = "en";

/** A text in the page's language, with values in the place of each {}. */
function t(text, ...values) {
  const known = language === "zh" ? CHINESE[text] ?? text : text;
  return values.reduce((made, value) => made.replace("{}", () => value), known);
}

/** Show the texts of the page in a language; the caller draws again what the scripts wrote. */
function speak(chosen) {
  language = chosen;
  document.documentElement.lang = chosen;
  document.title = t("istio-init: where a packet goes");
  for (const each of all("[data-t]")) {
    each.dataset.t ||= each.textContent;
    each.textContent = t(each.dataset.t);
  }
  for (const each of all("[data-label]")) {
    each.setAttribute("aria-label", t(each.dataset.label));
  }
  const other = chosen === "en" ? "zh" : "en";
  byId("language").textContent = LANGUAGES[other];
  byId("language").lang = other;
}
