"""What the commands share: reading options, refusing them, leaving.

mixjax is imported once they are read: it takes seconds.
"""

import io
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

Config = TypeVar("Config")


def read(config: type[Config], module: str) -> Config:
    """The options on the command line; wrong ones are told, and end the process with code 2.

    Args:
      config: their dataclass.
      module: the name that `python -m` knows the command by.
    """
    # a file's name may be no text
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return tyro.cli(config, prog=f"python -m {module}")


def command(
    main: Callable[[Config], None], config: type[Config], module: str, *, devices: bool = True
) -> None:
    """Read the command line and run; refusals become one line and exit code 2.

    Args:
      main: what to run.
      config: the dataclass of its options.
      module: the name that `python -m` knows it by.
      devices: whether this process trains, on a host device for each core.
    """
    import mixjax as mx

    options = read(config, module)
    if devices:
        mx.sharding.use_host_devices()
    try:
        main(options)
    except (mx.InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def check_counts(config: Any, names: Sequence[str]) -> None:
    """Refuse options that must be whole numbers of at least 1 and aren't."""
    import mixjax as mx

    for name in names:
        if getattr(config, name) < 1:
            raise mx.InputError(
                f"expected --{name.replace('_', '-')} of at least 1; got {getattr(config, name)}."
            )
