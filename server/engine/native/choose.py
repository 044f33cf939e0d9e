"""Choice of a CPU's backend: runs a policy by the C++ backend where it may, and checks the outcome."""

from __future__ import annotations

import logging

import torch

from trimtab.guidance.errors import ModelError
from trimtab.kernels.cpu.library import BuildError, Library, load_library
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.native.linears import pack_linears
from trimtab.server.engine.native.model import NativeModel
from trimtab.server.engine.native.recognise import UnrecognisedError
from trimtab.server.engine.native.threads import threads_to_try
from trimtab.server.engine.policy import ServedPolicy
from trimtab.server.engine.self_check import self_check

logger = logging.getLogger(__name__)


def prepare(policy: ServedPolicy, config: EngineConfig) -> None:
    """Let what a resolved configuration asks for run the policy, and hold it against the model's own forward.

    Where the C++ backend may run it, and cannot or does it wrong, torch does, and the log says why. Raises
    ModelError with one line: where it must be had and cannot; or what self_check raises.
    """
    if config.cpu_backend == "torch":
        self_check(policy, config)
        return
    try:
        library = load_library()
    except (BuildError, ValueError) as error:  # no compiler, or an instruction set that this CPU lacks
        if config.needs_native:
            raise ModelError(f"{error}; or leave cpu_backend, weights and kv_cache_dtype auto") from error
        logger.warning("%s runs by torch alone, and slower: %s", policy.name, error)
        self_check(policy, config)
        return
    policy.backend = "cpu"
    with threads_to_try(policy.num_parameters):
        _prepare(policy, config, library)


def _prepare(policy: ServedPolicy, config: EngineConfig, library: Library) -> None:
    try:
        if policy.dtype != torch.float32:  # of a policy that was loaded for another purpose
            raise UnrecognisedError(f"it is held in {policy.dtype}, and the C++ backend runs float32")
        policy.native = NativeModel(policy, config, library)
        self_check(policy, config)
    except (UnrecognisedError, ModelError) as error:
        if config.needs_native:
            reason = f"the C++ backend cannot run '{policy.name}': {error}"
            raise ModelError(f"{reason}; leave cpu_backend, weights and kv_cache_dtype auto") from error
        policy.native = None
        if policy.dtype == torch.float32:
            policy.packed = pack_linears(policy.model, library)
        self_check(policy, config)
        log = logger.info if isinstance(error, UnrecognisedError) else logger.warning
        log("%s runs by torch, and slower: %s", policy.name, error)
