"""Where a command computes: in this process, or on a Ray cluster."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from semobridge_ext.cli.arguments import count

if TYPE_CHECKING:
    from semobridge_ext.ray.cluster import Cluster


def add_engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many machines")
    text = "ray: on the actors of a Ray cluster; the same files (default: local)"
    group.add_argument("--engine", choices=("local", "ray"), default="local", help=text)
    text = "ray: auto, or HOST:PORT (default: RAY_ADDRESS, else this machine)"
    group.add_argument("--address", metavar="ADDR", help=text)
    group.add_argument("--actors", type=count, metavar="N", help="ray: how many (default: one a CPU or GPU)")


def cluster_of(function: str, args: argparse.Namespace, device: str = "cpu") -> Cluster | None:
    """What is asked of a cluster; None where this process computes."""
    if args.engine == "local":
        for name in ("address", "actors"):
            if (value := getattr(args, name)) is not None:
                raise ValueError(
                    f"{function}: --{name} must stand beside --engine ray, got {value} alone; add it"
                )
        return None
    from semobridge_ext.ray.cluster import Cluster, library

    library(function)  # before anything is read
    return Cluster(args.address, args.actors, int(device.startswith("cuda")))


def device_of(args: argparse.Namespace) -> str:
    """Of the model in this process: on a cluster the actors have the GPU."""
    return args.device if args.engine == "local" else "cpu"
