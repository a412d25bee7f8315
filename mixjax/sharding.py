"""A mesh whose one axis is the clients'."""

import jax

from mixjax.types import CLIENTS


def clients_mesh(devices: int | None = None) -> jax.sharding.Mesh:
    """A mesh of the first `devices` devices, or all, with the one axis "clients".

    On CPU a process has one device unless told otherwise before JAX starts:
    `jax.config.update("jax_num_cpu_devices", n)`.
    """
    chosen = jax.devices()[:devices]
    return jax.make_mesh(
        (len(chosen),), (CLIENTS,), axis_types=(jax.sharding.AxisType.Auto,), devices=chosen
    )
