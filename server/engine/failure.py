"""Failures: what a client is told about one, and whether the device has survived it."""

from __future__ import annotations

import torch

from trimtab.server.engine.request import Failed


def failed(request_id: str, what: str = "the engine failed on this request") -> Failed:
    """The terminal event of a request that an error has ended. What was raised stays in the log."""
    return Failed(request_id, f"{what}; the log says more about {request_id}")


def shut_down(request_id: str) -> Failed:
    """The terminal event of a request that the server has no time left for."""
    return Failed(request_id, f"the server is shutting down before {request_id} is done", "shutdown")


def waited_too_long(request_id: str) -> Failed:
    """The terminal event of a request that has not begun in the time that it may wait."""
    return Failed(request_id, "the server is too busy to begin with this request now", "queue")


def is_device_fault(error: Exception, device: torch.device) -> bool:
    """Whether an error means that the device will do no more work, so that the process has to go.

    A CUDA context that has failed stays so, whoever was told first: Triton's launcher and the libraries raise
    plain RuntimeErrors. So the device is asked.
    """
    if isinstance(error, torch.AcceleratorError):
        return True
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False
