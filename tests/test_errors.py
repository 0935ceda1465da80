"""Every exception that a user meets is one of ours and reads as one line."""

import inspect

from skipalign import errors


def test_all_errors_are_skipalign_errors():
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    assert len(found) >= 6
    assert all(issubclass(kind, errors.SkipalignError) for kind in found)
    assert issubclass(errors.RecipeError, ValueError)
    assert issubclass(errors.VisibilityError, RuntimeError)
