"""Recipes: what they accept, what they refuse, and the way to TOML and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor import Recipe, RecipeError, steps
from tersor.recipe import STEPS, Step, register_step


def some_steps() -> st.SearchStrategy[Step]:
    """Any step with any choices that it accepts together and, where a field is a number, any value in its range."""

    def of(cls: type[Step]) -> st.SearchStrategy[Step]:
        fields: dict[str, st.SearchStrategy[object]] = {}
        for spec in dataclasses.fields(cls):
            if "choices" in spec.metadata:
                fields[spec.name] = st.sampled_from(tuple(spec.metadata["choices"]))
            elif "range" in spec.metadata:
                fields[spec.name] = st.floats(*spec.metadata["range"])

        def make(values: dict[str, object]) -> Step | None:
            try:
                return cls(**values)
            except RecipeError:
                return None

        made = st.fixed_dictionaries(fields).map(make)
        return made.filter(lambda step: step is not None)  # type: ignore[return-value]

    return st.one_of([of(cls) for cls in STEPS.values()])


patterns = st.lists(st.text(min_size=1), max_size=4)
recipes = st.builds(Recipe, st.lists(some_steps(), min_size=1, max_size=3), patterns, patterns)


@settings(deadline=None)
@given(recipes)
def test_toml_round_trip(recipe: Recipe) -> None:
    assert Recipe.from_toml_text(recipe.to_toml()) == recipe


@settings(deadline=None)
@given(recipes)
def test_dict_round_trip(recipe: Recipe) -> None:
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_file_round_trip(tmp_path: Path) -> None:
    recipe = Recipe([steps.Quantize(activations="static")], include=["encoder.*"], exclude=["*.pööler\n\x7f"])
    text = recipe.to_toml(tmp_path / "recipe.toml")
    assert (tmp_path / "recipe.toml").read_text(encoding="utf-8") == text
    assert Recipe.from_toml(tmp_path / "recipe.toml") == recipe


def test_the_file_reads_as_documented() -> None:
    text = 'include = ["encoder.*"]\n[[steps]]\nstep = "quantize"\nactivations = "static"\n'
    assert Recipe.from_toml_text(text) == Recipe([steps.Quantize("int8", "static", 0.5)], include=["encoder.*"])
    (step,) = Recipe.from_toml_text(text + "smooth = 1").steps
    assert step == steps.Quantize("int8", "static", smooth=1)
    assert isinstance(step, steps.Quantize)
    assert type(step.smooth) is float


def test_a_prune_step_reads_as_documented() -> None:
    text = """
[[steps]]
step = "prune"
criterion = "wanda"
sparsity = 0.9
schedule = "cubic"
overrides = {"encoder.layer.0.*" = 0.5, "head" = 0}
"""
    overrides = {"encoder.layer.0.*": 0.5, "head": 0.0}
    expected = steps.Prune("wanda", "1x4", 0.9, "cubic", overrides=overrides)
    assert Recipe.from_toml_text(text) == Recipe([expected])
    assert Recipe.from_toml_text(Recipe([expected]).to_toml()) == Recipe([expected])
    assert hash(expected) == hash(steps.Prune("wanda", "1x4", 0.9, "cubic"))
    assert (steps.Prune().sparsity, steps.Prune(pattern="2:4").sparsity, steps.Prune(pattern="1:4").sparsity) == (
        0.8,
        0.5,
        0.75,
    )


def test_recipes_are_values() -> None:
    one, other = Recipe([steps.Quantize()], ["a"]), Recipe((steps.Quantize(),), ("a",))
    assert one == other
    assert hash(one) == hash(other)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.include = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[[steps]]\nstep = "quantise"',
            r"'quantise' is not a known step; did you mean 'quantize'\? Known: .*prune, .*quantize",
        ),
        ("[[steps]]\nweights = 'int8'", "step = None is not a known step"),
        ('[[steps]]\nstep = "quantize"\nweight = "int8"', r"'weight' .*did you mean 'weights'.*weights, activations"),
        ('[[steps]]\nstep = "quantize"\nweights = "int1"', r"weights = 'int1' is not a known value.*int8"),
        ('[[steps]]\nstep = "quantize"\nactivations = []', r"activations = \[\] is not a known value.*dynamic, static"),
        ('[[steps]]\nstep = "quantize"\nsmooth = 1.5', r"smooth = 1\.5 is not a number from 0\.0 to 1\.0"),
        ('[[steps]]\nstep = "quantize"\nsmooth = -1', "smooth = -1 is not a number"),
        ('[[steps]]\nstep = "quantize"\nsmooth = nan', "smooth = nan is not a number"),
        ('[[steps]]\nstep = "quantize"\nsmooth = true', "smooth = True is not a number"),
        ('[[steps]]\nstep = "quantize"\nsmooth = "0.5"', "smooth = '0.5' is not a number"),
        ('[[steps]]\nstep = "prune"\ncriterion = "size"', r"criterion = 'size' is not a known value.*magnitude"),
        ('[[steps]]\nstep = "prune"\npattern = "four"', r"pattern = 'four': unknown pattern.*'1x4'"),
        ('[[steps]]\nstep = "prune"\npattern = "9x9"', "blocks of more than 64 weights"),
        ('[[steps]]\nstep = "prune"\npattern = 4', "pattern = 4"),
        ('[[steps]]\nstep = "prune"\npattern = "2:4"\nsparsity = 0.8', "2:4 has the sparsity 0.5, not 0.8"),
        ('[[steps]]\nstep = "prune"\nsparsity = 80', "sparsity = 80 is not a number from 0 to 1"),
        ('[[steps]]\nstep = "prune"\nsparsity = nan', "sparsity = nan is not a number from 0 to 1"),
        ('[[steps]]\nstep = "prune"\nschedule = "late"', "schedule = 'late' is not a known value.*cubic"),
        ('[[steps]]\nstep = "prune"\nscope = "model"', "scope = 'model' is not a known value.*global"),
        ('[[steps]]\nstep = "prune"\nepochs = 1.5', "epochs = 1.5 is not a whole number"),
        ('[[steps]]\nstep = "prune"\nlearning_rate = 0', "learning_rate = 0 is not a number from"),
        ('[[steps]]\nstep = "prune"\noverrides = [1]', r"overrides = \[1\] is not a table"),
        ('[[steps]]\nstep = "prune"\noverrides = {a = true}', "a = True is not a number from 0 to 1"),
        ('includes = []\n[[steps]]\nstep = "quantize"', "'includes' is not a known key; did you mean 'include'"),
        ('include = "a"\n[[steps]]\nstep = "quantize"', "include must be a list of strings"),
        ('exclude = [3]\n[[steps]]\nstep = "quantize"', "exclude: 3 is not a wildcard"),
        ('exclude = [""]\n[[steps]]\nstep = "quantize"', "exclude: '' is not a wildcard"),
        ("steps = 3", "steps must be a list of tables"),
        ("", "at least one step; steps: .*prune, .*quantize"),
        ("[[steps]", "not valid TOML"),
        ("a = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_toml_text(text)


def test_errors_of_a_file_name_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.toml"):
        Recipe.from_toml(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(RecipeError, match=r"bad\.toml"):
        Recipe.from_toml(tmp_path / "bad.toml")
    (tmp_path / "odd.toml").write_text("steps = 1")
    with pytest.raises(RecipeError, match=r"odd\.toml.*list of tables"):
        Recipe.from_toml(tmp_path / "odd.toml")


def test_only_steps_are_steps() -> None:
    with pytest.raises(RecipeError, match=r"'quantize' is not a step; steps: .*quantize"):
        Recipe(["quantize"])  # type: ignore[list-item]
    with pytest.raises(RecipeError, match="not a wildcard"):
        Recipe([steps.Quantize()], include=["\ud800"])


def test_a_clash_of_names_is_loud() -> None:
    before = dict(STEPS)
    with pytest.raises(RecipeError, match="needs a name of its own, got 'quantize'"):

        @register_step
        class Other(Step):
            name = "quantize"

    with pytest.raises(RecipeError, match="needs a name of its own"):
        register_step(Step)
    assert before == STEPS


def test_an_order_that_cannot_work_is_refused_with_the_reason() -> None:
    Recipe([steps.Prune(), steps.Prune(), steps.Quantize()]).check_order()
    with pytest.raises(RecipeError, match=r"step 2 of the recipe \(quantize, prune\), 'prune', .*: put it before"):
        Recipe([steps.Quantize(), steps.Prune()]).check_order()
    with pytest.raises(RecipeError, match="quantised already"):
        Recipe([steps.Prune(), steps.Quantize(), steps.Quantize()]).check_order()


def test_every_step_says_what_it_uses_and_is_exported() -> None:
    for name, cls in STEPS.items():
        assert cls.__name__ in steps.__all__
        assert cls.name == name
        assert cls.edits == (cls.apply is not Step.apply)
