"""What tests of pages share: a parsed page, and texts and numbers to show."""

from html.parser import HTMLParser
from pathlib import Path

from wsss_jax.report.slide_pages import Area, Ratio

NASTY = '<script>alert(1)</script> & "it\'s" </style>'
COLORS = ((205, 51, 51), (255, 165, 0), (255, 255, 255))
AREAS = (
    Area("tumor", COLORS[0], 1_234_567, 12.34567, 0.9997, 0.4),
    Area("stroma", COLORS[1], 3, 0.00003, 0.0003, 0.0),
    Area("background", None, 2_000_000, 20.0, None, 0.6),
)
RATIOS = (Ratio("Tumor-stroma ratio", 0.0003, "of the whole slide"), Ratio(NASTY, None, NASTY))
VOID = ("meta", "img", "input")


class Page(HTMLParser):
    """Every start tag with its attributes, and the visible text in pieces.

    White space between elements is no text.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif data.strip() and self.open[-1] != "style":
            self.texts.append(data)

    def values(self, tag: str, attribute: str) -> list:
        return [attributes.get(attribute) for name, attributes in self.tags if name == tag]
