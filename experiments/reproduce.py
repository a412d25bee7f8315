"""All published numbers, a configuration each, and the page that shows them.

`python -m experiments.reproduce` runs every file of `experiments/configs` through
`experiments.evaluate`, continues what was stopped, leaves alone what is finished, and writes
`docs/results.md`. A set whose data is not there is listed as not run.
"""

from experiments import cli
from experiments.options import Reproduce as Config

if __name__ == "__main__":
    # wrong options are told before what takes seconds to import
    cli.read(Config, "experiments.reproduce")


import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import rich.console

import mixjax as mx
from experiments import evaluate, planted, provenance, report, results, tasks

CONFIGS = Path(__file__).parent / "configs"
PLANTED = {
    "motionsense": lambda folder: planted.motionsense(folder),
    "mobiact": lambda folder: planted.mobiact(folder, samples=(1600, 1200), trials=1),
    "lfw": lambda folder: planted.lfw(folder, people=200, images_each=6),
}


def main(config: Config) -> None:
    """Run what is asked for, then write the page of all runs there are.

    Raises:
      InputError: for unknown names.
    """
    console = rich.console.Console()
    settings = {
        path.stem: tomllib.loads(path.read_text()) for path in sorted(CONFIGS.glob("*.toml"))
    }
    check(config, settings)
    out = config.out / "quick" if config.quick else config.out
    page = config.page or (out / "results.md" if config.quick else Path("docs/results.md"))
    failed = []
    entries = []
    for name, setting in settings.items():
        title, synthetic = setting.pop("title"), setting.pop("planted", False)
        quick = setting.pop("quick", {})
        setting |= quick if config.quick else {}
        folder = config.data.get(setting["dataset"])
        synthetic = synthetic and folder is None
        problem = None
        if not config.only or name in config.only:
            console.rule(title, align="left")
            problem = run(setting, folder, out / name, synthetic)
        if problem:
            failed.append(name)
            console.print(f"not run: {problem}", markup=False)
        entries.append(report.Entry(name, title, out / name, problem))
    report.write(page, entries, quick=config.quick)
    console.print(f"wrote {page}", markup=False)
    if failed:
        raise mx.InputError(f"not run: {', '.join(failed)}; see above.")


def check(config: Config, settings: dict[str, Any]) -> None:
    """Refuse names that nothing has."""
    for name in config.only:
        if name not in settings:
            raise mx.InputError(f"expected --only of {', '.join(settings)}; got {name}.")
    datasets = {setting["dataset"] for setting in settings.values()}
    for name in config.data:
        if name not in datasets:
            raise mx.InputError(f"expected --data for {', '.join(sorted(datasets))}; got {name}.")


def run(setting: dict[str, Any], folder: Path | None, out: Path, synthetic: bool) -> str | None:
    """One configuration in a process of its own; returns what went wrong.

    What is finished is not run again: its options and its data are compared with those asked for.
    """
    options: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in setting.items()
    }
    config = evaluate.Config(**options)
    task = tasks.resolve(config)
    asked = results.config_dict(config, task)
    summary = report.recorded(out)
    if summary is not None and summary["config"] == asked:
        data = summary.get("data")
        same = (
            data is not None
            and "pool" in data
            and _same_data(data, config, task, folder, synthetic)
        )
        if same:
            return None
    command = [sys.executable, "-m", "experiments.evaluate", "--resume", "--out", str(out)]
    for name, value in setting.items():
        values = value if isinstance(value, list) else [value]
        command += [f"--{name.replace('_', '-')}", *map(str, values)]
    with tempfile.TemporaryDirectory() as scratch:
        if synthetic:
            folder = PLANTED[setting["dataset"]](Path(scratch))
        if folder is not None:
            command += ["--data-dir", str(folder)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    print(*warned, sep="\n", end="\n" * bool(warned), file=sys.stderr)
    if done.returncode:
        # a refusal may have several lines; of a traceback the last tells most
        before, refused, message = done.stderr.rpartition("error: ")
        return " ".join(message.split()) if refused else (before.splitlines() or ["no message"])[-1]
    return None


def _same_data(
    data: dict[str, Any],
    config: evaluate.Config,
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
