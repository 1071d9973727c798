"""One process of a run coordinated only by JAX's own service: ADDRESS COUNT INDEX HEARTBEAT. It never exits by itself."""

import sys
import time

import jax

if __name__ == "__main__":
    address, count, index, heartbeat = sys.argv[1], *map(int, sys.argv[2:])
    jax.distributed.initialize(
        address, count, index, heartbeat_timeout_seconds=heartbeat, cluster_detection_method="deactivate"
    )
    print("joined", flush=True)
    time.sleep(600)
