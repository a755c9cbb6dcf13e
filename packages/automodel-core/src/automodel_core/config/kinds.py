"""What may stand behind ``_target_``: each role has a kind, and a kind is a family of classes or a home of functions.

A configuration that can call anything importable is a program. So a target is called only when it *is* what its role
needs: an optimizer is a subclass of ``torch.optim.Optimizer``, a dataset comes from ``automodel_data.llm``, and
``torch.load`` or ``functools.partial`` are nothing at all. Names, not classes, are compared: this imports no library.
"""

from collections.abc import Sequence
from dataclasses import dataclass

OWN_PACKAGES = (
    "automodel_ckpt",
    "automodel_core",
    "automodel_data",
    "automodel_kernels",
    "automodel_parallel",
    "automodel_recipes",
)
KNOWN_LIBRARIES = frozenset(
    (*OWN_PACKAGES, "bitsandbytes", "liger_kernel", "peft", "torch", "torchao", "transformer_engine", "transformers")
)
"""Top-level packages that ``_target_`` may name without ``--allow-target``; the kind decides what inside them."""


@dataclass(frozen=True)
class Kind:
    """A family of targets."""

    name: str
    what: str
    """For messages: what the role needs."""
    bases: frozenset[str] = frozenset()
    """Classes, by defining module and name; they and their subclasses are of this kind."""
    methods: tuple[str, ...] = ()
    """Class methods of such classes that may be the target."""
    homes: tuple[str, ...] = ()
    """Modules of our packages whose public classes are of this kind."""
    suffix: str = ""
    """What the name of a home's class must end in."""
    functions: bool = False
    """Whether public functions of the homes are of this kind as well."""


_LOAD = ("from_pretrained", "from_config")
_CONFIG_BASES = frozenset(
    {
        "transformers.configuration_utils.PreTrainedConfig",
        "transformers.configuration_utils.PretrainedConfig",
        "transformers.models.auto.configuration_auto.AutoConfig",
        "transformers.utils.quantization_config.QuantizationConfigMixin",
        # By the file that holds them, and by the module that they say they are from.
        "torch.distributed.fsdp._fully_shard._fsdp_api.MixedPrecisionPolicy",
        "torch.distributed.fsdp._fully_shard._fsdp_api.OffloadPolicy",
        "torch.distributed.fsdp.MixedPrecisionPolicy",
        "torch.distributed.fsdp.OffloadPolicy",
        "torch.distributed.tensor.parallel.style.ParallelStyle",
        "torchao.core.config.AOBaseConfig",
    }
)

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "model",
            "a model class, or its from_pretrained or from_config",
            frozenset({"torch.nn.modules.module.Module", "transformers.models.auto.auto_factory._BaseAutoModelClass"}),
            _LOAD,
            ("automodel_core.models",),
        ),
        Kind(
            "peft",
            "a PEFT configuration",
            frozenset({"peft.config.PeftConfigMixin"}),
            (),
            ("automodel_core.peft",),
            "Config",
        ),
        Kind(
            "optimizer",
            "a subclass of torch.optim.Optimizer",
            frozenset({"torch.optim.optimizer.Optimizer"}),
        ),
        Kind(
            "lr_scheduler",
            "a learning-rate schedule",
            frozenset({"torch.optim.lr_scheduler.LRScheduler"}),
            (),
            ("automodel_core.optim",),
        ),
        Kind(
            "loss_fn",
            "a loss of (logits, shift_labels, num_label_tokens)",
            homes=("automodel_core.loss", "automodel_kernels.loss"),
            functions=True,
        ),
        Kind(
            "dataset",
            "a dataset",
            frozenset({"torch.utils.data.dataset.Dataset"}),
            (),
            (
                "automodel_data.llm",
                "automodel_data.mixed_stream",
                "automodel_data.mixing",
                "automodel_data.packing",
                "automodel_data.streaming",
                "automodel_data.vlm",
            ),
            functions=True,
        ),
        Kind("collate_fn", "a collate function", homes=("automodel_data.collate",), functions=True),
        Kind(
            "tokenizer",
            "a tokenizer's from_pretrained",
            frozenset(
                {
                    "transformers.tokenization_utils_base.PreTrainedTokenizerBase",
                    "transformers.models.auto.tokenization_auto.AutoTokenizer",
                }
            ),
            _LOAD,
        ),
        Kind(
            "processor",
            "a processor's from_pretrained",
            frozenset(
                {
                    "transformers.processing_utils.ProcessorMixin",
                    "transformers.models.auto.processing_auto.AutoProcessor",
                    "transformers.tokenization_utils_base.PreTrainedTokenizerBase",
                }
            ),
            _LOAD,
        ),
        Kind("distributed", "a parallelism manager", homes=("automodel_parallel",), suffix="Manager"),
        Kind(
            "transform",
            "a model transform",
            homes=(
                "automodel_core.models",
                "automodel_core.quantization",
                "automodel_core.training",
                "automodel_kernels.fp8",
                "automodel_kernels.patch",
                "automodel_kernels.te",
            ),
            functions=True,
        ),
        Kind("config", "a configuration class", _CONFIG_BASES, _LOAD, OWN_PACKAGES, "Config"),
    )
}

_ROLES = {
    "model": "model",
    "teacher_model": "model",
    "peft": "peft",
    "optimizer": "optimizer",
    "lr_scheduler": "lr_scheduler",
    "loss_fn": "loss_fn",
    "dataset": "dataset",
    "validation_dataset": "dataset",
    "collate_fn": "collate_fn",
    "tokenizer": "tokenizer",
    "processor": "processor",
    "distributed": "distributed",
    "transforms": "transform",
}


def kind_of_role(path: str) -> Kind | None:
    """The kind that a target at a dotted path must have; None where any kind will do (nested settings).

    ``validation_dataset_NAME`` is a dataset, and so is each of ``datasets``; items of ``transforms`` have the kind of
    the list.
    """
    parts = path.split(".")
    role = parts[-2] if parts[-1].isdecimal() and len(parts) > 1 else parts[-1]
    if role.startswith("validation_dataset_") or (len(parts) > 1 and parts[-2] == "datasets"):
        role = "validation_dataset"
    return KINDS[_ROLES[role]] if role in _ROLES else None


def matches(kind: Kind, *, bases: Sequence[str], module: str, is_class: bool, method: str | None) -> bool:
    """Whether a target is of a kind.

    Args:
        kind: what is asked for.
        bases: ``module.Class`` of the class and of all its bases, the class first; empty for a function.
        module: where the class or function is defined.
        is_class: whether it is a class.
        method: the class method that is called, if any.
    """
    if method is not None and method not in kind.methods:
        return False
    if any(base in kind.bases for base in bases):
        return True
    at_home = any(module == home or module.startswith(f"{home}.") for home in kind.homes)
    if not is_class:
        return at_home and kind.functions
    return at_home and bool(bases) and bases[0].endswith(kind.suffix)
