"""A labeling page in a real browser, for tests."""

import html
import json
import re

CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = (color) => {
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
      const v = value / 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" ? behind(element.parentElement) : color;
  };
  return [...document.querySelectorAll("p, h1, span, kbd, button, #picture")]
    .filter((each) => each.checkVisibility({visibilityProperty: true}))
    .map((each) => {
      const [a, b] = [light(getComputedStyle(each).color), light(behind(each))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), each.id || each.textContent];
    });
}"""


def make_selector(index, value=1):
    return f"li[data-class='{index}'] [data-value='{value}']"


class Page:
    """A page, and what a person sees on it."""

    def __init__(self, page):
        self.page = page
        page.set_default_timeout(60_000)
        self.posted = []  # bodies of events
        page.on("request", self._note)

    def _note(self, request):
        if request.url.endswith("/event"):
            self.posted.append(request.post_data_json)

    def open(self, address):
        self.page.goto(address)
        self.wait_for_picture()
        return self

    def wait_for_picture(self):
        self.page.wait_for_selector("#picture[aria-busy=false]", state="attached")

    def shown(self):
        return int(re.search(r"/patch/(\d+)", self.page.get_attribute("#picture", "src"))[1])

    def says(self):
        return self.page.inner_text("#message") if self.page.is_visible("#message") else ""

    def wait_until(self, condition):
        for _ in range(1500):
            if condition():
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"still: {self.says()!r}")

    def is_set(self, index):
        return self.page.get_attribute(make_selector(index), "aria-pressed") == "true"

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def set(self, index):
        self.press(str(index + 1))
        self.wait_until(lambda: self.is_set(index))

    def leave(self, *keys):
        before = self.shown()
        self.press(*keys)
        self.wait_until(lambda: self.shown() != before)
        self.wait_for_picture()

    def come_back(self):
        """As a tab that is seen again."""
        self.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    def hold(self, pattern):
        """Keeps requests waiting; returns them."""
        held = []
        self.page.route(pattern, lambda route: held.append(route))
        return held

    def let_go(self, pattern, held):
        while held:
            held.pop(0).continue_()
        self.page.unroute(pattern)

    def is_in_view(self, selector):
        box, view = self.page.locator(selector).bounding_box(), self.page.viewport_size
        return (
            box is not None
            and min(box["x"], box["y"]) >= 0
            and box["x"] + box["width"] <= view["width"]
            and box["y"] + box["height"] <= view["height"]
        )

    def open_changed(self, change):
        """Opens an open page once more, at a start that is another than the server's."""

        def answer(route):
            response = route.fetch()
            state = re.search(r'data-state="([^"]*)"', response.text())[1]
            changed = json.loads(html.unescape(state))
            change(changed)
            changed = html.escape(json.dumps(changed))
            route.fulfill(response=response, body=response.text().replace(state, changed))

        self.page.route(re.compile(r"^http://[^/]+/$"), answer)
        self.open(self.page.url)

    def swipe_left(self):
        box = self.page.locator("#picture").bounding_box()
        session = self.page.context.new_cdp_session(self.page)
        y = box["y"] + box["height"] / 3
        across = [box["x"] + box["width"] * share for share in (0.45, 0.3, 0.1)]
        kinds = ("touchStart", "touchMove", "touchMove")
        for kind, x in zip(kinds, across):
            session.send(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]}
            )
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def list_contrasts(self):
        """Lists the contrast of each text with what is behind it, and which text it is."""
        return self.page.evaluate(CONTRASTS)
