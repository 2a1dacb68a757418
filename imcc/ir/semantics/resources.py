"""Resources at run time: the tensors that a module refers to by name, and their file.

Quantised codes are stored as the smallest integer dtype that holds them; at run time ops see them
as integer-valued floating-point tensors, so that one rule serves evaluation and training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticCollector, error, nearest
from imcc.ir.module import Module, Resource
from imcc.ir.semantics.derivations import Derivation
from imcc.ir.types import Element, QuantType, TensorType

TORCH_DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i1": torch.bool,
}
ELEMENT_OF: dict[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def storage_dtype(element: Element) -> torch.dtype:
    """The dtype that stores elements: for codes the smallest integer that holds them."""
    if not isinstance(element, QuantType):
        return TORCH_DTYPES[element]
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32):
        limits = torch.iinfo(dtype)
        if limits.min <= element.minimum and element.maximum <= limits.max:
            return dtype
    return torch.int64


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and little-endian bytes."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{ELEMENT_OF[plain.dtype]}{list(plain.shape)}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class ResourceStore:
    """Tensors by resource name, and how some of them follow from others."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor] | None = None,
        derivations: Sequence[Derivation] = (),
    ) -> None:
        self._tensors: dict[str, Tensor] = dict(tensors or {})
        self._derivations: list[Derivation] = list(derivations)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        """Names of all tensors held."""
        return list(self._tensors)

    def get(self, name: str) -> Tensor:
        """The tensor as stored; raises a diagnostic if its data is absent."""
        found = self._tensors.get(name)
        if found is None:
            raise error(
                codes.ABSENT_WEIGHTS,
                f"resource @{name} has no data",
                suggestions=nearest(name, self._tensors),
                help="give the weights file, or only cost the module instead of running it",
            )
        return found

    def put(self, name: str, tensor: Tensor, element: Element | None = None) -> Resource:
        """Store a tensor; returns the declaration to add to the module.

        ``element`` defaults to the tensor's dtype. A name that holds other data already gets a
        numbered name instead, so that stored data never changes under a module; read the name from
        the returned resource.
        """
        made = element if element is not None else ELEMENT_OF[tensor.dtype]
        stored = tensor.detach().to("cpu", storage_dtype(made)).contiguous()
        digest = tensor_sha256(stored)
        kind = TensorType(tuple(stored.shape), made)
        unique, number = name, 0
        while unique in self._tensors and tensor_sha256(self._tensors[unique]) != digest:
            number += 1
            unique = f"{name}.{number}"
        self._tensors[unique] = stored
        return Resource(unique, kind, digest)

    def bind(self, values: Mapping[str, Tensor]) -> ResourceStore:
        """A store that looks names up in ``values`` first; for training and what-if runs."""
        return ResourceStore({**self._tensors, **values}, self._derivations)

    def on(self, device: torch.device) -> ResourceStore:
        """This store for work on ``device``; itself for the CPU.

        What :meth:`get` moved there stays there as long as the view lives; :meth:`put` stores in
        this store.
        """
        return self if device.type == "cpu" else _OnDevice(self._tensors, device)

    def copy(self) -> ResourceStore:
        """A store with the same tensors."""
        return ResourceStore(self._tensors, self._derivations)

    @property
    def derivations(self) -> tuple[Derivation, ...]:
        """How tensors follow from others, in the order in which passes made them."""
        return tuple(self._derivations)

    def derive(
        self,
        sources: Sequence[str],
        made: Sequence[str],
        compute: Callable[..., tuple[Tensor, ...]],
    ) -> None:
        """Keep how the tensors ``made`` follow from ``sources``; see :class:`Derivation`."""
        self._derivations.append(Derivation(tuple(sources), tuple(made), compute))

    def mismatches(self, declared: Iterable[Resource]) -> list[str]:
        """What is wrong with tensors held for these declarations: bytes against hash."""
        return [
            f"bytes of resource @{item.name} do not match its hash"
            for item in declared
            if item.sha256 is not None
            and item.name in self._tensors
            and tensor_sha256(self._tensors[item.name]) != item.sha256
        ]

    def save(self, path: Path, names: Iterable[str]) -> None:
        """Write the named tensors as safetensors."""
        from safetensors.torch import save_file

        save_file({name: self.get(name).cpu().clone() for name in sorted(names)}, str(path))

    @classmethod
    def load(cls, path: Path, module: Module, *, check_hashes: bool = True) -> ResourceStore:
        """Read the module's resources from safetensors and check shape, dtype and hash.

        Raises :class:`DiagnosticError` for a missing, corrupted or mismatching file. Resources
        declared without a hash may be absent from the file.
        """
        from safetensors import SafetensorError, safe_open

        found = DiagnosticCollector()
        tensors: dict[str, Tensor] = {}
        try:
            with safe_open(str(path), framework="pt") as file:
                held = set(file.keys())
                for resource in module.resources.values():
                    if resource.name not in held:
                        if resource.sha256 is not None:
                            found.add(_broken(f"{path} lacks the tensor {resource.name!r}"))
                        continue
                    tensor = file.get_tensor(resource.name)
                    wanted = storage_dtype(resource.type.element)
                    if tuple(tensor.shape) != resource.type.shape or tensor.dtype != wanted:
                        shown = f"{tensor.dtype} {list(tensor.shape)}"
                        found.add(_broken(f"{resource.name} is {shown}, not {resource.type}"))
                    elif (
                        check_hashes
                        and resource.sha256 is not None
                        and tensor_sha256(tensor) != resource.sha256
                    ):
                        found.add(_broken(f"bytes of {resource.name} do not match their hash"))
                    tensors[resource.name] = tensor
        except (OSError, SafetensorError, ValueError) as wrong:
            raise error(
                codes.ARTIFACT,
                f"{path} cannot be read as safetensors: {wrong}",
                help="compile the model again",
            ) from None
        found.raise_errors()
        return cls(tensors)


class _OnDevice(ResourceStore):
    def __init__(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        super().__init__()
        self._tensors, self._device = tensors, device
        self._moved: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor:
        if name not in self._moved:
            self._moved[name] = super().get(name).to(self._device)
        return self._moved[name]


def _broken(message: str) -> Diagnostic:
    return Diagnostic(codes.ARTIFACT, message, help="compile the model again")
