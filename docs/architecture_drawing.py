"""Draw the layers of the package from its source: ``python docs/architecture_drawing.py``.

Layers come from the import contract in pyproject.toml, modules and descriptions from the source. The numbers mark the
way of a volume; each step has to be imported by an earlier one, or the drawing fails.
"""

import ast
import textwrap
import tomllib
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dseeds"
OUTPUT = Path(__file__).parent / "pictures" / "architecture.svg"
# The way of a volume through `dseeds segment`, from the command line to the labels.
WAY = (
    "cli.segment",
    "api.segment",
    "engine.segmentation",
    "engine.validation",
    "io.image",
    "engine.driver",
    "engine.run_state",
    "engine.pipeline",
    "engine.dask_runner",
    "engine.tasks",
    "engine.region_state",
    "seeds.rounds",
    "seeds.kernels",
    "engine.label_tasks",
    "engine.publishing",
)
WIDTH, MARGIN, GAP, LINE = 1240, 16, 12, 17
COLUMN = 176


@dataclass(frozen=True)
class Package:
    """A package or module directly below `dseeds`."""

    name: str
    summary: str
    modules: tuple[str, ...]


def layers() -> list[list[Package]]:
    """Return the packages of each layer, from top to bottom."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(one for one in settings["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
    names = [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]
    return [[package(name) for name in layer] for layer in names if layer != ["_version"]]


def package(name: str) -> Package:
    """Read the summary of a package and the names of its modules and subpackages."""
    folder = PACKAGE / name
    if not folder.is_dir():
        return Package(name, summary(PACKAGE / f"{name}.py"), ())
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    folders = sorted(f"{path.name}/" for path in folder.iterdir() if (path / "__init__.py").exists())
    return Package(name, summary(folder / "__init__.py"), (*modules, *folders))


def summary(path: Path) -> str:
    """Return the first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".").replace("`", "")


def imports(module: str) -> set[str]:
    """Return the modules below `dseeds` that a module or any module of a package imports, also inside functions."""
    path = PACKAGE / module.replace(".", "/")
    sources = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    names = set()
    for source in sources:
        for base, name in imported_names(source):
            exports = PACKAGE / base.replace(".", "/") / "__init__.py"
            origins = {exported: origin for origin, exported in imported_names(exports)} if exports.exists() else {}
            names |= {base, f"{base}.{name}".lstrip("."), origins.get(name, base)}
    return names


def imported_names(source: Path) -> list[tuple[str, str]]:
    """List what a file imports from `dseeds`: the module, and the name in it."""
    nodes = ast.walk(ast.parse(source.read_text(encoding="utf-8")))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dseeds")]
    return [(str(node.module).removeprefix("dseeds").lstrip("."), alias.name) for node in froms for alias in node.names]


def check_way() -> None:
    """Raise an error if a step on the way of a volume is not imported by an earlier one."""
    for number, step in enumerate(WAY[1:], 1):
        if not any(
            name == step or name.startswith(f"{step}.") for earlier in WAY[:number] for name in imports(earlier)
        ):
            raise ValueError(f"{step} is not imported by any of {', '.join(WAY[:number])}: correct WAY.")


def draw() -> str:
    """Return the drawing as SVG."""
    check_way()
    parts: list[str] = []
    top = MARGIN
    for layer in layers():
        widths = shares([max(1, len(one.modules)) for one in layer])
        heights, left, boxes = [], MARGIN, []
        for one, width in zip(layer, widths, strict=True):
            height, body = box(one, left, top, width)
            heights.append(height)
            boxes.append((left, width, body))
            left += width + GAP
        for left, width, body in boxes:
            parts.append(f'<rect x="{left}" y="{top}" width="{width}" height="{max(heights)}" rx="6"/>{body}')
        top += max(heights) + GAP
    style = (
        "text{font:12px system-ui,sans-serif;fill:#1f2933}.name{font-weight:700;font-size:14px}.summary{fill:#52606d}"
        "rect{fill:#f5f7fa;stroke:#9aa5b1}circle{fill:#d98a00}.step{fill:#fff;font-weight:700;font-size:10px}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top - GAP + MARGIN}" role="img" '
        f'aria-label="The layers of dseeds"><style>{style}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def shares(counts: list[int]) -> list[int]:
    """Divide the width among boxes, by their numbers of modules, each at least two columns wide if others allow it."""
    total = WIDTH - 2 * MARGIN - GAP * (len(counts) - 1)
    least = min(total // len(counts), 2 * COLUMN)
    rest = total - least * len(counts)
    return [least + rest * count // sum(counts) for count in counts]


def box(one: Package, left: int, top: int, width: int) -> tuple[int, str]:
    """Return the height and the text of a package's box."""
    x, y = left + 10, top + 20
    texts = [f'<text class="name" x="{x}" y="{y}">{escape(one.name)}</text>']
    for line in textwrap.wrap(one.summary, max(20, (width - 20) // 6)):
        y += LINE
        texts.append(f'<text class="summary" x="{x}" y="{y}">{escape(line)}</text>')
    columns = max(1, (width - 20) // COLUMN)
    rows = -(-len(one.modules) // columns)
    for number, module in enumerate(one.modules):
        column, row = divmod(number, max(1, rows))
        at, line = x + column * COLUMN, y + LINE * (row + 1) + 3
        step = f"{one.name}.{module.rstrip('/')}"
        if step in WAY:
            order = WAY.index(step) + 1
            texts.append(f'<circle cx="{at + 6}" cy="{line - 4}" r="8"/>')
            texts.append(f'<text class="step" x="{at + 6}" y="{line}" text-anchor="middle">{order}</text>')
        texts.append(f'<text x="{at + 18}" y="{line}">{escape(module)}</text>')
    return y - top + LINE * rows + 14, "".join(texts)


if __name__ == "__main__":
    OUTPUT.write_text(draw(), encoding="utf-8")
