"""The steps of linear maps for other programs, ONNX graphs and FAISS transforms, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _checksum, _errors, _files
from semobridge_ext.linear_maps.steps import FORMAT, Step, layout_of, tensors_of

_OPSET = 18  # the first where ReduceL2 takes its axes as an input; onnxruntime reads it since 1.14


def _imported(function: str, module: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{function}: {module} must be installed, got none ({error}); pip install {package}"
        ) from error


# -- ONNX --------------------------------------------------------------------------------------------


def to_onnx(steps: Sequence[Step], path: Any, dtype: torch.dtype) -> None:
    function = "LinearMap.to_onnx"
    if dtype not in (torch.float32, torch.float64):
        remedy = "pass torch.float32"
        raise ValueError(_errors.message(function, "dtype", "be float32 or float64", str(dtype), remedy))
    onnx = _imported(function, "onnx", "onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    kind = onnx.TensorProto.FLOAT if dtype is torch.float32 else onnx.TensorProto.DOUBLE
    initial, sums, nodes, last = [], {}, [], "x"

    def constant(name: str, value: Tensor) -> str:
        initial.append(numpy_helper.from_array(value.numpy(), name))
        sums[name] = _checksum.of(value)
        return name

    for name, value in tensors_of(steps).items():
        constant(name, value.to(dtype))
    if any(step.normalize for step in steps):
        constant("last_axis", torch.tensor([-1], device="cpu"))
        constant("zero", torch.zeros(1, dtype=dtype, device="cpu"))
        constant("one", torch.ones(1, dtype=dtype, device="cpu"))
    for i, step in enumerate(steps):

        def node(kind: str, inputs: list[str], output: str, i: int = i, **attributes: Any) -> str:
            nodes.append(helper.make_node(kind, inputs, [f"{output}_{i}"], **attributes))
            return f"{output}_{i}"

        last = node("MatMul", [last, f"matrix_{i}"], "product")
        if step.offset is not None:
            last = node("Add", [last, f"offset_{i}"], "shifted")
        if step.normalize:
            norm = node("ReduceL2", [last, "last_axis"], "norm", keepdims=1)
            # A row of zeros is divided by one and stays zero.
            empty = node("Equal", [norm, "zero"], "empty")
            last = node("Div", [last, node("Where", [empty, "one", norm], "length")], "unit")
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    graph = helper.make_graph(
        nodes, "linear_map",
        [helper.make_tensor_value_info("x", kind, ["rows", steps[0].matrix.shape[0]])],
        [helper.make_tensor_value_info("y", kind, ["rows", steps[-1].matrix.shape[1]])],
        initial,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    model.producer_name = "semobridge-ext"
    props = {"format": FORMAT, "steps": layout_of(steps)}
    helper.set_model_props(model, props | {_checksum.KEY: _checksum.entry(props, sums)})
    onnx.checker.check_model(model)
    _files.write_bytes(path, model.SerializeToString())


def from_onnx(path: Any) -> tuple[str, dict[str, Tensor]]:
    """The layout and the tensors of a graph that `to_onnx` wrote."""
    function = "LinearMap.from_onnx"
    onnx = _imported(function, "onnx", "onnx")
    path = _files.place(path, function)
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{function}: path must be an existing file, got {path}; write it with .to_onnx()"
        )
    try:
        # Values in other files are none of to_onnx's, and may lie anywhere.
        model = onnx.load(str(path), load_external_data=False)
        tensors = {
            t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in model.graph.initializer
        }
        props = {p.key: p.value for p in model.metadata_props}
        if not all(isinstance(text, str) for text in (*props, *props.values(), *tensors)):
            raise ValueError("texts that are no UTF-8")  # protobuf gives them as bytes
    except Exception as error:  # protobuf's own error class is not public
        raise ValueError(
            f"{function}: {path} must be an ONNX file, got a damaged or foreign one ({error}); write it again"
        ) from error
    if props.get("format") != FORMAT:
        raise ValueError(
            f"{function}: {path} must be a graph that to_onnx wrote, got format {props.get('format')!r}; "
            "build a LinearMap from its matrix"
        )
    # Of the matrices and their layout, which are all that is read here, and not of the nodes.
    _checksum.check(function, path, props, tensors, tensors, "write it again with .to_onnx()")
    return props.get("steps", ""), tensors


# -- FAISS -------------------------------------------------------------------------------------------


def to_faiss(steps: Sequence[Step]) -> list[Any]:
    faiss = _imported("LinearMap.to_faiss", "faiss", "faiss-cpu")
    chain: list[Any] = []
    for step in steps:
        rows, cols = step.matrix.shape
        linear = faiss.LinearTransform(rows, cols, step.offset is not None)
        # FAISS keeps [M, K] and multiplies from the left.
        faiss.copy_array_to_vector(step.matrix.T.contiguous().float().numpy().ravel(), linear.A)
        if step.offset is not None:
            faiss.copy_array_to_vector(step.offset.float().numpy(), linear.b)
        linear.is_trained = True
        linear.set_is_orthonormal()
        chain.append(linear)
        if step.normalize:
            chain.append(faiss.NormalizationTransform(cols, 2.0))
    return chain


def from_faiss(transforms: Sequence[Any]) -> list[Step]:
    function = "LinearMap.from_faiss"
    faiss = _imported(function, "faiss", "faiss-cpu")
    steps: list[Step] = []
    listed = isinstance(transforms, Sequence) and not isinstance(transforms, (str, bytes))
    if not listed or not all(isinstance(item, faiss.VectorTransform) for item in transforms):
        contract, got = "be a list of FAISS transforms", _errors.describe(transforms)
        raise TypeError(
            _errors.message(function, "transforms", contract, got, "pass map.to_faiss() or its like")
        )
    for item in transforms:
        transform = faiss.downcast_VectorTransform(item)
        if isinstance(transform, faiss.LinearTransform):
            if not transform.is_trained:
                got, remedy = f"an untrained {type(transform).__name__}", "train it first"
                raise ValueError(_errors.message(function, "transforms", "be trained", got, remedy))
            flat = torch.from_numpy(faiss.vector_to_array(transform.A).copy())
            offset = torch.from_numpy(faiss.vector_to_array(transform.b).copy())
            matrix = flat.reshape(transform.d_out, transform.d_in).T
            steps.append(Step(matrix, offset if transform.have_bias else None, False))
        elif isinstance(transform, faiss.NormalizationTransform) and transform.norm == 2.0:
            if steps:
                steps[-1] = steps[-1]._replace(normalize=True)
            else:
                steps.append(Step(torch.eye(transform.d_in, device="cpu"), None, True))
        else:
            contract = "be linear transforms or L2 normalisations"
            remedy = "a map holds nothing else"
            got = type(transform).__name__
            raise TypeError(_errors.message(function, "transforms", contract, got, remedy))
    if not steps:
        raise ValueError(_errors.message(function, "transforms", "not be empty", "none", "pass some"))
    return steps
