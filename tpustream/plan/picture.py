"""A plan as a picture: the memory of a device by part, and the decode step by part beside its floor."""

from pathlib import Path

from tpustream.plan.chips import GIB
from tpustream.plan.plan import Plan
from tpustream.plan.report import scopes

COLORS = ("#2a6f97", "#61a5c2", "#a9d6e5", "#e9c46a", "#f4a261", "#e76f51", "#9c6644", "#c8c8c8")


def check_matplotlib() -> None:
    """Raises ValueError when there is no matplotlib, before anything is compiled."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("plot: wanted matplotlib installed, got none; pip install matplotlib") from None


def save_picture(path: Path, plan: Plan) -> None:
    """Draw the plan into an image file; its ending says which kind. Raises ValueError for an unknown one."""
    from matplotlib.figure import Figure  # optional, and slow to import

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(f"{plan.placer.model.name} on {plan.topology}, {plan.placer.engine.slots} slots")
    memory, step = figure.subplots(1, 2)
    _stack(memory, {name: size / GIB for name, size in plan.budget.parts.items()}, "GiB")
    memory.axvline(plan.budget.available / GIB, color="black", label="available")
    memory.set(title="memory of a device", xlabel="GiB")
    _stack(step, {name: 1e3 * seconds for name, seconds in scopes(plan).items()}, "ms")
    step.axvline(1e3 * plan.decode.floor, color="black", label=f"floor {1e3 * plan.decode.floor:.2f} ms")
    step.set(title=f"decode step, {1e3 * plan.decode.seconds:.2f} ms", xlabel="ms")
    for axes in (memory, step):
        axes.set_yticks([])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)


def _stack(axes, parts: dict[str, float], unit: str) -> None:
    left = 0.0
    for color, (name, size) in zip(COLORS, parts.items(), strict=False):
        axes.barh(0, size, left=left, color=color, label=f"{name} {size:.2f} {unit}")
        left += size
