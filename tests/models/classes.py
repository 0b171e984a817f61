"""The model classes of a configuration."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from typing import Any


def model_classes(config_class: Any) -> list[Any]:
    """The model without a head first, then those with one, then what else its file defines."""
    import transformers
    from transformers.models.auto import modeling_auto

    mappings = ["MODEL_MAPPING", "MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"]
    mappings += [name for name in dir(modeling_auto) if name.startswith("MODEL_FOR_") and name.endswith("_MAPPING")]
    classes: list[Any] = []
    for name in mappings:
        found = None
        with contextlib.suppress(ValueError):  # a mapping may name classes that there are not
            found = getattr(modeling_auto, name).get(config_class, None)
        classes += [] if found is None else list(found) if isinstance(found, tuple) else [found]
    module = config_class.__module__.replace("configuration_", "modeling_")
    with contextlib.suppress(ImportError):
        __import__(module)
        classes += [c for c in vars(sys.modules[module]).values()
                    if isinstance(c, type) and issubclass(c, transformers.PreTrainedModel)
                    and c.config_class is config_class and "forward" in vars(c)]  # fmt: skip
        classes = classes or _parts(config_class, sys.modules[module])
    if not classes and config_class.model_type in _BORROWED:
        home, name = _BORROWED[config_class.model_type]
        classes = [getattr(importlib.import_module(f"transformers.models.{home}"), name)]
    if not classes:
        raise LookupError(_whole(config_class))
    return list(dict.fromkeys(classes))[:4]


_BORROWED = {
    "pp_chart2table_vision": ("got_ocr2.modeling_got_ocr2", "GotOcr2VisionEncoder"),
    "idefics_vision": ("idefics.vision", "IdeficsVisionTransformer"),
}
"""Models in other files that take these configurations."""


def _parts(config_class: Any, module: Any) -> list[Any]:
    """What a file calls like the configuration and is no model of its own, as the decoder of masks in SAM."""
    part = getattr(module, config_class.__name__.removesuffix("Config"), None)
    if part is None or "forward" not in vars(part):
        return []
    first = list(inspect.signature(part.__init__).parameters.values())[1]
    return [part] if first.annotation in (config_class, inspect.Parameter.empty) else []


def _whole(config_class: Any) -> str:
    """What a configuration without a model of its own is a part of: there its attention is compiled."""
    from transformers import CONFIG_MAPPING

    for model_type in CONFIG_MAPPING:
        with contextlib.suppress(Exception):
            if config_class in CONFIG_MAPPING[model_type].sub_configs.values():
                return f"a part of another model: {model_type}"
    return "no model class"
