"""What a reader must know of features before it uses them: which extractor made them, of which model and settings."""

from importlib.metadata import version
from typing import Any

import cv2

from pipeline.extractors import Extractor
from pipeline.extractors.plans import Plan
from pipeline.recipe import Extractor as Section
from pipeline.recipe import Grid, Patch, Region

_PACKAGES = {
    "timm": ("torch", "timm"),
    "torchvision": ("torch", "torchvision"),
    "open_clip": ("torch", "open_clip_torch", "torchvision", "pillow"),
}


def identity_of(plan: Plan, extractor: Extractor) -> dict[str, Any]:
    """For the table's manifest and for each of its files: all but `libraries` is what a reader compares."""
    return {
        "kind": plan.section.kind,
        "weights": plan.weights.name,
        "weights_sha256": plan.weights.sha256,
        "settings": plan.settings(),
        "dtype": extractor.columns["features"].dtype,
        "columns": {name: column.described for name, column in extractor.columns.items()},
        "libraries": _libraries(plan.section),
        **extractor.identity,
    }


def _libraries(section: Section) -> dict[str, str]:
    packages = {"numpy"}
    if isinstance(section, Region):
        packages |= {"torch", "torchvision", "ultralytics", *(_PACKAGES[section.cnn.library] if section.cnn else ())}
    elif isinstance(section, Grid | Patch):
        packages |= {*_PACKAGES[section.library]}
    # By its module: the package has several names, with and without windows.
    return {"opencv": cv2.__version__, **{package: version(package) for package in sorted(packages)}}
