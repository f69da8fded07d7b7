"""Methods that read the class off cosines, with nothing tuned: those of ``semobridge-ext demo``.

    text                norm(f)·tᵀ                      direct              norm(f)·F̄ᵀ
    bridged_prototypes  norm(f)·F̂ᵀ                      bridged_queries     norm(bridged(f))·F̄ᵀ
    blend               exp(z_text−1) + exp(z_bridged_prototypes−1) + exp(z_bridged_queries−1)
    blend_unbridged     exp(z_text−1) + 2·exp(z_direct−1), the control: the same without the bridge

F̄, F̂ and the blend are those of docs/methods.md §1 with equal weights; the validation part stays unused.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext._ops.blend_logits.eager import blend_logits, prototypes
from semobridge_ext._ops.blend_logits.spec import BlendParams, Similarities
from semobridge_ext.bridging import Bridge
from semobridge_ext.fewshot.study import Outcome, Problem

METHODS = (
    "text",
    "direct",
    "bridged_prototypes",
    "bridged_queries",
    "blend",
    "blend_unbridged",
)


class CosineMethods:
    """``METHODS`` for one problem; what does not depend on the shots is computed once.

    Args:
        problem: with text features, which are unit rows here.
        bridge: applied to shots and queries.

    Raises:
        ValueError: a class of the text without a training row.
    """

    @torch.inference_mode()
    def __init__(self, problem: Problem, bridge: Bridge) -> None:
        assert problem.text is not None
        classes = len(problem.text)
        counts = torch.bincount(problem.train[1], minlength=classes)
        if len(counts) > classes or bool((counts == 0).any()):
            raise ValueError(
                f"CosineMethods: training labels must cover classes 0..{classes - 1}, got "
                f"{int((counts > 0).sum())} classes with rows; drop the classes without any"
            )
        (self._shots, self._labels), (queries, self._targets) = problem.train, problem.test
        self._classes = classes
        self._bridged_shots = bridge(self._shots, normalize=False)
        self._queries, self._bridged_queries = normalize(queries, dim=-1), bridge(queries)
        self._text = self._queries @ problem.text.T

    @torch.inference_mode()
    def __call__(self, rows: Tensor, seed: int) -> dict[str, Outcome]:
        """Outcomes of one draw of training rows [M]; nothing here depends on the seed."""
        labels = self._labels[rows]
        raw = prototypes(self._shots[rows], labels, self._classes)
        bridged = prototypes(self._bridged_shots[rows], labels, self._classes)
        direct, z2, z3 = self._queries @ raw.T, self._queries @ bridged.T, self._bridged_queries @ raw.T
        logits = {
            "text": self._text,
            "direct": direct,
            "bridged_prototypes": z2,
            "bridged_queries": z3,
            "blend": self._blend(z2, z3),
            "blend_unbridged": self._blend(direct, direct),
        }
        return {name: Outcome(values.argmax(dim=1) == self._targets) for name, values in logits.items()}

    def _blend(self, z2: Tensor, z3: Tensor) -> Tensor:  # [N, C] each
        return blend_logits(Similarities(self._text, z2, z3), BlendParams())
