"""Checks of single values that several modules share, and the form of every error text.

Shapes, structures and key types are static, so they are checked while tracing. Values are
checked only where they are concrete; under `jit` the documented NaN policies apply instead.
What one module alone checks stands with it.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

INT_MAX = 2**31 - 1
FLOAT_MAX = float(np.finfo(np.float32).max)


class InputError(ValueError):
    """Input that mixjax can't work with: what came, what was expected, what to do."""


def concrete(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves with readable paths, such as `('conv1', 'kernel')`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(str(path_names(path)), leaf) for path, leaf in leaves]


def path_names(path: Sequence[Any]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


def check_key(key: Any) -> None:
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.ndim:
            raise InputError(
                f"expected one key; got an array of keys of shape {key.shape}. "
                "Map over them with jax.vmap."
            )
        return
    came = f"{key!r}" if isinstance(key, int) else f"{type(key).__name__}"
    if hasattr(key, "dtype"):
        came = f"an array {key.dtype}{list(key.shape)}"
    raise InputError(f"expected a typed key; got {came}. Make one with jax.random.key(seed).")


def check_choice(value: Any, choices: Sequence[str], what: str) -> None:
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise InputError(f"expected {what} to be one of {listed}; got {value!r}.")


def check_positive(value: Any, what: str, *, integer: bool = False) -> None:
    if not concrete(value):
        return
    if integer and not (isinstance(value, (int, np.integer)) and not isinstance(value, bool)):
        raise InputError(f"expected {what} to be a whole number of at least 1; got {value!r}.")
    least = "a whole number of at least 1" if integer else "greater than 0"
    if integer and value > INT_MAX:
        raise InputError(f"expected {what} to be {least} and at most {INT_MAX}; got {value!r}.")
    _check_number(value, f"{what} to be {least}", lambda number: number > 0)


def check_non_negative(value: Any, what: str) -> None:
    _check_number(value, f"{what} to be at least 0", lambda number: number >= 0)


def check_fraction(value: Any, what: str, below: float) -> None:
    _check_number(value, f"{what} in [0, {below})", lambda number: 0 <= number < below)


def check_share(value: Any, what: str) -> None:
    _check_number(value, f"{what} in (0, 1]", lambda number: 0 < number <= 1)


def check_seed(value: Any) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 0:
        raise InputError(f"expected a seed that is a whole number of at least 0; got {value!r}.")


def check_mesh(mesh: Any) -> None:
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh):
        raise InputError(
            f"expected a mesh such as sharding.clients_mesh(); got {type(mesh).__name__}."
        )


def _check_number(value: Any, expected: str, holds: Callable[[Any], Any]) -> None:
    """A real number, finite in float32; a traced one passes."""
    if not concrete(value):
        return
    scalar = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not scalar:
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", jnp.bool_)
        scalar = shape == () and real(dtype)
    if not scalar or isinstance(value, complex) or not abs(value) <= FLOAT_MAX or not holds(value):
        raise InputError(f"expected {expected}; got {value!r}.")


def real(dtype: Any) -> bool:
    """Whether numbers of the dtype are real; booleans are not."""
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)


def check_real(tree: Any, what: str = "updates") -> None:
    for name, leaf in named_leaves(tree):
        if not real(leaf.dtype) and leaf.dtype != jnp.bool_:
            raise InputError(
                f"expected real numbers in {what}; got {leaf.dtype} at {name}. Convert them first."
            )


def check_integers_fit(tree: Any, what: str) -> None:
    """Refuse integers of 64 bits on the host that JAX would wrap around to 32 without a word."""
    for name, leaf in named_leaves(tree):
        host = isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind in "iu"
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype) if host else None
        if dtype is None or dtype == leaf.dtype:
            continue
        bounds = np.iinfo(dtype)
        ends = (leaf.min(), leaf.max()) if leaf.size else ()
        outside = [end for end in ends if not bounds.min <= end <= bounds.max]
        if outside:
            raise InputError(
                f"expected integers that fit {bounds.dtype} in {what}; got {outside[0]} at {name} "
                f"({leaf.dtype}). Number them, or set jax_enable_x64."
            )


def host_array(values: Any, what: str, kinds: str | None = "iuf", ndim: int = 0) -> np.ndarray:
    """Array-likes as NumPy sees them, of one of the dtype kinds and at least `ndim` axes."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):
        raise InputError(f"expected {what} as an array; got {values!r}.") from None
    # JAX's own floats, such as bfloat16, have the kind of raw bytes
    kind = "f" if jnp.issubdtype(array.dtype, jnp.floating) else array.dtype.kind
    if (kinds is not None and kind not in kinds) or array.ndim < ndim:
        names = {"i": "integers", "u": "", "f": "real numbers", "b": "booleans"}
        listed = " or ".join(filter(None, (names[one] for one in kinds or "")))
        axes = f" with at least {ndim} axes" if ndim else ""
        raise InputError(
            f"expected {what} as an array of {listed}{axes}; got {array.dtype}{list(array.shape)}."
        )
    return array


def check_sequence(values: Any, what: str) -> None:
    array = hasattr(values, "shape") and len(values.shape) > 0
    if not array and not isinstance(values, (list, tuple, range)):
        raise InputError(f"expected {what} as a list; got {values!r}.")


def check_some(parts: Sequence[Any], what: str) -> None:
    if not parts:
        raise InputError(f"expected at least one {what}; got none.")


def check_callable(value: Any, what: str) -> None:
    if not callable(value):
        raise InputError(f"expected {what}; got {value!r}.")


def check_signature(value: Any, names: Sequence[str], what: str) -> Any:
    """The value, a function that can be called with so many arguments."""
    check_callable(value, what)
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # built-in functions may not tell
        return value
    try:
        signature.bind(*names)
    except TypeError:
        raise InputError(
            f"expected {what}, a function of ({', '.join(names)}); got one of {signature}."
        ) from None
    return value


def check_arrays(tree: Any, what: str) -> None:
    for name, leaf in named_leaves(tree):
        dtype = getattr(leaf, "dtype", jnp.bool_)
        known = (jnp.number, jnp.bool_, jax.dtypes.prng_key)
        if not any(jnp.issubdtype(dtype, kind) for kind in known):
            raise InputError(f"expected numbers in {what}; got dtype {dtype} at {name}.")
        if not hasattr(leaf, "shape"):
            raise InputError(
                f"expected arrays in {what}; got {type(leaf).__name__} at {name}. "
                "Remove leaves that are not arrays (equinox: eqx.filter(model, eqx.is_array)), and "
                "wrap numbers in jnp.asarray."
            )


def check_component(value: Any, fields: Sequence[str], what: str) -> None:
    if not all(callable(getattr(value, field, None)) for field in fields):
        came = getattr(value, "__qualname__", None) if callable(value) else None
        hint = f"the function {came}: call it" if came else f"{value!r}"
        raise InputError(f"expected {what}; got {hint}.")


def check_optimizer(value: Any, what: str) -> None:
    check_component(value, ("init", "update"), what)
    check_signature(value.init, ("params",), f"init of {what}")
    check_signature(value.update, ("updates", "state", "params"), f"update of {what}")


def check_optimized(result: Any, state: Any, params: Any) -> None:
    """What an optimizer's update returns: it would be broadcast, or fail in a loop."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise InputError(
            f"expected an optimizer's update to return (updates, state); got "
            f"{type(result).__name__}."
        )
    check_update(result[0], params, "an optimizer's update")
    if form(state) != form(result[1]):
        raise InputError(
            f"expected an optimizer's update to return a state like the one it got, {form(state)}; "
            f"got {form(result[1])}."
        )


def check_update(update: Any, params: Any, who: str) -> None:
    """Refuse an update of another structure or shape than the model, which would be broadcast."""
    came, model = jax.tree.structure(update), jax.tree.structure(params)
    if came != model:
        raise InputError(
            f"expected {who} to return an update with the structure of the model, {model}; "
            f"got {came}."
        )
    pairs = zip(named_leaves(update), jax.tree.leaves(params), strict=True)
    for (name, leaf), like in pairs:
        if jnp.shape(leaf) != jnp.shape(like):
            raise InputError(
                f"expected {who} to return an update shaped like the model; got {name}: "
                f"{jnp.shape(leaf)} against {jnp.shape(like)}."
            )
    check_real(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, update)), "updates")


def check_returned(tree: Any, who: str) -> None:
    """Refuse what a program can't return."""
    for name, leaf in named_leaves(tree):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
            raise InputError(
                f"expected {who} to return arrays and numbers; got {type(leaf).__name__} at {name}."
            )


def form(tree: Any) -> Any:
    """Structure, shapes and dtypes of a tree, to be compared and shown."""
    shapes = jax.eval_shape(lambda tree: tree, tree)
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", shapes)


def check_remembered(result: Any, memory: Any, who: str, what: str) -> None:
    """A component with a memory returns it, as it was shaped: the rounds are one loop."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise InputError(
            f"expected {who} to return (memory, {what}); got {type(result).__name__}. A component "
            "with `init` returns its memory too."
        )
    before, after = form(memory), form(result[0])
    if before != after:
        raise InputError(
            f"expected {who} to return a memory like the one it got, {before}; got {after}. Keep "
            "structure, shapes and dtypes from round to round."
        )
