"""jax on many hosts: after `start_jax`, jax.devices() are those of all of them."""

import jax

from tpustream.hosts.joining import HostsConfig, Joined
from tpustream.hosts.relay import Relay

# Only who is lost while jax itself starts or ends meets these; later the group notices first.
_HEARTBEAT_TIMEOUTS = 10
_MIN_HEARTBEAT_SECONDS = 100
_SHUTDOWN_SECONDS = 10


def start_jax(config: HostsConfig, joined: Joined) -> None:
    """Join jax's own distributed runtime. Before anything touches a device.

    Raises ValueError, on every host, where the hosts' devices differ or jax counts hosts otherwise.
    """
    group = joined.group
    port = joined.jax_port if group.leads else Relay((joined.address, joined.jax_port)).port
    address = joined.address if group.leads else "127.0.0.1"
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from the server
    jax.distributed.initialize(
        coordinator_address=_at(address, port),
        coordinator_bind_address=_at(joined.address, joined.jax_port),
        num_processes=config.hosts,
        process_id=config.index,
        cluster_detection_method="deactivate",
        initialization_timeout=int(config.join_timeout) + 1,
        heartbeat_timeout_seconds=max(_MIN_HEARTBEAT_SECONDS, int(_HEARTBEAT_TIMEOUTS * config.timeout)),
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
    local = jax.local_devices()
    group.agree(
        "devices",
        {
            "platform": local[0].platform,
            "device kind": local[0].device_kind,
            "devices of a host": str(len(local)),
            "hosts that jax counts": str(jax.process_count()),
        },
    )
    if jax.process_index() != config.index:
        raise ValueError(
            f"--host_index: wanted {jax.process_index()}, where jax sees this host, got {config.index}"
        )


def stop_jax() -> None:
    """Leave jax's distributed runtime, once every host does."""
    jax.distributed.shutdown()


def _at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
