"""What runs here and why: versions, device, threads, and for each op which backend can run. `fastue info` prints it."""

import importlib.metadata
import os
import platform
from typing import Any

import torch

from fastue.core import env, native, opspec

_PACKAGES = ("torch", "triton", "numpy", "torchvision", "timm", "ffcv", "safetensors", "pillow")


def version(package: str) -> str | None:
    """Installed version, without importing the package; None when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(device: str = "cpu") -> str:
    """The processor or GPU in words."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def backends() -> dict[str, dict[str, str]]:
    """{op: {backend: "" where it can run, else why not}}, judged by device and installation, not by one call."""
    table: dict[str, dict[str, str]] = {}
    for name, op in opspec.registry().items():
        row = {}
        for backend in op.backends:
            reasons = [op.function(backend)[1]]
            if backend.device == "cuda" and not torch.cuda.is_available():
                interpreted = backend.interpretable and env.triton_interprets()
                reasons.append("" if interpreted else "no GPU")
            row[backend.name] = "; ".join(r for r in reasons if r)
        table[name] = row | {"reference": ""}
    return table


def collect() -> dict[str, Any]:
    """Everything, as plain data for a manifest, a benchmark row or a report.

    The table shows the ops that are registered: the caller imports fastue.ops, which core may not.
    """
    if not opspec.registry():
        raise RuntimeError("no op is registered: import fastue.ops first")
    gpu = torch.cuda.is_available()
    return {
        "fastue": version("fastue"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": device_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpu": [device_name(f"cuda:{i}") for i in range(torch.cuda.device_count())] if gpu else [],
        "environment": env.settings(),
        "libraries": native.builds(),
        "backend": opspec.chosen_backend(),
        "backends": backends(),
    }


def text() -> str:
    """The same for people."""
    found = collect()
    lines = [f"fastue {found['fastue']}, Python {found['python']}, {found['platform']}"]
    lines += [
        "  ".join(
            f"{name} {number or 'not installed'}" for name, number in found["packages"].items()
        )
    ]
    lines += [
        f"CPU: {found['cpu']}, {found['cpu_capability']}, {found['threads']} of {found['cores']} cores"
    ]
    lines += [
        f"GPU: {', '.join(found['gpu']) or 'none'} (torch built for CUDA: {found['cuda'] or 'no'})"
    ]
    lines += [f"{name}={value}" for name, value in found["environment"].items()]
    lines += [f"backend: {found['backend']}", ""]
    width = max(len(name) for name in found["backends"])
    states = [f"{name} library {state}" for name, state in found["libraries"].items()]
    for name, row in found["backends"].items():
        for number, (backend, reason) in enumerate(row.items()):
            label = name if number == 0 else ""
            for state in found["libraries"].values():
                reason = reason.replace(state, "not built, see below")
            lines.append(f"{label:<{width}}  {backend:<9}  {reason or 'ready'}")
    return "\n".join([*lines, "", *states])
