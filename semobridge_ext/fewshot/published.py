"""Settings that the authors of the cache models chose by data set, as their programs' files have them.

A grid of theirs holds ``0.1 + i·(largest − 0.1)/steps`` for i = 0 .. steps − 1, so never the largest value;
γ goes ``i·largest/steps``. The data sets have the names of these files.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from semobridge_ext import _errors


class Grid(NamedTuple):
    """Values to try, β in the outer loop and γ in the inner one."""

    betas: tuple[float, ...]
    alphas: tuple[float, ...]
    gammas: tuple[float, ...] = ()


class Selection(NamedTuple):
    """Channels to keep of RN50's 1024, and the weights of their scores."""

    channels: int
    w0: float
    w1: float


WIDTH = 1024  # of RN50, for which all of this was chosen
# Largest β and α of Tip-Adapter's search.
TIP_ADAPTER: dict[str, tuple[float, float]] = {
    "imagenet": (7, 3), "caltech101": (12, 5), "dtd": (13, 13), "eurosat": (12, 10), "fgvc": (30, 30),
    "food101": (10, 10), "oxford_flowers": (50, 50), "oxford_pets": (7, 3), "stanford_cars": (20, 10),
    "sun397": (12, 10), "ucf101": (7, 3),
}  # fmt: skip
# Largest β, α and γ of APE's.
APE: dict[str, tuple[float, float, float]] = {
    "imagenet": (7, 7, 0.5), "caltech101": (7, 7, 1), "dtd": (7, 7, 1), "eurosat": (30, 5, 1.5),
    "fgvc": (20, 10, 1), "food101": (7, 7, 1), "oxford_flowers": (7, 7, 1), "oxford_pets": (7, 7, 1),
    "stanford_cars": (10, 7, 1), "sun397": (10, 7, 1), "ucf101": (10, 7, 1.5),
}  # fmt: skip
APE_CHANNELS: dict[str, Selection] = {
    "imagenet": Selection(500, 0.7, 0.3), "caltech101": Selection(800, 0.5, 0.5),
    "dtd": Selection(400, 0.5, 0.5), "eurosat": Selection(700, 0.9, 0.1), "fgvc": Selection(800, 0.1, 0.9),
    "food101": Selection(700, 0.3, 0.7), "oxford_flowers": Selection(700, 0.4, 0.6),
    "oxford_pets": Selection(800, 0.7, 0.3), "stanford_cars": Selection(500, 0.6, 0.4),
    "sun397": Selection(800, 0.7, 0.3), "ucf101": Selection(700, 0.3, 0.7),
}  # fmt: skip
APET_CHANNELS: dict[str, Selection] = {
    name: Selection(channels, 0.2, 0.8)
    for name, channels in {
        "imagenet": 500, "caltech101": 900, "dtd": 700, "eurosat": 900, "fgvc": 900, "food101": 900,
        "oxford_flowers": 800, "oxford_pets": 800, "stanford_cars": 800, "sun397": 800, "ucf101": 800,
    }.items()
}  # fmt: skip
BETA_STEPS, ALPHA_STEPS, GAMMA_STEPS = 200, 20, 20
IMAGENET_GAMMA_STEPS = 5


def of_dataset(function: str, argument: str, table: dict[str, Any], name: str) -> Any:
    """The entry of a data set, whatever its capitals, blanks and hyphens."""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    if plain not in table:
        contract, remedy = f"name one of {', '.join(table)}", "they published no settings for others"
        raise ValueError(_errors.message(function, argument, contract, name, remedy))
    return table[plain]


def _values(largest: float, steps: int, first: float = 0.1) -> tuple[float, ...]:
    return tuple(first + i * (largest - first) / steps for i in range(steps))


def grid_of(function: str, given: Any, table: dict[str, Any], with_gamma: bool) -> Grid:
    """The authors' grid for a data set's name, or for the largest β and α (and γ) of another one."""
    gamma_steps = GAMMA_STEPS
    if isinstance(given, str):
        largest = of_dataset(function, "grid", table, given)
        if largest == table["imagenet"]:
            gamma_steps = IMAGENET_GAMMA_STEPS
    else:
        largest = given
    try:
        scales = tuple(float(v) for v in largest)
    except (TypeError, ValueError):
        scales = ()
    count = 3 if with_gamma else 2
    if len(scales) != count or not all(0.1 < v < float("inf") for v in scales[:2]) or min(scales) < 0:
        names = "β, α and γ" if with_gamma else "β and α"
        contract = f"be a data set's name or the largest {names}, above 0.1"
        remedy = f"pass {tuple(table['caltech101'])} or 'caltech101'; None is the class's own grid"
        raise ValueError(_errors.message(function, "grid", contract, given, remedy))
    gammas = _values(scales[2], gamma_steps, 0.0) if with_gamma else ()
    return Grid(_values(scales[0], BETA_STEPS), _values(scales[1], ALPHA_STEPS), gammas)
