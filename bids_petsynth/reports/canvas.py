"""What all pictures of the reports share: size and style, colours, and their bytes as JPEG or SVG.

The same picture gives the same bytes. Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

import io
from dataclasses import dataclass

BLUE, ORANGE, GREEN, VERMILION, SKY, YELLOW = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#F0E442"
_MARK = "SYNTHETIC"
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.hashsalt": "petsynth",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "text.color": "#222222",
}


@dataclass(frozen=True)
class Figure:
    """A picture: what it shows (``desc`` label), its bytes, its text for those who cannot see it, and its caption."""

    desc: str
    content: bytes
    alt: str
    caption: str

    @property
    def extension(self) -> str:
        """``jpg`` or ``svg``."""
        return "jpg" if self.content.startswith(b"\xff\xd8") else "svg"


def new_canvas(width: float, height: float):
    """A matplotlib figure of that size in inches, in the style of all reports."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure as Canvas

    matplotlib.rcParams.update(_STYLE)
    return Canvas(figsize=(width, height))


def jpeg(canvas, dpi: int, synthetic: bool = False) -> bytes:
    """A picture of an image: a fifth of a PNG's size, colours at full resolution.

    One of ``synthetic`` PET says so in its lower right corner, for those who see it without its page.
    """
    if synthetic:
        dark = sum(canvas.get_facecolor()[:3]) < 1.5
        canvas.text(0.995, 0.015, _MARK, ha="right", va="bottom", fontsize=8, color="white" if dark else "#222222")
    out = io.BytesIO()
    options = {"quality": 88, "subsampling": 0, "optimize": True}
    canvas.savefig(out, format="jpeg", dpi=dpi, facecolor=canvas.get_facecolor(), pil_kwargs=options)
    return out.getvalue()


def svg(canvas, synthetic: bool = False) -> bytes:
    """The figure as SVG whose text is text; the same figure gives the same bytes.

    One of ``synthetic`` PET says so above its upper right corner, where nothing is drawn.
    """
    import matplotlib

    if synthetic:
        canvas.text(0.995, 1, _MARK, ha="right", va="bottom", fontsize=8)
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        canvas.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight", pad_inches=0.05
        )
    # the text stays text: where the font is missing, another without serifs takes its place
    return out.getvalue().replace(b"'DejaVu Sans'", b"'DejaVu Sans', Verdana, Arial, sans-serif")


def bare(axes, background: str) -> None:
    """Take ticks and frame off."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor(background)
    for side in axes.spines.values():
        side.set_visible(False)


def colour_bar(canvas, axes, picture, label: str, ink: str) -> None:
    """A colour bar with its unit."""
    axes.set_axis_off()
    bar = canvas.colorbar(picture, cax=axes.inset_axes([0.1, 0.08, 0.3, 0.84]))
    bar.set_label(label, color=ink)
    bar.ax.tick_params(colors=ink)
    bar.outline.set_edgecolor(ink)
    bar.solids.set_alpha(1)
