"""How sphinx builds these pages: `make docs`."""

from __future__ import annotations
import __future__

import re
import sys
import types
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

project = "virtq"
author = "the virtq authors"
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "virtq"
html_copy_source = False
default_role = "py:obj"
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Pages that others keep here may point into the repository.
suppress_warnings = ["myst.xref_missing", "toc.empty_glob", "toc.not_included"]

autodoc_default_options = {"members": True, "show-inheritance": True}
autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"ReadableBuffer": "ReadableBuffer"}


def _document_core_by_its_stubs() -> None:
    """The native module's interface is documented in its stubs, which are Python."""
    source = (ROOT / "virtq" / "_core.pyi").read_text()
    module = types.ModuleType("virtq._core")
    flags = __future__.annotations.compiler_flag
    exec(compile(source, "_core.pyi", "exec", flags=flags), module.__dict__)
    sys.modules["virtq._core"] = module


_document_core_by_its_stubs()


# The reference: a page for each package, from its docstrings

PAGES = {
    "device": ("Devices", ["device", "handlers", "supply", "configspace", "runner", "pump"]),
    "driver": ("Drivers", ["driver", "queue", "memory"]),
    "vocabulary": ("Features, status, errors", ["features", "status", "errors"]),
    "connecting": (
        "Connecting and serving",
        ["uri", "connecting", "serving", "named_devices", "transports.base"],
    ),
    "core": ("The core", ["_core"]),
    "devices": ("Device types", ["devices.*"]),
    "drivers": ("Drivers by device type", ["drivers.*"]),
    "wire": ("Wire formats", ["wire.*"]),
    "wrap": ("Wrappers", ["wrap", "wrap.*"]),
    "testing": ("Testing", ["testing", "testing.*"]),
    "transports": ("Transports", ["transports.loopback", "transports.vhost_user.*"]),
}


def _modules(names: list[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        package, star, _ = name.partition(".*")
        if not star:
            found.append(f"virtq.{name}")
            continue
        folder = ROOT / "virtq" / package.replace(".", "/")
        found += sorted(
            f"virtq.{package}.{path.stem}"
            for path in folder.glob("*.py")
            if not path.stem.startswith("_")
        )
    return found


def _underlined(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n\n"


def _write(name: str, text: str) -> None:
    path = HERE / "reference" / f"{name}.rst"
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def _write_reference() -> None:
    for name, (title, modules) in PAGES.items():
        text = _underlined(title, "=")
        for module in _modules(modules):
            # What a package re-exports is documented where it is.
            is_package = (ROOT / module.replace(".", "/")).is_dir()
            bare = "\n   :no-members:" if is_package else ""
            text += _underlined(module, "-") + f".. automodule:: {module}{bare}\n\n"
        _write(name, text)
    _write("cli", _underlined("The command line", "=") + "".join(_help()))


def _help() -> list[str]:
    """What `--help` says of every command."""
    import click

    from virtq.cli import cli

    def pages(command: click.Command, context: click.Context) -> list[str]:
        name = context.command_path
        text = "\n".join(f"   {line}".rstrip() for line in command.get_help(context).splitlines())
        found = [_underlined(name, "-") + f".. code-block:: text\n\n{text}\n\n"]
        if isinstance(command, click.Group):
            for word in command.list_commands(context):
                inner = command.get_command(context, word)
                if inner is not None and not inner.hidden:
                    made = click.Context(inner, info_name=word, parent=context)
                    found += pages(inner, made)
        return found

    top = click.Context(cli, info_name="virtq", max_content_width=90)
    return pages(cli, top)


_write_reference()


# Docstrings are prose in which what is indented is shown as it is


CODE = re.compile(r"[\w)] = |def |class |import |with ")
STATEMENT = re.compile(r"(async |with |class |def |for |import |from ).*")


def _literal_where_indented(app, what, name, obj, options, lines: list[str]) -> None:
    """Paragraphs that are indented, and those that are Python with something indented in them, are
    code."""
    text = "\n".join(lines).replace("Error_", "Error\\_")
    shown: list[str] = []
    inside = False
    for paragraph in re.split(r"\n(?:[ \t]*\n)+", text):
        rows = paragraph.splitlines() or [""]
        is_python = STATEMENT.match(rows[0]) and any(row.startswith("    ") for row in rows)
        is_code = rows[0].startswith("    ") or bool(is_python)
        if is_code and not inside:
            language = "python" if CODE.search(rows[0]) or is_python else "text"
            shown += [f".. code-block:: {language}", "   :force:", ""]
        inside = is_code
        shown += [f"    {row}" if is_code else row for row in rows] + [""]
    lines[:] = shown


def _drop_empty_lists(app, name: str, source: list[str]) -> None:
    """A list of pages of which there are none (yet) is left out."""

    def keep(block: re.Match[str]) -> str:
        patterns = [line for line in block[1].splitlines() if "*" in line]
        there = not patterns or any(any(HERE.glob(f"{pattern}.md")) for pattern in patterns)
        return block[0] if there else ""

    source[0] = re.sub(r"```\{toctree\}\n(.*?)```\n", keep, source[0], flags=re.DOTALL)


def setup(app) -> None:
    app.connect("source-read", _drop_empty_lists)
    app.connect("autodoc-process-docstring", _literal_where_indented)
