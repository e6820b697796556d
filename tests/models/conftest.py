"""What the tests of the models share."""

import pytest

from convgru_fused.bench import published


@pytest.fixture
def torchvision_models():
    """torchvision.models, with operators declared that its wheel may lack; skips without it."""
    try:
        published._declared()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    import torchvision

    return torchvision.models
