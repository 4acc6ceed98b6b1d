"""What is drawn of a figure, and that it stays inside."""

from matplotlib.backends.backend_agg import FigureCanvasAgg


def drawn(figure):
    """Boxes of all that is drawn, in shares of the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for artist in (*figure.texts, *figure.legends):
        artist.set_in_layout(True)
    box = figure.get_tightbbox(renderer)
    return box.transformed(figure.dpi_scale_trans + figure.transFigure.inverted())


def check_inside(figure):
    box = drawn(figure)
    assert -0.001 <= box.x0 and box.x1 <= 1.001, box
    assert -0.001 <= box.y0 and box.y1 <= 1.001, box
