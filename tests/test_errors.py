"""Every exception that a user meets is one of ours and reads as one line."""

import inspect

import pytest
import torch

from skipalign import errors


def test_all_errors_are_skipalign_errors():
    classes = inspect.getmembers(errors, inspect.isclass)
    found = [kind for _, kind in classes if kind.__module__ == errors.__name__]
    assert len(found) >= 6
    assert all(issubclass(kind, errors.SkipalignError) for kind in found)
    assert issubclass(errors.RecipeError, ValueError)
    assert issubclass(errors.VisibilityError, RuntimeError)


def test_a_lack_of_memory_is_told_from_other_faults():
    with pytest.raises(RuntimeError) as on_cpu:
        torch.empty(2**55)
    short = (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), on_cpu.value)
    assert all(errors.is_out_of_memory(each) for each in short)
    assert not errors.is_out_of_memory(RuntimeError("other"))
    assert not errors.is_out_of_memory(OSError(28, "No space left on device"))
