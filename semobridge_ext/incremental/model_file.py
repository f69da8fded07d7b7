"""The file of a RETune: adaptors and prompts, nothing of the images they were trained on."""

from __future__ import annotations

from typing import Any

from semobridge_ext._schema import Field, need, number, restoring
from semobridge_ext.fewshot.estimator_file import load_estimator, save_estimator
from semobridge_ext.incremental import adaptors
from semobridge_ext.incremental.adaptors import Form
from semobridge_ext.incremental.model import Model
from semobridge_ext.incremental.settings import check_settings, form_of

FORMAT = "semobridge-ext RETune 1"
SCHEMA = {
    "prompts": Field(("C", 2, "D")),
    **{f"{tower}_linear": Field(("D", "D"), optional=True) for tower in adaptors.TOWERS},
    **{f"{tower}_down": Field(("D", "H"), optional=True) for tower in adaptors.TOWERS},
    **{f"{tower}_up": Field(("H", "D"), optional=True) for tower in adaptors.TOWERS},
}


def save_model(path: Any, model: Model, params: dict[str, Any]) -> None:
    fields = {"names": model.names, "tasks": model.tasks, "form": model.form._asdict(), "params": params}
    save_estimator(path, FORMAT, {**model.parameters, "prompts": model.prompts}, fields)


def load_model(where: str, path: Any, parameters: list[str]) -> tuple[Model, dict[str, Any]]:
    """The model, and the constructor's arguments, of which the names are given."""
    tensors, values, sizes = load_estimator(where, path, FORMAT, SCHEMA, ("names", "tasks", "form", "params"))
    with restoring(where, path):
        for name, known in (("form", list(Form._fields)), ("params", parameters)):
            right = isinstance(values[name], dict) and set(values[name]) == set(known)
            need(where, path, right, f"{name} by name", values[name])
        params = values["params"]
        check_settings(where, params)
        check_settings(where, {**params, **values["form"]})
        form = form_of(values["form"])
        parts = adaptors.names(form.adaptor)
        need(where, path, set(tensors) == {"prompts", *parts}, f"a {form.adaptor} adaptor", sorted(tensors))
        right = form.adaptor == "linear" or form.width == sizes["H"]
        need(where, path, right, f"the width {form.width}", sizes.get("H"))
        tasks = int(number(where, path, "tasks", values["tasks"], 0))
        kept = {name: tensors[name] for name in parts}
        return Model(form, kept, values["names"], tensors["prompts"], tasks), params
