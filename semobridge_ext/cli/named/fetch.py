"""Fetching a data set by torchvision's own code, only when it is asked for, and saying what went wrong."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

from semobridge_ext.cli.named.catalogue import ENTRIES, UNFETCHED
from semobridge_ext.cli.named.formats import FORMATS


def lacking(name: str, root: Path) -> list[str]:
    """The files and folders of a data set that are not below the root."""
    base = ENTRIES[name].base
    needs = [str(Path(base) / path) for path in FORMATS[name].needs]
    return [path for path in needs if not (root / path).exists()]


def fetch(function: str, name: str, root: Path) -> None:
    """Downloads and unpacks a data set; the archives are compared with the digests that torchvision has."""
    if name in UNFETCHED:
        raise NotImplementedError(
            f"{function}: --download must meet a data set that can be fetched, got {name}: "
            f"{UNFETCHED[name]}; lay its files below {root / ENTRIES[name].base} as torchvision describes"
        )
    from torchvision import datasets

    try:
        root.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # torchvision unpacks tars as Python's default is; from 3.14 on that is the filter.
            warnings.filterwarnings("ignore", "Python 3.14 will, by default, filter", DeprecationWarning)
            getattr(datasets, name)(str(root), download=True)
    except Exception as error:  # urllib, tarfile, zipfile, gdown and torchvision raise their own kinds
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise RuntimeError(
            f"{function}: --download must fetch {name} whole into {root}, got {type(error).__name__}: "
            f"{told}; try again, or lay the unpacked archive there yourself"
        ) from error


def need_scipy(function: str, name: str) -> None:
    if any(path.endswith(".mat") for path in FORMATS[name].needs) and find_spec("scipy") is None:
        raise ImportError(
            f"{function}: scipy must be installed to read the MATLAB files of {name}, got none; "
            "pip install 'semobridge-ext[datasets]'"
        )


def ensure(function: str, name: str, root: Path, download: bool) -> None:
    """Has the data set below the root, or says what is missing."""
    need_scipy(function, name)
    if lacking(name, root) and download:
        fetch(function, name, root)
    if missing := lacking(name, root):
        remedy = f"lay its files there ({UNFETCHED[name]})" if name in UNFETCHED else "pass --download"
        raise FileNotFoundError(
            f"{function}: --root must hold {name}, got {root} without {missing[0]} "
            f"({len(missing)} of {len(FORMATS[name].needs)} are missing); {remedy}, or check the folder"
        )
