"""Transformer blocks that several families share, as the specification's Block.

A module that computes anything but a pre-norm block is refused by name, never approximated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semobridge_ext._engines.tower_descent.spec import Block, Linear, Norm


def refuse(function: str, what: str, remedy: str) -> NotImplementedError:
    return NotImplementedError(f"{function}: model must have a supported tower, got {what}; {remedy}")


def plain_layer(module: Any) -> Any:
    """The layer whose weights are all that it computes: that of peft, once its adapters are merged or off.

    An adapter that is neither stays as it is, and is refused as what it is.
    """
    if has_adapters(module) and (module.merged or module.disable_adapters):
        return module.base_layer
    return module


def has_adapters(module: Any) -> bool:
    """Whether peft has put its adapters (LoRA and its like) around a layer."""
    return isinstance(module, nn.Module) and hasattr(module, "base_layer") and hasattr(module, "merged")


UNMERGED = "adapters of peft that are not merged; call merge_and_unload() first"


class Reader:
    """Reads modules in one dtype, refusing in the name of one public function."""

    def __init__(
        self, function: str, dtype: torch.dtype, remedy: str, *, takes_appended: bool = False
    ) -> None:
        self.function, self.dtype, self.remedy = function, dtype, remedy
        self.takes_appended = takes_appended  # whether who asks knows of a row behind the tokens

    def refuse(self, what: str) -> NotImplementedError:
        return refuse(self.function, what, self.remedy)

    def tensor(self, value: Tensor) -> Tensor:
        return value.detach().to(self.dtype)

    def norm(self, module: Any, where: str) -> Norm | None:
        """A layer norm, or None for an Identity."""
        if isinstance(module, nn.Identity):
            return None
        if not isinstance(module, nn.LayerNorm) or module.weight is None or module.bias is None:
            raise self.refuse(f"{where} = {type(module).__name__} where a LayerNorm is needed")
        self._computes(
            module, where, module.weight.shape[0],
            lambda m, x: F.layer_norm(x, m.weight.shape, m.weight, m.bias, m.eps),
        )  # fmt: skip
        return Norm(self.tensor(module.weight), self.tensor(module.bias), module.eps)

    def needed_norm(self, module: Any, where: str) -> Norm:
        norm = self.norm(module, where)
        if norm is None:
            raise self.refuse(f"{where} = Identity where a LayerNorm is needed")
        return norm

    def linear(self, module: Any, where: str, scale: Any = None) -> Linear:
        """A Linear layer, with a LayerScale behind it folded in."""
        module = self.plain(module, where)
        if not isinstance(module, nn.Linear):
            raise self.refuse(f"{where} = {type(module).__name__} where a Linear layer is needed")
        self._computes(module, where, module.in_features, lambda m, x: F.linear(x, m.weight, m.bias))
        weight = self.tensor(module.weight).T
        bias = None if module.bias is None else self.tensor(module.bias)
        if scale is None or isinstance(scale, nn.Identity):
            return Linear(weight, bias)
        if not hasattr(scale, "gamma"):
            raise self.refuse(f"{type(scale).__name__} behind {where}")
        gamma = self.tensor(scale.gamma)
        return Linear(weight * gamma, None if bias is None else bias * gamma)

    def plain(self, module: Any, where: str) -> Any:
        """What `plain_layer` gives; adapters that its weights do not hold are refused."""
        if has_adapters(module := plain_layer(module)):
            raise self.refuse(f"{where} = {type(module).__name__} with {UNMERGED}")
        return module

    def _computes(
        self, module: nn.Module, where: str, width: int, formula: Callable[[Any, Tensor], Tensor]
    ) -> None:
        """Refuses a layer that adds to its weights: an adapter, a hook, a parametrization."""
        weight: Any = module.weight
        ramp = torch.linspace(-2, 2, 3 * width, dtype=torch.float32, device=weight.device)
        x = torch.sin(7 * ramp).view(3, width).to(weight.dtype)

        def both(m: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
                return m(rows).double(), formula(m, rows).double()

        try:
            try:
                found, want = both(module, x)
            except RuntimeError:  # clip's LayerNorm casts rows to float32, whatever its weights are
                found, want = both(copy.deepcopy(module).float(), x.float())
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            what = f"{where} = {type(module).__name__}, which takes no plain rows ({error})"
            raise self.refuse(what) from error
        # The rounding of half sums; what a layer adds on purpose is of the size of its output.
        slack = 4 * torch.finfo(weight.dtype).eps * (float(want.abs().max()) + 1)
        if found.shape != want.shape or float((found - want).abs().max()) > slack:
            what = "hooks" if module._forward_hooks or module._forward_pre_hooks else "another forward pass"
            raise self.refuse(f"{where} = {type(module).__name__} with {what}: not what its weights compute")

    def no_hooks(self, tower: Any, where: str, *, any_module: bool = False) -> None:
        """Refuses modules that a hook may change. Linear and LayerNorm answer for themselves, unless
        ``any_module``: then also a hook that only looks on is to see the model's own pass."""
        for name, module in tower.named_modules():
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            # What transformers leaves behind where hidden states were asked for only looks on.
            acting = [h for h in hooks if not str(getattr(h, "__module__", "")).startswith("transformers.")]
            if acting and (any_module or not isinstance(module, (nn.Linear, nn.LayerNorm))):
                path = f"{where}.{name}" if name else where
                raise self.refuse(f"hooks on {path}, which the packed tower would pass by; remove them")

    def identity(self, module: Any, where: str) -> None:
        if module is not None and not isinstance(module, nn.Identity):
            raise self.refuse(f"{where} = {type(module).__name__}")

    def activation(self, module: Any) -> str:
        """The activation's name in the specification, told by what it computes."""
        x = torch.linspace(-4, 4, 33, dtype=torch.float64, device="cpu")
        candidates = {
            "gelu": F.gelu(x),
            "gelu_tanh": F.gelu(x, approximate="tanh"),
            "quick_gelu": x * torch.sigmoid(1.702 * x),
        }
        with torch.no_grad():
            y = module(x)
        for name, expected in candidates.items():
            if torch.allclose(y, expected, rtol=0, atol=1e-9):
                return name
        raise self.refuse(f"activation {type(module).__name__}")

    def same(self, values: Iterable[Any], what: str) -> Any:
        found = sorted(set(values))
        if len(found) != 1:
            raise self.refuse(f"blocks with different {what}: {found}")
        return found[0]


class Blocks(NamedTuple):
    """The blocks of a tower, and what they have in common."""

    blocks: tuple[Block, ...]
    heads: int
    activation: str


def alike(reader: Reader, found: list[Block], heads: list[int], activations: list[str]) -> Blocks:
    """The blocks if they agree on heads and activation, as the specification's Tower needs."""
    return Blocks(tuple(found), reader.same(heads, "heads"), reader.same(activations, "activations"))


def resblocks(reader: Reader, blocks: Any) -> Blocks:
    """Blocks of open_clip and OpenAI's clip."""
    found, heads, activations = [], [], []
    for b in blocks:
        attention = reader.plain(getattr(b, "attn", None), "attn")
        if type(attention) is not nn.MultiheadAttention or hasattr(b, "ln_1_kv"):
            raise reader.refuse(f"{type(b).__name__} with {type(attention).__name__}")
        if attention.in_proj_weight is None or attention.bias_k is not None:
            raise reader.refuse("MultiheadAttention with separate or added keys")
        bias = attention.in_proj_bias
        found.append(
            Block(
                norm1=reader.needed_norm(b.ln_1, "ln_1"),
                qkv=Linear(
                    reader.tensor(attention.in_proj_weight).T, None if bias is None else reader.tensor(bias)
                ),
                out=reader.linear(attention.out_proj, "attn.out_proj", getattr(b, "ls_1", None)),
                norm2=reader.needed_norm(b.ln_2, "ln_2"),
                fc=reader.linear(b.mlp.c_fc, "mlp.c_fc"),
                proj=reader.linear(b.mlp.c_proj, "mlp.c_proj", getattr(b, "ls_2", None)),
            )
        )
        heads.append(attention.num_heads)
        activations.append(reader.activation(b.mlp.gelu))
    return alike(reader, found, heads, activations)


def _stack(parts: list[Linear]) -> Linear:
    biases = [p.bias for p in parts]
    if any(b is None for b in biases):
        biases = [torch.zeros_like(p.weight[0]) if p.bias is None else p.bias for p in parts]
    return Linear(torch.cat([p.weight for p in parts], 1), torch.cat(biases))  # type: ignore[arg-type]


def hf_blocks(reader: Reader, layers: Any) -> Blocks:
    """Blocks of Hugging Face's CLIP and SigLIP encoders."""
    found, heads, activations = [], [], []
    for b in layers:
        attention = b.self_attn
        names = ("q_proj", "k_proj", "v_proj")
        found.append(
            Block(
                norm1=reader.needed_norm(b.layer_norm1, "layer_norm1"),
                qkv=_stack([reader.linear(getattr(attention, n), n) for n in names]),
                out=reader.linear(attention.out_proj, "out_proj"),
                norm2=reader.needed_norm(b.layer_norm2, "layer_norm2"),
                fc=reader.linear(b.mlp.fc1, "mlp.fc1"),
                proj=reader.linear(b.mlp.fc2, "mlp.fc2"),
            )
        )
        heads.append(attention.num_heads)
        activations.append(reader.activation(b.mlp.activation_fn))
    return alike(reader, found, heads, activations)


def pooling_block(
    query: Tensor,  # [T]
    keys_values: Linear,  # [T, 2T]
    *,
    norm1: Norm,
    out: Linear,
    norm2: Norm,
    fc: Linear,
    proj: Linear,
) -> Block:
    """Attention pooling with an MLP (SigLIP's MAP head): one constant query looks at all rows."""
    width = len(query)
    weight, bias = keys_values
    zeros = torch.zeros_like(weight[:, :width])
    qkv = Linear(
        torch.cat([zeros, weight], 1), None if bias is None else torch.cat([torch.zeros_like(query), bias])
    )
    return Block(norm1=norm1, qkv=qkv, out=out, norm2=norm2, fc=fc, proj=proj, query=query)
