# SPDX-License-Identifier: Apache-2.0
"""mkdocs' hooks: pages made from the code and from files outside of `docs`, and mathematics as MathML."""

import html
import os
import posixpath
import re
import sys
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files


sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
os.environ.setdefault("COLUMNS", "100")

import tables  # noqa: E402


# Files of the repository that are pages of the site.
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
NOTEBOOK = "mu_align.ipynb"
# What a method is written with.
SEAMS = ["hf_unlearn.training.method.Method", "hf_unlearn.forward.needs.Need", "hf_unlearn.forward.role_rows.RoleRows"]
LOSSES = [
    "hf_unlearn.losses",
    *(f"hf_unlearn.losses.{part}" for part in ("tokens", "states", "soft_labels", "arithmetic")),
]
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")


def on_config(config):
    """Puts a page for every method into the navigation."""
    from hf_unlearn import METHODS

    missing = [name for name in METHODS if not Path(config.docs_dir, "methods", f"{name}.md").is_file()]
    if missing:
        raise ValueError(f"No page for {', '.join(missing)}. Write docs/methods/<method>.md: equation, when to use.")
    for entry in config.nav:
        if "Methods" in entry:
            entry["Methods"][2:2] = [f"methods/{name}.md" for name in METHODS]
    return config


def on_files(files: Files, config) -> Files:
    made = {
        "cli.md": tables.commands_page(),
        "methods/arguments.md": (
            "# Arguments of every method\n\nOn top of `transformers.TrainingArguments`. What a method adds or has "
            f"another default for is on its page.\n\n{tables.shared_arguments()}\n"
        ),
        "mu_align_notebook.md": tables.notebook_page(Path(config.docs_dir, NOTEBOOK)),
        **api_pages(),
    }
    for source, page in OUTSIDE.items():
        made[page] = (tables.ROOT / source).read_text(encoding="utf-8")
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    path = page.file.src_uri
    folder, name = posixpath.split(path)
    if folder == "methods" and name != "arguments.md":
        markdown = method_page(markdown, name.removesuffix(".md"))
    outside = {page: source for source, page in OUTSIDE.items()}
    # Where the text stands in the repository, to which its links are relative.
    here = posixpath.dirname(outside.get(path, f"docs/{path}"))
    return LINK.sub(lambda found: f"]({relative(found[1], here, folder)}{found[2] or ''})", markdown)


def relative(target: str, here: str, folder: str) -> str:
    """A link of the repository as a link of the site."""
    file = posixpath.normpath(posixpath.join(here, target))
    page = OUTSIDE.get(file, file.removeprefix("docs/"))
    return posixpath.relpath(page, folder or ".")


def method_page(markdown: str, name: str) -> str:
    """A method's text with what is known of it: its classes after the title, arguments and recipes at the end."""
    title, text = markdown.split("\n", 1)
    return (
        f"{title}\n\n{tables.method_header(name)}\n{text}\n\n## Arguments\n\n{tables.method_arguments(name)}\n\n"
        f"Those of every method: [arguments](arguments.md).\n\n## Recipe\n\n{tables.method_recipes(name)}\n"
    )


def api_pages() -> dict[str, str]:
    """The reference: a page for the trainers, the losses, and the audits, of all that is public."""
    import hf_unlearn
    from hf_unlearn import audit

    return {
        "api/trainers.md": reference("Trainers and configs", [*public_paths(hf_unlearn), *SEAMS]),
        "api/losses.md": reference("Losses", LOSSES, heading=False),
        "api/audit.md": reference("Audits", public_paths(audit)),
    }


def public_paths(package) -> list[str]:
    """Where each public class and function of a package is defined."""
    found = (getattr(package, name) for name in package.__all__)
    return sorted(
        {f"{value.__module__}.{value.__name__}" for value in found if hasattr(value, "__name__")},
        key=lambda path: path.rsplit(".", 1)[-1].lower(),
    )


def reference(title: str, paths: list[str], heading: bool = True) -> str:
    options = "" if heading else "\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false"
    return f"# {title}\n\n" + "\n\n".join(f"::: {path}{options}" for path in paths) + "\n"


def on_page_content(content: str, page, config, files) -> str:
    """Browsers draw MathML themselves; no script is loaded."""
    return re.sub(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>',
        lambda found: convert(html.unescape(found[2]), display="inline" if found[1] == "span" else "block"),
        content,
        flags=re.DOTALL,
    )
