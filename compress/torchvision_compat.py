"""The one place that imports torchvision: ``from compress.torchvision_compat import torchvision``.

torchvision's compiled operators are built for one torch build. Beside another one (the CPU build of torch with PyPI's
torchvision is a common pair) the library does not load, and ``import torchvision`` then fails with "operator
torchvision::nms does not exist", because it registers shape functions for operators that the library should have
defined. Models, data sets and transforms need none of them. So the schemas of these operators are declared here, before
the import, where the library could not do it; calling one (only detection models do) raises torchvision's own
"Couldn't load custom C++ ops".

The import takes about a second: import this module inside the functions that need it.
"""

import importlib.util
import warnings
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder

import torch

# The operators that `import torchvision` registers shape functions for without asking whether the library has loaded.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _load_compiled_operators() -> None:
    """Load torchvision's operator library if it fits this torch, so that its own schemas come first."""
    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return
    finder = FileFinder(package.submodule_search_locations[0], (ExtensionFileLoader, EXTENSION_SUFFIXES))
    library = finder.find_spec("_C")
    if library is None or library.origin is None:
        return
    try:
        torch.ops.load_library(library.origin)  # type: ignore[no-untyped-call]
    except OSError:
        return  # built for another torch: the schemas below stand in


def _declare_missing_schemas() -> torch.library.Library | None:
    missing = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if not missing:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in missing:
        library.define(schema)  # type: ignore[no-untyped-call]
    return library


_load_compiled_operators()
# Kept for the life of the process: a Library takes its schemas back when it is collected.
_library = _declare_missing_schemas()

with warnings.catch_warnings():
    # Older releases of torchvision warn when image.so does not load; images are decoded with Pillow here.
    warnings.filterwarnings("ignore", message="Failed to load image Python extension", category=UserWarning)
    import torchvision

__all__ = ["torchvision"]
