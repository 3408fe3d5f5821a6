"""A network drawn as one picture, in SVG: boxes for layers, arcs for what reads earlier outputs."""

from html import escape

from plinius.darknet.description import Description, LayerRow, dimensions

_WIDTH, _HEIGHT, _GAP, _LEFT, _TOP = 250, 34, 12, 30, 40
_COLOURS = {
    "convolutional": "#cfe3f7",
    "deconvolutional": "#cfe3f7",
    "local": "#cfe3f7",
    "connected": "#d9d2f0",
    "maxpool": "#fbe3c3",
    "avgpool": "#fbe3c3",
    "route": "#d7efd2",
    "shortcut": "#d7efd2",
    "rnn": "#e5d0e8",
    "gru": "#e5d0e8",
    "lstm": "#e5d0e8",
    "crnn": "#e5d0e8",
    "softmax": "#f6cfcf",
    "cost": "#f6cfcf",
    "logistic": "#f6cfcf",
    "yolo": "#f6cfcf",
    "region": "#f6cfcf",
    "detection": "#f6cfcf",
    "iseg": "#f6cfcf",
}


def draw(described: Description) -> str:
    """The picture as the text of an SVG file."""
    step = _HEIGHT + _GAP
    count = len(described.rows)
    parts = [_text(_LEFT, 24, f"input {dimensions(described.input)}", 13)]
    reach = 0
    for row in described.rows:
        top = _TOP + row.index * step
        parts.append(_box(row, top))
        for source in row.sources:
            if source == row.index - 1:
                parts.append(_line(top))
            elif source >= 0:
                parts.append(_arc(source, row.index, step))
                reach = max(reach, row.index - source)
    bend = _bend(reach)
    width, height = _LEFT + _WIDTH + bend + 20, _TOP + count * step + 30
    below = f"{described.parameters:,} parameters, {described.bflops:.3f} BFLOPs"
    parts.append(_text(_LEFT, height - 14, below, 13))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _box(row: LayerRow, top: int) -> str:
    colour = _COLOURS.get(row.kind, "#eeeeee")
    filters = "" if row.filters is None else f" {row.filters}"
    size = f" {row.size}" if row.size else ""
    return (
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" '
        f'fill="{colour}" stroke="#555"/>'
        + _text(_LEFT + 8, top + 15, f"{row.index} {row.kind}{filters}{size}", 12)
        + _text(_LEFT + 8, top + 28, dimensions(row.output), 10)
    )


def _line(top: int) -> str:
    middle = _LEFT + _WIDTH // 2
    return f'<path d="M{middle} {top - _GAP} V{top}" stroke="#555"/>'


def _arc(source: int, target: int, step: int) -> str:
    edge, bend = _LEFT + _WIDTH, _bend(target - source)
    start, end = (_TOP + at * step + _HEIGHT // 2 for at in (source, target))
    return (
        f'<path d="M{edge} {start} C{edge + bend} {start} {edge + bend} {end} {edge} {end}" '
        'fill="none" stroke="#2a7f3f"/>'
    )


def _bend(reach: int) -> int:
    return min(30 + 10 * reach, 320)


def _text(x: int, y: int, text: str, size: int) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}">{escape(text)}</text>'
