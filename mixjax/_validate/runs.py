"""Whole runs: their memory, their options, their folders."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mixjax import _memory
from mixjax._validate.values import InputError, check_positive


def tree_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_memory(needed: int, what: str, advice: str, mesh: jax.sharding.Mesh | None) -> None:
    """Refuse what can't fit, before it is compiled; `needed` is a lower bound."""
    total = _memory.total_bytes(mesh)
    if total is not None and needed > total:
        raise InputError(
            f"expected a run that fits the memory of {total:,} bytes; {what} needs at least "
            f"{needed:,}. {advice}"
        )


def check_stack_memory(
    params: Any,
    clients: int,
    chunk_size: int | None,
    mesh: jax.sharding.Mesh | None,
    *,
    stacks: int,
    advice: str,
) -> None:
    """Stacks of every client's update, and the parameters and gradients of a chunk of clients."""
    if chunk_size is not None:
        check_positive(chunk_size, "chunk_size", integer=True)
    model = tree_bytes(params)
    size = clients * model
    check_memory(
        stacks * size, f"{stacks} x {clients} clients x {model:,} bytes of updates", advice, mesh
    )
    chunk = min(chunk_size or 1, clients)
    check_memory(
        2 * chunk * model,
        f"training {chunk} clients of {model:,} bytes at once",
        "Pass a smaller chunk_size.",
        mesh,
    )


def check_json(value: Any, what: str) -> Any:
    """The value as JSON gives it back: tuples as lists, keys as strings."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"expected JSON values in {what}; {error}. Put numbers, texts, lists and dicts there."
        ) from None


def check_same_config(saved: Any, config: Any, where: Any) -> None:
    old, new = dict(_flat_items(saved)), dict(_flat_items(config))
    lines = [
        f"  {name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} now"
        for name in [*old, *(name for name in new if name not in old)]
        if old.get(name) != new.get(name)
    ]
    if lines:
        listed = "\n".join(lines)
        raise InputError(
            f"expected the config that {where} was made under; it differs in\n{listed}\n"
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
    for name, what in (
        ("key_kind", "the kind of key"),
        ("key", "the key"),
        ("start", "the starting state"),
        ("data", "the cohort"),
    ):
        if saved[name] != run[name]:
            raise InputError(
                f"expected {what} of the run in {folder} to resume it; got another. "
                "Pass the same, or start afresh in another folder."
            )


def check_same_leaves(form: Sequence[Any], found: Sequence[Any], folder: Path) -> None:
    for index, (like, leaf) in enumerate(zip(form, found, strict=True)):
        if (like.shape, like.dtype) != (leaf.shape, leaf.dtype):
            raise InputError(
                f"expected a state like the one saved in {folder}; got {like.dtype}"
                f"{list(like.shape)} for leaf {index}, where {leaf.dtype}{list(leaf.shape)} was "
                "saved."
            )


def check_same_records(forms: Sequence[Any], parts: Sequence[Any], path: Path) -> None:
    new = [(form.dtype.itemsize, form.shape[1:]) for form in forms]
    old = [(part.dtype.itemsize, part.shape[1:]) for part in parts]
    if new != old:
        shapes = [[list(shape) for _, shape in kind if len(shape)][:3] for kind in (old, new)]
        raise InputError(
            f"expected records shaped like those of earlier rounds in {path}, {len(old)} arrays "
            f"{shapes[0]}...; got {len(new)} arrays {shapes[1]}.... Resume with the same "
            "federation and as many clients, padding included."
        )


def check_run_folder(folder: Path, parts: Sequence[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"expected a folder for the run; {folder} is a file.")
    others = [path.name for path in folder.iterdir()] if folder.exists() else []
    others = sorted(set(others) - set(parts))
    if others:
        raise InputError(
            f"expected a new or empty folder, or a run's; {folder} holds {others[0]!r}. Name a "
            "folder of the run's own: it is closed to other users."
        )


def check_rounds_left(done: int, rounds: int, folder: Path) -> None:
    if done > rounds:
        raise InputError(
            f"expected at least the {done} rounds that the run in {folder} has done; got "
            f"{rounds}. Ask for as many or more, or start afresh in another folder."
        )


def check_any_checkpoint(faults: Sequence[str], lost: bool, folder: Path) -> None:
    """Refuse a folder where work was done of which no checkpoint is good."""
    if faults or lost:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise InputError(
            f"found no good checkpoint in {folder}.{listed}\n"
            "Restore the folder from a copy, or delete it to start afresh."
        )
