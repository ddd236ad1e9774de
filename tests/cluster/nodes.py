"""python nodes.py FOLDER COMMAND…: a Ray cluster of three nodes of this machine, and the command on it.

At SIGUSR1 one of the two nodes that hold workers is killed, and what runs there with it. Every node has a cache of its
own below FOLDER. Exits as the command does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from ray.cluster_utils import Cluster


def main(folder: Path, command: list[str]) -> int:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = []
    for number in (1, 2):
        os.environ["XDG_CACHE_HOME"] = str(folder / f"cache-{number}")  # the node's processes get it from here
        nodes.append(cluster.add_node(num_cpus=1))
    cluster.wait_for_nodes()

    def kill(*_: object) -> None:
        print("killed", flush=True)
        cluster.remove_node(nodes[0], allow_graceful=False)

    signal.signal(signal.SIGUSR1, kill)
    del os.environ["XDG_CACHE_HOME"]
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    try:
        return subprocess.run([sys.executable, "-m", "blackbox_proxy", *command], env=environment).returncode
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
