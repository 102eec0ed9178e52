// One answer as a card. Text from the server and names of files only ever become text nodes.

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const SHOWN_BARS = 6;

export function card(image, classes, file) {
  const body = element("article", { className: "answer" }, thumbnail(file, image.name));
  const head = element("div", {}, element("p", { className: "name", textContent: image.name }));
  body.append(head);
  if (image.error) {
    head.append(element("p", { className: "error", textContent: `Not usable: ${image.error}` }));
    return element("li", {}, body);
  }
  head.append(element("p", { className: "label", textContent: image.label }));
  head.append(element("p", { className: "hint", textContent: `margin ${percent(image.margin)}` }));
  if (image.is_undecided) {
    head.append(element("p", { className: "mark", textContent: "Undecided: rounding alone chose this label." }));
  }
  if (image.text_label && image.text_label !== image.label) {
    head.append(element("p", { className: "mark", textContent: `The descriptions alone say ${image.text_label}.` }));
  }
  body.append(bars(image, classes), evidence(image));
  return element("li", {}, body);
}

function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

function thumbnail(file, name) {
  const none = () => element("div", { className: "thumb none", textContent: "no preview" });
  if (!file) return none();
  const image = element("img", { className: "thumb", alt: `preview of ${name}` });
  image.addEventListener("error", () => image.replaceWith(none()), { once: true });
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  image.src = URL.createObjectURL(file);
  return image;
}

function bars(image, classes) {
  const ranked = classes.map((name) => [name, image.probabilities[name]]).sort((a, b) => b[1] - a[1]);
  const rows = ranked.slice(0, SHOWN_BARS).map(([name, value]) => {
    const meter = element("meter", { min: 0, max: 1, value });
    meter.setAttribute("aria-label", name);
    return element(
      "tr",
      { className: name === image.label ? "best" : "" },
      element("th", { scope: "row", textContent: name }),
      element("td", {}, meter),
      element("td", { textContent: percent(value) }),
    );
  });
  return element("table", { className: "bars" }, element("tbody", {}, ...rows));
}

function evidence(image) {
  const items = image.evidence.map((each) =>
    element("li", { textContent: `${each.description} (similarity ${each.similarity.toFixed(3)})` }),
  );
  const title = element("summary", { textContent: "Descriptions that speak for it" });
  return element("details", { className: "evidence", open: true }, title, element("ul", {}, ...items));
}
