"""Every loader, with a small valid file and a use of what it holds."""

from tests.fuzz.targets import (
    classifiers,
    discovery,
    growing_sets,
    incremental,
    inputs,
    inversion,
    maps,
    prompts,
    shards,
)

TARGETS = [
    *maps.TARGETS,
    *classifiers.TARGETS,
    *growing_sets.TARGETS,
    *discovery.TARGETS,
    *prompts.TARGETS,
    *incremental.TARGETS,
    *inversion.TARGETS,
    *shards.TARGETS,
    *inputs.TARGETS,
]
