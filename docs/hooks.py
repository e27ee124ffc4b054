"""What mkdocs.yml cannot say: tables read from reports/, the API's pages, formulas as MathML, links that leave docs/.

MkDocs calls the functions ``on_...`` while it builds the site.
"""

from __future__ import annotations

import csv
import html
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).parents[1]
# Pages that are kept where GitHub looks for them.
ELSEWHERE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
# Modules at the top of the library whose names are read together with `lobs.prune`.
WITH_PRUNING = ("pruning", "planning", "result", "base")
TITLES = {
    "pruning": "Pruning",
    "calibration": "Statistics",
    "solvers": "Methods",
    "allocation": "Sharing a budget out",
    "repair": "Repair and masks",
    "compaction": "Smaller networks",
    "export": "Files and runtimes",
    "bounds": "Bounds",
    "layers": "Layers",
    "integrations": "Lightning",
}
# Code is matched to be left as it is.
LINK = re.compile(
    r"^```.*?^```|`[^`\n]+`(?!\])|(?P<picture>!?)\[(?P<label>[^\]]*)\]\((?P<target>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)",
    re.DOTALL | re.MULTILINE,
)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
FETCHED = re.compile(r'<(?:script|img|iframe|link rel="(?!canonical)[^"]*")[^>]* (?:src|href)="(?:https?:)?//[^"]*"')


def on_config(config: Any) -> Any:
    """The repository's address is that of pyproject.toml, if it has one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.repo_url = project.get("urls", {}).get("Repository")
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the API's pages, the reports, and what lies at the top of the repository."""
    from mkdocs.structure.files import File

    for room, names in api().items():
        files.append(File.generated(config, f"api/{room}.md", content=api_page(room, names)))
    for uri, path in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for path in sorted((ROOT / "reports").iterdir()):
        if path.suffix in (".md", ".csv", ".png", ".svg", ".txt", ".json"):
            files.append(File.generated(config, f"reports/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Tables in the places of their marks, links to where their targets are in the site."""
    if page.file.src_uri.startswith("reports/"):  # tables of numbers are nothing to search in
        page.meta["search"] = {"exclude": True}
    markdown = re.sub(r"<!-- table: (\w+) -->", lambda found: TABLES[found[1]](), markdown)
    uris = {file.src_uri for file in files}
    return LINK.sub(lambda found: site_link(found, page.file.src_uri, uris, config.repo_url), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers show without a script; the two colons before a docstring's block are one."""
    from latex2mathml.converter import convert

    def shown(found: re.Match[str]) -> str:
        display = "block" if found[2] == "[" else "inline"
        return (
            f'<{found[1]} class="arithmatex">{convert(html.unescape(found[3]).strip(), display=display)}</{found[1]}>'
        )

    return FORMULA.sub(shown, content.replace("::</p>", ":</p>"))


def on_post_build(config: Any) -> None:
    """Refuses a site that would load something from elsewhere."""
    from mkdocs.exceptions import PluginError

    for path in Path(config.site_dir).rglob("*.html"):
        found = FETCHED.search(path.read_text(encoding="utf-8"))
        if found:
            raise PluginError(f"{path.name} loads from elsewhere: {found[0]}")


def api() -> dict[str, list[str]]:
    """The public names by room, in the order of TITLES: `lobs.__all__`, the methods' solvers, Lightning's callbacks."""
    sys.path.insert(0, str(ROOT / "src"))
    import lobs
    from lobs.registry import METHODS

    found: dict[str, list[str]] = {room: [] for room in TITLES}
    for name, module in lobs._HOME.items():
        room = module.split(".")[1]
        found["pruning" if room in WITH_PRUNING else room].append(f"lobs.{name}")
    found["solvers"] += ["lobs.solvers.make", "lobs.solvers.Solver"]
    found["solvers"] += [f"{method.module}.{method.solver}" for method in METHODS.values()]
    found["layers"] += [f"lobs.layers.{name}" for name in ("prunable_layers", "weight_matrix", "set_weight_matrix")]
    found["layers"] += ["lobs.layers.View", "lobs.layers.register"]
    found["integrations"] += [f"lobs.integrations.lightning.{name}" for name in ("KeepMasks", "PruneCallback")]
    return found


def api_page(room: str, names: list[str]) -> str:
    """A page of one room: its docstrings, one after the other."""
    return "\n\n".join([f"# {TITLES[room]}", *(f"::: {name}" for name in names)]) + "\n"


def repository_path(uri: str) -> str:
    """Where a page's text lies in the repository."""
    return ELSEWHERE.get(uri) or (uri if uri.startswith("reports/") else f"docs/{uri}")


def site_link(found: re.Match[str], uri: str, uris: set[str], repository: str | None) -> str:
    """A link between files of the repository as one between pages.

    Args:
        found: the link, or a piece of code.
        uri: of the page that it is on.
        uris: of all files of the site.
        repository: the project's address; None: there is none.

    Returns:
        The same link with another target; what is not in the site is linked to in the repository, and named where
        that has no address.
    """
    if not found["target"]:
        return found[0]
    folder = posixpath.dirname(repository_path(uri))
    target = posixpath.normpath(posixpath.join(folder, found["target"]))
    places = {"README.md": "index.md", **{path: place for place, path in ELSEWHERE.items()}}
    place = places.get(target, target.removeprefix("docs/"))
    if place.startswith("tutorials/"):  # a notebook's source is read in the repository, its page on the site
        place = place.replace(".py", ".md")
    label, anchor = found["label"], found["anchor"] or ""
    if place in uris:
        where = posixpath.relpath(place, posixpath.dirname(uri) or ".")
        return f"{found['picture']}[{label}]({where}{anchor})"
    if repository:
        return f"{found['picture']}[{label}]({repository}/blob/main/{target}{anchor})"
    path = label.strip("`").rstrip("/")
    return f"`{path}`" if target.endswith(path) else f"{label} (`{target}`)"


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a table of the report."""
    with (ROOT / "reports" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number(row: dict[str, str], key: str, digits: int = 2) -> str:
    """A number with its deviation over the seeds, as far as both are there."""
    if not row[key]:
        return "-"
    deviation = row.get(f"{key.removesuffix('_percent')}_deviation")
    spread = f" ± {float(deviation):.{digits}f}" if deviation and int(row["seeds"]) > 1 else ""
    return f"{float(row[key]):.{digits}f}{spread}"


def table(head: list[str], body: list[list[str]]) -> str:
    """A table in Markdown, every column but the first one to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def networks_table() -> str:
    """What every method did to every network of the report."""
    head = ["method", "kept, %", "dense", "pruned", "refitted", "retrained", "pruning, s", "training, s"]
    keys = ["error_before_percent", "error_after_pruning_percent", "error_after_refit_percent"]
    networks: dict[str, list[list[str]]] = {}
    for row in rows("methods"):
        errors = [number(row, key) for key in [*keys, "error_after_retraining_percent"]]
        seconds = [number({**row, f"{key}_deviation": ""}, key, 1) for key in ("prune_seconds", "retrain_seconds")]
        kept = f"{float(row['density_percent']):.3g}"
        networks.setdefault(row["experiment"], []).append([row["label"], kept, *errors, *seconds])
    parts = [f"### {title(name)}\n\n{table(head, body)}" for name, body in networks.items()]
    return "\n\n".join(parts)


def title(experiment: str) -> str:
    """What the report calls a network."""
    text = (ROOT / "reports/methods.md").read_text(encoding="utf-8")
    found = re.search(rf"^## (.*) \(`{experiment}`\)$", text, flags=re.MULTILINE)
    return found[1] if found else experiment


def solvers_table() -> str:
    """Layer errors of all solvers on one layer, at the densities that were measured, and the seconds of a path."""
    found = rows("solvers")
    densities = list(dict.fromkeys(row["density"] for row in found))
    body: dict[str, list[str]] = {}
    for row in found:
        body.setdefault(row["solver"], []).append(f"{100 * float(row['relative_error']):.3g}")
    seconds = {row["solver"]: f"{float(row['path_seconds']):.2f}" for row in found}
    head = ["solver", *(f"at {100 * float(density):.3g}%" for density in densities), "path, s"]
    return table(head, [[solver, *errors, seconds[solver]] for solver, errors in body.items()])


def durations_table() -> str:
    """What the commands took from a clone to the report."""
    body = [[f"`{r['command']}`", r["runs"], f"{float(r['minutes']):.0f}", r["cores"]] for r in rows("wall_clock")]
    return table(["command", "runs", "minutes", "CPU cores"], body)


def methods_table() -> str:
    """The methods by name, with one line each."""
    sys.path.insert(0, str(ROOT / "src"))
    from lobs.registry import METHODS

    body = [[f"`{name}`", method.line, ", ".join(f"`{o}`" for o in method.options)] for name, method in METHODS.items()]
    return table(["method", "what it does", "options"], body).replace("---:", "---")


def allocations_table() -> str:
    """The allocations by name, with one line each."""
    sys.path.insert(0, str(ROOT / "src"))
    from lobs.registry import ALLOCATIONS

    body = [[f"`{name}`", line] for name, line in ALLOCATIONS.items()]
    return table(["allocation", "how a budget is shared out"], body).replace("---:", "---")


TABLES = {
    "networks": networks_table,
    "solvers": solvers_table,
    "durations": durations_table,
    "methods": methods_table,
    "allocations": allocations_table,
}
