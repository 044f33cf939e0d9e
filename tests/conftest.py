import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models lose more to thread hand-over than they gain, most of all on a busy machine."""
    torch.set_num_threads(1)
