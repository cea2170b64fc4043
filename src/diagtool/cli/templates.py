"""``diagtool templates``: the leak patterns that diagtool knows, and those of a team."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diagtool.cli.options import (
    color_option,
    core_options,
    heap_option,
    known_templates,
    source_option,
    target_argument,
    templates_option,
)

if TYPE_CHECKING:
    from diagtool.leaks.template import SourceRule, Template
    from diagtool.report.text import Line


@click.group("templates", short_help="List, show and check leak templates.")
def command() -> None:
    """List, show and check leak templates.

    A template is a leak pattern as data (TOML): what it looks like, when it counts, why it happens, how to
    fix it. A team keeps its own in a folder and gives it with --templates; nothing of diagtool needs
    changing. docs/templates.md describes the keys.

    \b
    Examples:
        diagtool templates list
        diagtool templates show asyncio-queue-get-starved
        diagtool templates check ./templates
        diagtool templates try basket.toml 4242
    """


@command.command("list")
@templates_option
@click.option("--all", "everything", is_flag=True, help="List idle templates, too: what is no leak.")
@color_option
def list_templates(templates: Path | None, everything: bool) -> int:
    """List the leak templates: id, severity, title."""
    from diagtool.cli.output import print_lines
    from diagtool.report.text import clean, count, pad

    known = known_templates(templates)
    shown = [t for t in known if everything or not t.idle]
    ids = max((len(t.id) for t in shown), default=0)
    lines: list[Line] = [
        [
            (pad(clean(t.id), ids), "own"),
            (f"  {'idle' if t.idle else t.severity:<8}", "label"),
            ("  " + clean(t.title), ""),
        ]
        for t in sorted(shown, key=lambda t: (t.idle, t.catalogue, t.id))
    ]
    lines.append([])
    text = count(sum(not t.idle for t in known), "leak template")
    lines.append([(f"{text}, {count(sum(t.idle for t in known), 'idle template')}", "count")])
    print_lines(lines, None)
    return 0


def _ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [t.id for t in known_templates(context.params.get("templates")) if t.id.startswith(incomplete)]


@command.command("show")
@click.argument("name", metavar="ID", shell_complete=_ids)
@templates_option
@color_option
def show_template(name: str, templates: Path | None) -> int:
    """Show one template: what it is about, its cause, its fix, its file."""
    from diagtool.cli.output import print_lines

    known = {t.id: t for t in known_templates(templates)}
    if name not in known:
        from difflib import get_close_matches

        near = get_close_matches(name, known, 1)
        hint = f"Did you mean {near[0]}?" if near else "`diagtool templates list` lists them."
        raise click.BadParameter(f"there is no template {name}. {hint}", param_hint="ID")
    print_lines(_shown(known[name]), None)
    return 0


@command.command("check")
@click.argument("folder", metavar="[FILE|DIR]", required=False, type=click.Path(exists=True, path_type=Path))
@color_option
def check_templates(folder: Path | None) -> int:
    """Check the templates in FILE or DIR (default: diagtool's own) and say what is wrong where.

    Every mistake is told with file, line and key, and with what is allowed there: a key that there is none
    of, a value of the wrong type, a fact that is none, an expression that could search for ever, templates
    that extend each other in a circle, an id that is there twice, a missing fix.

    \b
    Exit status:
        0   all can be used
        1   some can't
        2   wrong usage
    """
    from diagtool.cli.output import print_lines, width
    from diagtool.leaks.template import LIBRARY, builtin, read_directory
    from diagtool.report.text import clean, count, wrap

    found, problems = read_directory(folder or LIBRARY)
    lines: list[Line] = []
    for problem in problems:
        lines.append([(clean(str(problem), 1000), "warning")])
        if problem.allowed:
            texts = wrap(clean(", ".join(problem.allowed), 2000), width(None) - 13)
            lines += [
                [("    " + ("" if i else "allowed:").ljust(9), "label"), (t, "")] for i, t in enumerate(texts)
            ]
    ours = {t.id for t in builtin()} if folder is not None else set()
    for template in found:
        if template.id in ours:
            lines.append([(f"{clean(template.file)}: {template.id}: takes the place of ours", "label")])
    lines.append([(f"{count(len(found), 'template')}, {count(len(problems), 'problem')}", "count")])
    print_lines(lines, None)
    return 1 if problems else 0


@command.command("try", short_help="Say why a template matches a target, or why not.")
@click.argument("file", metavar="FILE", type=click.Path(exists=True, path_type=Path))
@target_argument("targets", metavar="TARGET...", nargs=-1, required=True)
@click.option("--template", "only", metavar="ID", help="Try this one of FILE only.")
@click.option(
    "-n",
    "--nearest",
    type=click.IntRange(1, 50),
    default=3,
    show_default=True,
    metavar="N",
    help="Show the N clusters or rows that come nearest to each template.",
)
@heap_option
@core_options
@source_option
@color_option
def try_templates(
    file: Path,
    targets: tuple[str, ...],
    only: str | None,
    nearest: int,
    heap: bool | None,
    exe: str | None,
    sysroot: str | None,
    sources: tuple[str, ...],
) -> int:
    """Say why a template in FILE matches TARGET, or why not: condition by condition.

    TARGET is a process id, a core file or a FILE.diag, as for `diagtool leaks`; several snapshots of one
    process are needed where a template asks for growth. Of what comes nearest to the template each condition
    is shown with what was found. Then what the whole report says, because a stack is told once: another
    template may be surer, or have the higher priority.

    \b
    Examples:
        diagtool templates try basket.toml 4242
        diagtool templates try basket.toml before.diag after.diag

    \b
    Exit status:
        0   a template of FILE matches
        1   none does
        2   wrong usage, or FILE has mistakes
        3   the target could not be read
    """
    from diagtool.cli.output import print_lines, width
    from diagtool.cli.target import looks_at_heap, resolve
    from diagtool.leaks import find_leaks
    from diagtool.leaks.series import SeriesError
    from diagtool.leaks.template import read_directory
    from diagtool.leaks.trial import Trial, candidates
    from diagtool.report.trial import lines

    known = known_templates(file)
    tried = [t for t in read_directory(file)[0] if only in (None, t.id)]
    if not tried:
        raise click.BadParameter(f"there is no template {only} in {file}.", param_hint="--template")
    resolved = [
        resolve(t, exe=exe, sysroot=sysroot, sources=sources, heap=looks_at_heap(t, heap)) for t in targets
    ]
    snapshots = [r.snapshot for r in resolved]
    try:
        report = find_leaks(snapshots, templates=known, sources=resolved[-1].sources)
        trials = [Trial(t, candidates(t, snapshots, known, nearest), report) for t in tried]
    except SeriesError as error:
        raise click.UsageError(f"{error}. {error.hint}") from error
    print_lines(lines(trials, width(None)), None)
    return 0 if any(trial.matches for trial in trials) else 1


def _source(rule: SourceRule) -> str:
    then = " raises it" if rule.raises else " lowers it" if rule.lowers else ""
    return f"{rule.check or rule.pattern} at {rule.at}{then}"


def _shown(template: Template) -> Iterator[Line]:
    from diagtool.cli.output import width
    from diagtool.report.text import clean, pad, wrap

    rows = {
        "title": template.title,
        "kind": template.kind,
        "severity": "idle: no leak" if template.idle else template.severity,
        "verdicts": ", ".join(f"{r.level} from {r.min_count}" for r in template.rules),
        "source": ", ".join(_source(rule) for rule in template.source),
        "cause": template.cause,
        "fix": template.fix,
        "runbook": template.runbook or "",
        "see also": " ".join(template.references),
        "file": template.file,
    }
    yield [(clean(template.id), "own")]
    for label, text in rows.items():
        for i, part in enumerate(wrap(clean(text, 2000), width(None) - 11) if text else ()):
            yield [(pad("" if i else label, 11), "label"), (part, "")]
