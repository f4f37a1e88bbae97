import inspect

import pytest

import jaxmetric as jm

FUNCTIONS = {
    name: value for name in jm.__all__ if inspect.isfunction(value := getattr(jm, name))
} | {
    f"{name}.{method}": function
    for name in ("Cells", "CellOntology", "Config", "MetricLearning", "Triplets")
    for method, function in vars(getattr(jm, name)).items()
    if inspect.isfunction(function) and not method.startswith("_")
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_says_what_it_takes_gives_and_refuses(name):
    function = FUNCTIONS[name]
    text, signature = inspect.getdoc(function), inspect.signature(function)
    assert text
    parameters = [p for p in signature.parameters if p != "self"]
    if "Args:" in text or len(parameters) > 2:
        described = text.partition("Args:")[2]
        assert not [p for p in parameters if f"{p}:" not in described]
    if len(parameters) > 2 and signature.return_annotation is not None:
        assert "Returns:" in text
    if "raise " in inspect.getsource(function):
        assert "Raises:" in text


@pytest.mark.parametrize("name", jm.__all__)
def test_every_public_name_has_a_docstring(name):
    assert inspect.getdoc(getattr(jm, name))
