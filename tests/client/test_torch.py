"""The autograd bridge: exactly the estimated gradient, in any dtype."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from carv_client import Branch, DrawPlanner, TeacherClient
from carv_client.torch import (
    attach_gradient,
    score_distillation,
    score_distillation_with_estimate,
    submit_score_distillation,
    vjp_of,
)

RENDERS = 3
SHAPE = (RENDERS, 2, 4, 4)
GRADIENT = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def latents(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.from_numpy(np.random.default_rng(1).normal(size=SHAPE))
    return values.to(dtype).requires_grad_()


@pytest.mark.parametrize(("reduction", "divisor"), [("mean", RENDERS), ("sum", 1)])
def test_the_latents_get_the_gradient_itself(reduction: str, divisor: int) -> None:
    x = latents()
    loss = attach_gradient(x, GRADIENT, reduction)  # type: ignore[arg-type]
    loss.backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), GRADIENT * np.float32(1 / divisor))
    # float32 sum of 96 squares.
    assert loss.item() == pytest.approx(0.5 * float((GRADIENT**2).sum()) / divisor, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_get_the_gradient_rounded_once(dtype: torch.dtype) -> None:
    """Gradients far below the spacing of the latents' dtype survive, which ``latents − grad``
    would lose."""
    x = latents(dtype)
    small = GRADIENT * np.float32(2.0**-12)
    loss = attach_gradient(x, small, "sum")
    assert loss.dtype == torch.float32
    loss.backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad, torch.from_numpy(small).to(dtype))


def test_a_loss_scale_multiplies_in_float32_before_rounding() -> None:
    x = latents(torch.float16)
    tiny = GRADIENT * np.float32(2.0**-30)  # zero in float16
    (attach_gradient(x, tiny, "sum") * 2.0**20).backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.from_numpy(tiny * np.float32(2.0**20)).half())


def test_the_gradient_flows_through_the_renderer() -> None:
    """d loss / d θ = Jᵀ ĝ / R, for a linear renderer x = Aθ written out."""
    size = int(np.prod(SHAPE))
    jacobian = torch.from_numpy(np.random.default_rng(2).normal(size=(size, 5)).astype(np.float32))
    theta = torch.zeros(5, requires_grad=True)
    attach_gradient((jacobian @ theta).reshape(SHAPE), GRADIENT).backward()
    expected = jacobian.T @ torch.from_numpy(GRADIENT).reshape(-1) / RENDERS
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, expected)


def test_losses_add_up() -> None:
    x = latents()
    (2 * attach_gradient(x, GRADIENT, "sum") + x.sum()).backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), 2 * GRADIENT + 1, rtol=1e-6)


def test_a_second_derivative_is_refused() -> None:
    x = latents()
    loss = attach_gradient(x, GRADIENT)
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    np.testing.assert_array_equal(first.detach(), GRADIENT * np.float32(1 / RENDERS))
    with pytest.raises(RuntimeError, match="no second derivative"):
        (first.square().sum() + x.square().sum()).backward()


def test_a_gradient_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        attach_gradient(latents(), GRADIENT[:1])


def test_the_server_is_asked_and_its_gradient_is_handed_on(analytic_server: str) -> None:
    x = latents()
    with TeacherClient(analytic_server) as client:
        c = client.create_conditioning(class_id=1)
        loss, estimate = score_distillation_with_estimate(x, c, client=client, draws=2, seed=5)
        again = score_distillation(x, c, client=client, draws=2, seed=5)
        direct = client.estimate_gradient(x.detach().numpy(), c, draws=2, seed=5)
    np.testing.assert_allclose(estimate.gradient, direct.gradient, rtol=1e-5, atol=1e-6)
    assert again.item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), estimate.gradient / RENDERS, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_latents_are_sent_as_they_are(analytic_server: str, dtype: torch.dtype) -> None:
    x = latents(dtype)
    with TeacherClient(analytic_server) as client:
        c = client.create_conditioning(class_id=1)
        branches = [Branch(c, 1.0), Branch(c, -1.0, use_reference_latents=True)]
        reference = x.detach() + 0.5
        _, estimate = score_distillation_with_estimate(
            x, client=client, branches=branches, reference_latents=reference, draws=2, seed=5
        )
        exact, exact_reference = x.detach().float().numpy(), reference.float().numpy()
        direct = client.estimate_gradient(
            exact, branches=branches, reference_latents=exact_reference, draws=2, seed=5
        )
    np.testing.assert_allclose(estimate.gradient, direct.gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ask", [score_distillation, submit_score_distillation])
def test_a_wrong_reduction_is_told_before_anything_is_sent(ask: Any) -> None:
    with TeacherClient("localhost:1") as client, pytest.raises(ValueError, match="reduction"):
        ask(latents(), client=client, reduction="max")


def test_losses_on_their_way_are_those_that_blocking_gives(analytic_server: str) -> None:
    """Three views of one parameter, all in flight before the first backward pass."""
    scales = [0.5, 1.0, 2.0]

    def gradients(pipelined: bool) -> tuple[list[float], np.ndarray]:
        weight = torch.ones(SHAPE[1:], dtype=torch.float64).requires_grad_()
        with TeacherClient(analytic_server) as client:
            conditioning = client.create_conditioning(class_id=1)
            views = [(weight * latents().detach() * scale) for scale in scales]
            if pipelined:
                pending = [
                    submit_score_distillation(x, conditioning, client=client, draws=4, seed=seed)
                    for seed, x in enumerate(views)
                ]
                assert [each.estimate(30).seed for each in pending] == [0, 1, 2]
                assert all(each.done() and not each.cancel() for each in pending)
                losses = [each.loss() for each in pending]
            else:
                losses = [
                    score_distillation(x, conditioning, client=client, draws=4, seed=seed)
                    for seed, x in enumerate(views)
                ]
            torch.stack(losses).sum().backward()
        assert weight.grad is not None
        return [loss.item() for loss in losses], weight.grad.numpy()

    (losses, gradient), (expected_losses, expected) = gradients(True), gradients(False)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_the_light_client_does_not_import_torch() -> None:
    check = "import sys, carv_client, carv_client.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_vjp_is_what_backward_gives() -> None:
    """Also in pieces, with a parameter that the latents do not depend on, and more than once."""
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    bias = torch.zeros(5, dtype=torch.float64).requires_grad_()
    unused = torch.zeros(2, 2).requires_grad_()
    x = torch.randn(RENDERS, 3, generator=torch.Generator().manual_seed(1))
    y = torch.tanh(x @ weight + bias.float())
    gradient = np.random.default_rng(2).normal(size=(RENDERS, 5)).astype(np.float32)
    pull_back = vjp_of(y, [weight, unused, bias])
    first, second = np.asarray(pull_back(gradient)), np.asarray(pull_back(2 * gradient))
    attach_gradient(y, gradient, "sum").backward()
    assert weight.grad is not None
    assert bias.grad is not None
    expected = np.concatenate([weight.grad.flatten().numpy(), np.zeros(4), bias.grad.numpy()])
    assert first.dtype == np.float32
    np.testing.assert_allclose(first, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second, 2 * expected, rtol=1e-5, atol=1e-6)


# Whether it finds that drawing again pays goes by the machine's time of a draw.
@pytest.mark.filterwarnings("ignore::carv_client.AmortisationWarning")
def test_a_planner_is_handed_on_and_sees_the_parameters(analytic_server: str) -> None:
    seconds = itertools.count()
    planner = DrawPlanner(warm_up=8, clock=lambda: float(next(seconds)))
    weight = torch.ones(SHAPE[1:]).requires_grad_()
    with TeacherClient(analytic_server) as client:
        c = client.create_conditioning(class_id=1)
        for seed in range(8):
            with planner.upstream():
                generator = torch.Generator().manual_seed(seed)
                x = weight * torch.randn(SHAPE, generator=generator)
            loss, estimate = score_distillation_with_estimate(
                x, c, client=client, draws="auto", planner=planner, guidance_scale=1.0, seed=seed
            )
            planner.observe(estimate, vjp=vjp_of(x, [weight]))
            loss.backward()
    assert planner.variances is not None
    assert planner.costs is not None
    made = planner.plan()
    assert made is not None
    assert made.predicted_ecm is not None
    assert made.reasons[-1] == "variances are those of the parameters' gradient"
