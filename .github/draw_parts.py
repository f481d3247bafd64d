"""Draw README's picture of the parts: python .github/draw_parts.py > .github/parts.svg.

Filled boxes with white text and mid-gray arrows are readable on a white and on a dark page.
"""

ROOM, THING, ARROW = "#1f6feb", "#6e7781", "#8b949e"
WIDTH, HEIGHT, STEP_X, STEP_Y, MARGIN = 144, 52, 180, 80, 6

# Column, row, columns wide, color, name, and the line below it.
BOXES = [
    (0, 0, 1, THING, "texts", "files, datasets"),
    (1, 0, 1, ROOM, "data", "tokens, windows, shards"),
    (2, 0, 1, ROOM, "training", "loop, checkpoints"),
    (4, 0, 1, ROOM, "hub", "push, load, cards"),
    (2, 1, 1, ROOM, "model", "architecture, loss"),
    (3, 1, 1, THING, "saved folder", "weights, code, tokenizer"),
    (4, 1, 1, ROOM, "generation", "prompt to text, demo"),
    (0, 2, 1, THING, "checkpoints", "OpenAI's and others'"),
    (1, 2, 1, ROOM, "conversion", "read, map, write, prove"),
    (4, 2, 1, ROOM, "evaluation", "loss, perplexity"),
    (0, 3, 2, ROOM, "commands", "hf-gpt-scratch train, generate, convert, push, ..."),
    (2, 3, 1, ROOM, "runtime", "launching, signals, files"),
    (3, 3, 1, ROOM, "plots", "losses, probabilities"),
    (4, 3, 1, ROOM, "interpretability", "TransformerLens"),
]
# From one point to the next, in columns and rows: a whole number is a box's center, .4 beside it its edge.
ARROWS = [
    [(0.4, 0), (0.6, 0)],
    [(1.4, 0), (1.6, 0)],
    [(2.4, 0), (3, 0), (3, 0.67)],
    [(2, 0.67), (2, 0.33)],
    [(2.4, 1), (2.6, 1)],
    [(0.4, 2), (0.6, 2)],
    [(1.4, 2), (3, 2), (3, 1.33)],
    [(3.4, 1), (3.6, 1)],
    [(3.4, 1), (3.5, 1), (3.5, 0), (3.6, 0)],
    [(3.4, 1), (3.5, 1), (3.5, 2), (3.6, 2)],
    [(3.5, 2), (3.5, 2.5), (4, 2.5), (4, 2.67)],
]


def draw_box(column: int, row: int, columns: int, color: str, name: str, line: str) -> str:
    """A rounded box with two centered lines of text."""
    x, y, width = MARGIN + column * STEP_X, MARGIN + row * STEP_Y, WIDTH + (columns - 1) * STEP_X
    text = f'fill="#fff" text-anchor="middle" x="{x + width // 2}"'
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="8" fill="{color}"/>\n'
        f'<text {text} y="{y + 22}" font-size="15" font-weight="600">{name}</text>\n'
        f'<text {text} y="{y + 40}" font-size="11">{line}</text>'
    )


def draw_arrow(points: list[tuple[float, float]]) -> str:
    """A line through points, with a head at its end."""
    pixels = [(MARGIN + WIDTH / 2 + x * STEP_X, MARGIN + HEIGHT / 2 + y * STEP_Y) for x, y in points]
    path = " ".join(f"{x:.0f},{y:.0f}" for x, y in pixels)
    return f'<polyline points="{path}" fill="none" stroke="{ARROW}" stroke-width="2" marker-end="url(#head)"/>'


def draw_parts() -> str:
    """The picture, as SVG."""
    width, height = 4 * STEP_X + WIDTH + 2 * MARGIN, 3 * STEP_Y + HEIGHT + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif">',
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5" markerHeight="5" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{ARROW}"/></marker>',
        *map(draw_arrow, ARROWS),
        *(draw_box(*box) for box in BOXES),
        "</svg>",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(draw_parts())
