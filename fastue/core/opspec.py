"""What an op is: one schema, one plain PyTorch reference, some faster backends. And how a backend
is chosen.

Each op is registered once with torch, for all devices, as `torch.ops.fastue.<name>`; its body picks
the backend. Above PyTorch's dispatcher, because Triton and CUDA C++ share one dispatch key there.
"""

import contextlib
import contextvars
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from fastue.core import env, native

FLOAT32 = frozenset({torch.float32})
FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})
NAMES = ("auto", "reference", "cpp", "triton", "cuda")
# the oldest GPU that csrc/ is compiled for (setup.py) and that has Triton's bfloat16
CAPABILITY = (8, 0)
READY_CALLS = 4096  # remembered by an op; a call that is new costs its checks, no more

_LIBRARY = torch.library.Library("fastue", "DEF")
_REGISTRY: dict[str, "OpSpec"] = {}
_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("fastue_backend", default=None)


# Whether torch's modes (fake tensors, tracing) or transforms (vmap, grad) want to see every op.
_len_dispatch_stack = torch._C._len_torch_dispatch_stack
_in_functorch = torch._C._are_functorch_transforms_active


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run this call."""


@dataclass(frozen=True)
class Backend:
    """One implementation. `load(op name)` returns a function with the op's signature or raises
    ImportError."""

    name: str
    device: str
    dtypes: frozenset[torch.dtype]  # allowed for the floating-point arguments
    load: Callable[[str], Callable]
    interpretable: bool = False  # Triton: by name, runs on CPU tensors under TRITON_INTERPRET=1


def cpp(dtypes: frozenset[torch.dtype]) -> Backend:
    """C++ on the CPU: csrc/<op>/<op>_cpu.cpp."""
    return Backend("cpp", "cpu", dtypes, lambda name: native.op(name, "cpu"))


def cuda(dtypes: frozenset[torch.dtype]) -> Backend:
    """CUDA C++: csrc/<op>/<op>_kernel.cu."""
    return Backend("cuda", "cuda", dtypes, lambda name: native.op(name, "cuda"))


def triton(dtypes: frozenset[torch.dtype]) -> Backend:
    """Triton: kernels/<op>.py."""

    def load(name: str) -> Callable:
        return getattr(importlib.import_module(f"fastue.kernels.{name}"), name)

    return Backend("triton", "cuda", dtypes, load, interpretable=True)


@dataclass(frozen=True, eq=False)
class OpSpec:
    """Everything the registry, the generic test and the benchmark know about an op. With a default:
    optional.

    schema     torch schema after the name; arguments that are written carry an alias mark such as
               `Tensor(a!)`
    reference  the definition: plain PyTorch, same signature, also in float64
    check      raises ValueError, TypeError or IndexError for arguments no backend may see (shapes,
               dtypes, devices)
    fake       result for tensors without data (None for an op that returns nothing)
    cases      (torch.Generator, dtype) -> {case name: {argument: value}}; always the same generator
               state
    bad        (torch.Generator) -> {case name: arguments} that every backend must refuse
    dtypes     the dtypes `cases` is called with
    atol       absolute allowance, float32 against float64, on top of twice the reference's own loss
    bitwise    every backend gives the reference's bits, in every dtype: same operations, same
               order, no contraction
    band       exact results, arguments -> {result: (mask, size)}: where that much either way is
               legitimate
    bench      () -> {name: () -> arguments} for bench.ops
    traffic    arguments -> bytes that a call has to move, each tensor once in each direction
    backends   in order of preference; the reference is always last and not listed
    wide       arguments that are float64 whatever the others are
    backward, setup_context   as for torch.library.register_autograd, for a differentiable
                              (non-mutating) op
    constant   names of floating-point arguments that it gives no gradient
    gradient_tolerance   as atol, for gradients, relative to the largest value of each
    """

    name: str
    schema: str
    reference: Callable
    check: Callable[..., None]
    cases: Callable[[torch.Generator, torch.dtype], Mapping[str, dict[str, Any]]]
    atol: float
    backends: Sequence[Backend]
    dtypes: Sequence[torch.dtype] = (torch.float32,)
    wide: Sequence[str] = ()
    bad: Callable[[torch.Generator], Mapping[str, dict[str, Any]]] = lambda generator: {}
    fake: Callable | None = None
    bitwise: bool = False
    band: Callable | None = None
    bench: Callable[[], Mapping[str, Callable[[], dict[str, Any]]]] = dict
    traffic: Callable[..., int] | None = None
    backward: Callable | None = None
    setup_context: Callable | None = None
    constant: Sequence[str] = ()
    gradient_tolerance: float = 0.0

    @cached_property
    def arguments(self) -> list[torch.Argument]:
        return torch._C.parse_schema(f"fastue::{self.name}{self.schema}").arguments

    @cached_property
    def mutated(self) -> tuple[int, ...]:
        """Positions of the arguments that the op writes."""
        return tuple(
            i
            for i, a in enumerate(self.arguments)
            if a.alias_info is not None and a.alias_info.is_write
        )

    @cached_property
    def _chosen(self) -> dict[tuple, Callable]:
        """Choices made so far, by backend wanted and by devices and dtypes, on which alone a choice
        depends."""
        return {}

    @cached_property
    def _ready(self) -> dict[tuple, Callable]:
        """Native kernels of calls like earlier ones, which `call` need not check again."""
        return {}

    @cached_property
    def _functions(self) -> dict[str, tuple[Callable | None, str]]:
        return {}

    def function(self, backend: Backend) -> tuple[Callable | None, str]:
        """The backend's function, or None and the reason. Cached, failures included."""
        found = self._functions.get(backend.name)
        if found is None:
            try:
                found = (backend.load(self.name), "")
            except (ImportError, AttributeError) as error:
                reason = str(error)
                found = (
                    None,
                    reason if reason.startswith("not available") else f"not available: {reason}",
                )
            self._functions[backend.name] = found
        return found

    def why_not(self, backend: Backend, args: Sequence[Any], named: bool = True) -> list[str]:
        """Every reason why this backend cannot run this call; empty when it can."""
        function, missing = self.function(backend)
        reasons = [] if function is not None else [missing]
        tensors = tensors_of(args)
        devices = sorted({t.device for t in tensors}, key=str)
        if len(devices) > 1:
            reasons.append(f"its tensors are on several devices: {', '.join(map(str, devices))}")
        interpreting = backend.interpretable and env.triton_interprets()
        for device in devices:
            if device.type != backend.device and not (
                interpreting and named and device.type == "cpu"
            ):
                reasons.append(f"runs on {backend.device}, tensor is on {device.type}")
            elif device.type == "cuda" and (old := too_old(device)):
                reasons.append(old)
        names = [a.name for a in self.arguments]
        narrow = [a for name, a in zip(names, args, strict=False) if name not in self.wide]
        floats = {t.dtype for t in tensors_of(narrow) if t.is_floating_point()}
        return reasons + sorted(f"no {dtype}" for dtype in floats - backend.dtypes)

    def __call__(self, *args: Any) -> Any:
        """Check the arguments, choose a backend and run it: the body of
        `torch.ops.fastue.<name>`."""
        self.check(*args)
        return self._run(self.choose(args), args)

    def call(self, *args: Any) -> Any:
        """The op as the public functions call it: `torch.ops.fastue.<name>`, at a fraction of its
        cost.

        Where no trace, mode or tensor subclass of torch watches, its dispatcher has nothing to do
        and the backend is called directly. A native kernel checks the shapes of its tensors itself,
        so that dtypes, devices and numbers are all that a second call like the first can get wrong,
        and these are compared.
        """
        if torch.compiler.is_compiling() or _len_dispatch_stack() or _in_functorch():
            return getattr(torch.ops.fastue, self.name)(*args)
        if self.backward is not None and _has_gradient(args):
            return _Differentiable.apply(self, *_flat(args))
        signature = (chosen_backend(), *[_signature(a) for a in args])
        function = self._ready.get(signature)
        if function is not None:
            try:
                return self._run(function, args)
            except RuntimeError:
                self.check(*args)  # says it better
                raise
        if any(type(t) is not torch.Tensor for t in tensors_of(args)):
            return getattr(torch.ops.fastue, self.name)(*args)
        self.check(*args)
        function = self.choose(args)
        if isinstance(function, torch._ops.OpOverload):
            if len(self._ready) >= READY_CALLS:
                self._ready.clear()
            self._ready[signature] = function
        return self._run(function, args)

    def _run(self, function: Callable, args: Sequence[Any]) -> Any:
        """Tell autograd what was written: the native ops themselves do not."""
        result = function(*args)
        written = tensors_of([args[i] for i in self.mutated])
        torch._C._increment_version([t for t in written if not t.is_inference()])
        return result

    def choose(self, args: Sequence[Any]) -> Callable:
        """The function that runs this call. A backend named by the user runs or raises
        BackendError."""
        wanted = chosen_backend()
        of_each = [frozenset([(t.device, t.dtype) for t in tensors_of([a])]) for a in args]
        key = (wanted, *of_each)
        function = self._chosen.get(key)
        if function is None:
            function = self._chosen[key] = self._choose(wanted, args)
        return function

    def _choose(self, wanted: str, args: Sequence[Any]) -> Callable:
        if wanted == "reference" or not tensors_of(args):  # empty lists: no device, no work
            return self.reference
        if wanted == "auto":
            for backend in self.backends:
                if not self.why_not(backend, args, named=False):
                    return self._functions[backend.name][0]  # type: ignore[return-value]
            self._warn_slow(args)
            return self.reference
        named = [b for b in self.backends if b.name == wanted]
        if not named:
            raise BackendError(
                f"{self.name}: there is no {wanted} backend, only {', '.join(self.backend_names)}"
            )
        reasons = self.why_not(named[0], args)
        if reasons:
            raise BackendError(f"{self.name} cannot run on {wanted}: {'; '.join(reasons)}")
        return self._functions[wanted][0]  # type: ignore[return-value]

    @property
    def backend_names(self) -> tuple[str, ...]:
        return (*(b.name for b in self.backends), "reference")

    def _warn_slow(self, args: Sequence[Any]) -> None:
        """Once a device: fast code for it exists but is not installed here. A dtype it lacks is no
        reason to warn."""
        device = tensors_of(args)[0].device.type
        here = [b for b in self.backends if b.device == device]
        if here and device not in _warned and all(self.function(b)[0] is None for b in here):
            _warned.add(device)
            why = "; ".join(f"{b.name} {self.function(b)[1]}" for b in here)
            warnings.warn(
                f"fastue runs on the plain PyTorch reference, which is slower ({why})", stacklevel=4
            )


_warned: set[str] = set()


def tensors_of(args: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors among the arguments, those of lists, too."""
    found = []
    for a in args:
        if isinstance(a, torch.Tensor):
            found.append(a)
        elif isinstance(a, list | tuple):
            found += [t for t in a if isinstance(t, torch.Tensor)]
    return found


def each(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """An argument with its tensor changed, or the tensors of its list."""
    if isinstance(value, list):
        return [each(v, change) for v in value]
    return change(value) if isinstance(value, torch.Tensor) else value


def _has_gradient(args: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any([t.requires_grad for t in tensors_of(args)])


def _signature(a: Any) -> Any:
    """What the choice of a backend depends on, and the checks that a native kernel leaves to
    Python. Of a list of tensors it sees the length itself."""
    if type(a) is torch.Tensor:
        return a.dtype, a.device
    if type(a) is not list:
        return a
    if set(map(type, a)) == {torch.Tensor}:
        return frozenset([(t.dtype, t.device) for t in a])
    return tuple(a)


def _flat(args: Sequence[Any]) -> list[Any]:
    """The lengths of the lists among the arguments (None: no list), then the arguments one after
    another."""
    lengths = [len(a) if isinstance(a, list) else None for a in args]
    found: list[Any] = [lengths]
    for a in args:
        found.extend(a) if isinstance(a, list) else found.append(a)
    return found


def _unflat(lengths: Sequence[int | None], values: Sequence[Any]) -> list[Any]:
    rest = iter(values)
    return [next(rest) if n is None else [next(rest) for _ in range(n)] for n in lengths]


class _Differentiable(torch.autograd.Function):
    """`register_autograd` for `call`: its way through torch's dispatcher and pytree takes 1 ms for
    the gradients of ResNet-18."""

    @staticmethod
    def forward(ctx, spec: OpSpec, lengths: list[int | None], *values: Any) -> Any:
        args = _unflat(lengths, values)
        result = spec.call(*args)  # nothing has a gradient here
        ctx.spec, ctx.lengths = spec, lengths
        spec.setup_context(ctx, args, result)  # type: ignore[misc]
        return result

    @staticmethod
    def backward(ctx, *grads: torch.Tensor) -> Any:
        flat_needed = ctx.needs_input_grad
        ctx.needs_input_grad = _unflat(ctx.lengths, flat_needed[2:])
        try:
            found = ctx.spec.backward(ctx, *grads)
        finally:
            ctx.needs_input_grad = flat_needed
        found = found if isinstance(found, tuple) else (found,)
        return (None, None, *_flat(found)[1:])


@functools.cache
def too_old(device: torch.device) -> str:
    """Why kernels cannot run on this GPU, "" when they can. A library loads on any; only its
    launches would fail."""
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) >= CAPABILITY:
        return ""
    return f"needs a GPU of compute capability {CAPABILITY[0]}.{CAPABILITY[1]}, {device} has {major}.{minor}"


def register(spec: OpSpec) -> OpSpec:
    """Make `torch.ops.fastue.<name>` out of a spec."""
    _REGISTRY[spec.name] = spec
    _LIBRARY.define(spec.name + spec.schema)
    _LIBRARY.impl(spec.name, spec, "CompositeExplicitAutograd")

    def fake(*args: Any) -> Any:
        spec.check(*args)
        return spec.fake(*args) if spec.fake else None

    torch.library.register_fake(f"fastue::{spec.name}", fake, lib=_LIBRARY)
    if spec.backward is not None:
        torch.library.register_autograd(
            f"fastue::{spec.name}", spec.backward, setup_context=spec.setup_context, lib=_LIBRARY
        )
    return spec


def registry() -> Mapping[str, OpSpec]:
    """All ops by name; complete once fastue.ops is imported."""
    return _REGISTRY


def chosen_backend() -> str:
    """The backend asked for: by `use_backend`, else by FASTUE_BACKEND, else auto."""
    name = _chosen.get()
    if name is not None:
        return name
    name = env.backend()
    if name not in NAMES:
        raise BackendError(f"FASTUE_BACKEND={name!r}: choose one of {', '.join(NAMES)}")
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops inside the block on one backend: auto, reference, cpp, triton or cuda."""
    if name not in NAMES:
        raise BackendError(f"backend {name!r}: choose one of {', '.join(NAMES)}")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)
