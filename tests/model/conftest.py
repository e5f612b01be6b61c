"""What the tests of the compiled kernels share."""

import pytest

from mambaad_cli.model.kernels import cpu


@pytest.fixture(params=range(3), ids=cpu.ISA)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each instruction set that this machine has."""
    library = cpu.kernels()
    if library is None:
        pytest.skip("the optional kernels were not built: no C compiler")
    if request.param > library.mambaad_best_isa():
        pytest.skip(f"no {cpu.ISA[request.param]} here")
    monkeypatch.setattr(library, "mambaad_isa", request.param)
