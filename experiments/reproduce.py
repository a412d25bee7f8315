"""All published numbers, a configuration each, and the page that shows them.

`python -m experiments.reproduce` runs every file of `experiments/configs` through
`experiments.evaluate`, those of `membership` through `experiments.membership`, continues what was
stopped, and leaves alone what is finished or published. It writes `docs/results.md`, of planted
data `docs/planted.md`, and beside them the records that both are made from. A set whose data is not
there is listed as not run.
"""

from experiments import cli
from experiments.options import Options
from experiments.options import Reproduce as Config

if __name__ == "__main__":
    # wrong options are told before what takes seconds to import
    cli.read(Config, "experiments.reproduce")


import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import rich.console

import mixjax as mx
from experiments import (
    evaluate,
    membership,
    planted,
    provenance,
    records,
    report,
    results,
    tasks,
)

CONFIGS = Path(__file__).parent / "configs"
# the options of each command, its files, and what continues a run that was stopped
COMMANDS: dict[str, tuple[type[Any], str, list[str]]] = {
    "evaluate": (evaluate.Config, "*.toml", ["--resume"]),
    "membership": (membership.Config, "membership/*.toml", []),
}
PLANTED = {
    "motionsense": lambda folder: planted.motionsense(folder),
    "mobiact": lambda folder: planted.mobiact(folder, samples=(1600, 1200), trials=1),
    "lfw": lambda folder: planted.lfw(folder, people=200, images_each=6),
}


def main(config: Config) -> None:
    """Run what is asked for, then write the pages of all records there are.

    Raises:
      InputError: for unknown names.
    """
    console = rich.console.Console()
    settings = configurations(quick=config.quick)
    check(config, settings)
    out = config.out / "quick" if config.quick else config.out
    page = config.page or (out / "results.md" if config.quick else Path("docs/results.md"))
    failed = []
    for name, setting in settings.items():
        if config.only and name not in config.only:
            continue
        console.rule(setting.title, align="left")
        folder = config.data.get(setting.options["dataset"])
        published = records.beside(page) / name
        problem = run(
            setting.options,
            folder,
            out / name,
            setting.planted and folder is None,
            published,
            command=setting.command,
        )
        if problem:
            failed.append(name)
            console.print(f"not run: {problem}", markup=False)
    report.write(page, entries(settings), quick=config.quick)
    console.print(f"wrote {page} and {page.with_name(report.PLANTED)}", markup=False)
    if failed:
        raise mx.InputError(f"not run: {', '.join(failed)}; see above.")


class Setting(NamedTuple):
    """A file of `experiments/configs`.

    Attributes:
      title: of its section.
      planted: whether it is run on synthetic data where no folder is given.
      options: of the command.
      command: of `COMMANDS`.
    """

    title: str
    planted: bool
    options: dict[str, Any]
    command: str


def configurations(*, quick: bool = False) -> dict[str, Setting]:
    """All configurations by name, at toy sizes where asked."""
    found = {}
    for command, (_, pattern, _) in COMMANDS.items():
        for path in sorted(CONFIGS.glob(pattern)):
            options = tomllib.loads(path.read_text())
            title, synthetic = options.pop("title"), options.pop("planted", False)
            toy = options.pop("quick")
            name = "_".join(path.relative_to(CONFIGS).with_suffix("").parts)
            found[name] = Setting(title, synthetic, options | (toy if quick else {}), command)
    return found


def entries(settings: dict[str, Setting]) -> list[report.Entry]:
    """The sections of the pages."""
    return [
        report.Entry(name, setting.title, asked(setting.options, setting.command)[2])
        for name, setting in settings.items()
    ]


def asked(
    options: dict[str, Any], command: str = "evaluate"
) -> tuple[Options, tasks.Task, dict[str, Any]]:
    """What the options of a file come to."""
    given: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in options.items()
    }
    config = COMMANDS[command][0](**given)
    task = tasks.resolve(config)
    return config, task, results.config_dict(config, task)


def check(config: Config, settings: dict[str, Setting]) -> None:
    """Refuse names that nothing has."""
    for name in config.only:
        if name not in settings:
            raise mx.InputError(f"expected --only of {', '.join(settings)}; got {name}.")
    datasets = {setting.options["dataset"] for setting in settings.values()}
    for name in config.data:
        if name not in datasets:
            raise mx.InputError(f"expected --data for {', '.join(sorted(datasets))}; got {name}.")


def run(
    setting: dict[str, Any],
    folder: Path | None,
    out: Path,
    synthetic: bool,
    published: Path,
    *,
    command: str = "evaluate",
) -> str | None:
    """One configuration in a process of its own; returns what went wrong.

    What is finished or published is not run again: its options and its data are compared with
    those asked for.

    Args:
      setting: options of the command.
      folder: of the data.
      out: where the run is kept.
      synthetic: whether to run on planted data.
      published: the folder of its records.
      command: of `COMMANDS`.
    """
    config, task, options = asked(setting, command)
    for place in (out, published):
        summary = records.summary(place)
        if summary is None or not records.complete(summary):
            continue
        if synthetic and place == published and not summary["data"]["planted"]:
            # nothing synthetic takes the place of records of people
            return None
        if summary["config"] != options:
            continue
        if _same_data(summary["data"], config, task, folder, synthetic):
            if place == out:
                _publish(out, published)
            return None
    line = [sys.executable, "-m", f"experiments.{command}", *COMMANDS[command][2]]
    line += ["--out", str(out)]
    for name, value in setting.items():
        values = value if isinstance(value, list) else [value]
        line += [f"--{name.replace('_', '-')}", *map(str, values)]
    with tempfile.TemporaryDirectory() as scratch:
        if synthetic:
            folder = PLANTED[setting["dataset"]](Path(scratch))
        if folder is not None:
            line += ["--data-dir", str(folder)]
        done = subprocess.run(line, stderr=subprocess.PIPE, text=True, check=False)
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    print(*warned, sep="\n", end="\n" * bool(warned), file=sys.stderr)
    if done.returncode:
        # a refusal may have several lines; of a traceback the last tells most
        before, refused, message = done.stderr.rpartition("error: ")
        return " ".join(message.split()) if refused else (before.splitlines() or ["no message"])[-1]
    _publish(out, published)
    return None


def _publish(out: Path, published: Path) -> None:
    records.publish(out, published)
    summary = records.summary(out)
    if summary is not None and not summary["data"]["planted"]:
        records.copy_figures(out, published.parents[1] / published.name)


def _same_data(
    data: dict[str, Any],
    config: Options,
    task: tasks.Task,
    folder: Path | None,
    synthetic: bool,
) -> bool:
    """Whether results of some data are of the data that is asked for now.

    Without a folder's name nothing is loaded: then it matters whether the data is planted.
    """
    if folder is None:
        return data["planted"] == (synthetic or planted.is_planted(None))
    try:
        dataset = tasks.load(config, task, folder)
    except (mx.InputError, OSError):
        return False
    return provenance.of_data(dataset, folder) == data


if __name__ == "__main__":
    cli.command(main, Config, "experiments.reproduce", devices=False)
