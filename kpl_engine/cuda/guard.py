"""What both adapters share: errors with names, a lost context remembered, launches checked before they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.cuda.base import DeviceInfo, Features, Launch
from kpl_engine.cuda.failures import failure
from kpl_engine.errors import CudaError, CudaLaunchError, CudaStickyError, KplError, ShapeError

__all__ = ["Guard", "check_array", "check_launch"]

_SCALARS = frozenset({"int32", "int64", "uint64", "float32", "float64"})


class Guard:
    """The door every call of an adapter goes through.

    Parameters
    ----------
    errors : tuple of exception types
        What the adapter's library raises.
    number_of : callable
        From such an exception to the driver's status, 0 when it holds none.
    on_loss : callable
        Called once, when the context is lost.
    """

    def __init__(
        self,
        errors: tuple[type[BaseException], ...],
        number_of: Callable[[BaseException], int],
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._errors = errors
        self._number_of = number_of
        self._on_loss = on_loss
        self._lost: KplError | None = None
        self.is_closed = False

    @contextmanager
    def __call__(self, action: str) -> Iterator[None]:
        """Run the block as "cannot <action>": refuse it when the context is lost, name what it raises."""
        if self._lost is not None:
            raise CudaStickyError(f"cannot {action}, since earlier: {self._lost}", getattr(self._lost, "code", 0))
        if self.is_closed:
            raise CudaError(f"cannot {action}: this driver was closed; open another")
        try:
            yield
        except KplError as error:
            self._remember(error)
            raise
        except self._errors as error:
            named = self.named(error, action)
            self._remember(named)
            raise named from error

    def check(self, status: int, action: str) -> None:
        """Raise what ``status`` stands for, unless it is 0. For use inside the block."""
        if status:
            raise failure(int(status), action)

    def named(self, error: BaseException, action: str, log: str = "") -> KplError:
        """The exception for what the adapter's library raised."""
        code = self._number_of(error)
        return failure(code, action, log) if code else CudaError(f"cannot {action}: {error}")

    def _remember(self, error: KplError) -> None:
        if isinstance(error, CudaStickyError) and self._lost is None:
            self._lost = error
            self._on_loss()


def check_array(array: npt.NDArray[Any], action: str) -> None:
    """Raise `ShapeError` unless ``array`` is C-contiguous."""
    if not array.flags.c_contiguous:
        raise ShapeError(f"cannot {action}: expected a C-contiguous array, got strides {array.strides}; copy it first")


def check_launch(name: str, launch: Launch, args: Any, info: DeviceInfo, features: Features) -> None:
    """Raise `CudaLaunchError` for a launch of kernel ``name`` that no driver would take: which limit, expected, got."""

    def refuse(what: str, expected: str, got: object) -> CudaLaunchError:
        return CudaLaunchError(f"cannot launch {name} on {info.name}: {what}: expected {expected}, got {got}")

    if not 1 <= launch.grid < 1 << 31:
        raise refuse("blocks", "from 1 to 2^31 - 1", launch.grid)
    if not 1 <= launch.block <= 1024:
        raise refuse("threads of a block", "from 1 to 1024", launch.block)
    if not 0 <= launch.shared_bytes <= info.max_shared_bytes:
        raise refuse("bytes of shared memory", f"at most {info.max_shared_bytes}", launch.shared_bytes)
    if not 1 <= launch.cluster <= features.max_cluster:
        raise refuse("blocks of a cluster", f"at most {features.max_cluster}", launch.cluster)
    if launch.grid % launch.cluster:
        raise refuse("blocks", f"a multiple of the cluster of {launch.cluster}", launch.grid)
    if launch.is_cooperative and not features.has_cooperative:
        raise refuse("cooperative launch", "an adapter that can: install cuda-core", "pycuda")
    for index, value in enumerate(args):
        if not isinstance(value, np.generic) or value.dtype.name not in _SCALARS:
            kind = value.dtype.name if isinstance(value, np.generic) else type(value).__name__
            raise refuse(f"argument {index}", f"a NumPy scalar ({', '.join(sorted(_SCALARS))})", kind)
