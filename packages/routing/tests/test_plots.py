"""Figures show the numbers they are given, keep to themselves, and refuse what does not fit."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch

from flan_moe.routing.plots import (
    plot_co_activation,
    plot_load,
    plot_load_history,
    plot_specialisation,
)


def cells(figure):
    """The values behind the colours of the heatmap."""
    return np.ma.getdata(figure.axes[0].collections[0].get_array())


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_load_is_relative_to_an_even_load_and_marks_idle_experts():
    figure = plot_load(torch.tensor([[1.0, 3.0], [4.0, 0.0]]), layer_names=["one", "two"])
    axes = figure.axes[0]
    np.testing.assert_allclose(cells(figure), [[0.5, 1.5], [2.0, 0.5]])  # 0 drawn as the lowest
    assert axes.collections[1].get_offsets().tolist() == [[1.0, 1.0]]
    assert labels(axes.yaxis) == ["one", "two"]
    assert axes.get_xlabel() == "expert"
    assert "even" in figure.axes[1].get_ylabel()
    norm = axes.collections[0].norm
    assert float(norm(1.0)) == pytest.approx(0.5)  # even is the middle colour
    assert float(norm(0.5)) + float(norm(2.0)) == pytest.approx(1.0)


def test_specialisation_prints_shares_and_colours_them_by_row():
    figure = plot_specialisation(torch.tensor([[0.5, 1.5], [0.2, 0.2]]), domain_names=["a", "b"])
    np.testing.assert_allclose(cells(figure), [[0.5, 1.5], [1.0, 1.0]])
    assert texts(figure) == ["50 %", "150 %", "20 %", "20 %"]


def test_co_activation_leaves_the_diagonal_out():
    figure = plot_co_activation(torch.tensor([[1.0, 0.25], [0.5, 1.0]]))
    mesh = figure.axes[0].collections[0]
    assert np.ma.getmaskarray(mesh.get_array()).tolist() == [[True, False], [False, True]]
    assert texts(figure) == ["", "25", "50", ""]
    assert mesh.norm.vmax == 50.0


def test_load_history_draws_uneven_steps_as_uneven():
    figure = plot_load_history(
        torch.tensor([[1.0, 1.0], [3.0, 1.0], [1.0, 3.0]]), steps=[0, 10, 40], layer_name="enc.1"
    )
    axes = figure.axes[0]
    edges = axes.collections[0].get_coordinates()[0, :, 0].tolist()
    assert edges == [-5.0, 5.0, 25.0, 55.0]
    np.testing.assert_allclose(cells(figure), [[1.0, 1.5, 0.5], [1.0, 0.5, 1.5]])
    assert "enc.1" in axes.get_title(loc="left")


@pytest.mark.parametrize("num_experts", [1, 512])
def test_every_figure_renders_with_few_and_many_experts(num_experts):
    load = torch.arange(3.0 * num_experts).reshape(3, num_experts)
    for figure in (
        plot_load(load),
        plot_specialisation(load, domain_names=["a", "b", "c"]),
        plot_co_activation(torch.eye(num_experts)),
        plot_load_history(load),
        plot_load_history(load[:1]),
        plot_load(torch.zeros(2, num_experts)),
    ):
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=40)
        assert image.getvalue().startswith(b"\x89PNG")
        assert max(figure.get_size_inches()) < 16


def test_many_cells_are_not_filled_with_numbers_and_many_names_are_thinned():
    names = [f"layer {i}" for i in range(90)]
    figure = plot_load(torch.ones(90, 64), layer_names=names)
    assert len(labels(figure.axes[0].yaxis)) <= 40
    assert texts(plot_specialisation(torch.ones(30, 64))) == []


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"load_LE has shape \(3,\)"):
        plot_load(torch.ones(3))
    with pytest.raises(ValueError, match="not empty"):
        plot_load(torch.ones(0, 4))
    with pytest.raises(ValueError, match="layer_names has 1 names; expected 2"):
        plot_load(torch.ones(2, 4), layer_names=["a"])
    with pytest.raises(ValueError, match="square"):
        plot_co_activation(torch.ones(2, 3))
    with pytest.raises(ValueError, match="steps has 1 entries"):
        plot_load_history(torch.ones(2, 3), steps=[0])
    with pytest.raises(ValueError, match="increase"):
        plot_load_history(torch.ones(2, 3), steps=[1, 1])
    with pytest.raises(ValueError, match="steps must increase"):
        plot_load_history(torch.ones(2, 3), steps=[1, float("nan")])


def test_pyplot_is_never_touched_and_importing_needs_no_matplotlib():
    code = (
        "import sys, torch\n"
        "from flan_moe.routing import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.plot_load(torch.ones(2, 3))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
