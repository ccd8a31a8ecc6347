"""HTML pages as tests read them."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """The elements, table rows and visible text of an HTML page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows, self.text = [], [], ""
        self.cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, data):
        self.text += data
        if self.cell:
            self.rows[-1][-1] += data

    def row(self, start, cells):
        return next(row for row in self.rows if row[0].startswith(start) and len(row) == cells)
