"""Two CPU devices, strict types: what is loose in a test is a bug.

Most of the suite's time is compilation, so programs are compiled fast and not well, those of
processes that tests start too. `make optimized` compiles them as users' programs are.
"""

import os
from collections.abc import Iterator

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

import jax
import jaxtyping
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

with jaxtyping.install_import_hook("mixjax", "beartype.beartype"):
    import mixjax as mx
    from mixjax import datasets as _datasets  # noqa: F401
    from mixjax import models as _models  # noqa: F401


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict) -> None:
    doctest_namespace.update(jax=jax, jnp=jax.numpy, mx=mx)


@pytest.fixture
def narrow() -> Iterator[None]:
    """JAX's default of 32 bits, for what only it refuses."""
    with jax.enable_x64(False):
        yield


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let bad input through to mixjax's own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
