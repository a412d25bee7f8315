"""What decides a run's results, as JSON values to be shown and compared."""

import functools
import hashlib
import importlib.metadata
import json
import re
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
import numpy as np

from mixjax import _validate

# they change the order of summation and nothing else
LAYOUT = ("chunk_size", "mesh")
FLAGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_threefry_partitionable")
VERSIONED = ("jax", "jaxlib", "optax")
INSTALLED = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")
)
OURS = Path(__file__).resolve().parent


def environment() -> dict[str, Any]:
    """Versions and flags that change bits."""
    flags = {flag.removeprefix("jax_"): getattr(jax.config, flag, None) for flag in FLAGS}
    return {
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
        "flags": flags,
    }


def describe(value: Any) -> Any:
    """A function or component by what it is and what its closures hold.

    Functions of installed packages and of this one are told by name, others by their code too, as
    compiled; closures, defaults, and the constants and functions that code of one's own takes from
    its module are followed. Arrays are digests. What can't be looked into counts by its type.
    """
    return _describe(value, ())


def digest_arrays(leaves: list[np.ndarray]) -> str:
    """Of bytes, shapes and dtypes."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in leaves:
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _describe(value: Any, above: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic)):
        return repr(value)
    if id(value) in above:
        return "itself"
    above = (*above, id(value))
    if isinstance(value, (type, ModuleType)):
        return getattr(value, "__qualname__", value.__name__)
    if isinstance(value, jax.core.Tracer):
        return "traced"
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return _describe(value.tolist(), above)
    if isinstance(value, (np.ndarray, jax.Array)):
        return _array(value)
    if isinstance(value, Mapping):
        return {str(name): _describe(inner, above) for name, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _named(dict(zip(value._fields, value, strict=True)), above)
    if isinstance(value, (tuple, list)):
        return _named({str(index): inner for index, inner in enumerate(value)}, above)
    return _callable(value, above) or _object(value, above)


def _array(value: Any) -> str:
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return f"{value.dtype}{list(value.shape)} {digest_arrays([np.asarray(value)])}"


def _named(items: dict[str, Any], above: tuple[int, ...]) -> dict[str, Any]:
    return {
        name: _describe(inner, above)
        for name, inner in items.items()
        if name not in LAYOUT and not isinstance(inner, jax.sharding.Mesh)
    }


def _callable(value: Any, above: tuple[int, ...]) -> Any:
    if isinstance(value, functools.partial):
        return {
            "of": _describe(value.func, above),
            **_named({str(i): arg for i, arg in enumerate(value.args)}, above),
            **_named(dict(value.keywords), above),
        }
    if isinstance(value, MethodType):
        return {"of": _describe(value.__func__, above), "self": _describe(value.__self__, above)}
    # what a decorator such as jax.jit wraps is what counts
    inner = getattr(value, "__wrapped__", None)
    if inner is not None:
        return _describe(inner, above)
    if not isinstance(value, FunctionType):
        return None
    held: dict[str, Any] = {}
    for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        try:
            held[name] = cell.cell_contents
        except ValueError:  # not filled yet
            continue
    own = not _is_installed(value.__code__)
    if own:
        for name in value.__code__.co_names:
            used = value.__globals__.get(name)
            if isinstance(used, (bool, int, float, str, FunctionType)):
                held[name] = used
    held |= {f"default {i}": default for i, default in enumerate(value.__defaults__ or ())}
    held |= value.__kwdefaults__ or {}
    name = f"{value.__module__}.{value.__qualname__}"
    code = {"code": _code(value.__code__)} if own else {}
    return {"function": name, **code, **_named(held, above)}


def _object(value: Any, above: tuple[int, ...]) -> Any:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    held = getattr(value, "__dict__", None)
    if held is None:
        return kind
    # besides its fields a flax module keeps a number that no other of the process has
    fields = getattr(value, "__dataclass_fields__", held)
    shown = {n: inner for n, inner in held.items() if n in fields and not n.startswith("__")}
    return {"type": kind, **_named(shown, above)}


def _is_installed(code: CodeType) -> bool:
    path = Path(code.co_filename)
    if not path.is_absolute():
        return False
    folders = (*INSTALLED, OURS)
    return any(path.resolve().is_relative_to(folder) for folder in folders)


def _code(code: CodeType) -> str:
    """A digest of what the code does, not of where it stands."""
    constants = [
        _code(one) if isinstance(one, CodeType) else re.sub(r" at 0x[0-9a-f]+", "", repr(one))
        for one in code.co_consts
    ]
    text = json.dumps([code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def check_same_config(saved: Any, config: Any, where: Any, what: str = "config") -> None:
    old, new = dict(_flat_items(saved)), dict(_flat_items(config))
    lines = [
        f"  {name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} now"
        for name in [*old, *(name for name in new if name not in old)]
        if old.get(name) != new.get(name)
    ]
    if lines:
        listed = "\n".join(lines)
        raise _validate.InputError(
            f"expected the {what} that {where} was made under; it differs in\n{listed}\n"
            "Resume with the same, or start afresh elsewhere."
        )


def _flat_items(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted names and JSON texts of what nested dicts hold."""
    if not isinstance(value, dict) or not value:
        return [(prefix, json.dumps(value))] if prefix else []
    return [
        item
        for name, inner in value.items()
        for item in _flat_items(inner, f"{prefix}.{name}" if prefix else str(name))
    ]


def check_same_run(saved: dict[str, Any], run: dict[str, Any], folder: Path) -> None:
    check_same_config(saved["config"], run["config"], folder)
    for name in ("environment", "federation"):
        check_same_config(saved[name], run[name], folder, name)
    for name, what in (
        ("key_kind", "the kind of key"),
        ("key", "the key"),
        ("start", "the starting state"),
        ("data", "the cohort"),
    ):
        if saved[name] != run[name]:
            raise _validate.InputError(
                f"expected {what} of the run in {folder} to resume it; got another. "
                "Pass the same, or start afresh in another folder."
            )
