import io

from rich.console import Console

from compress.train.progress import ProgressView

RECORD = {
    "epoch": 2, "loss": 0.25, "accuracy": 0.5, "validation_accuracy": 0.75, "dead_share": 0.125, "seconds": 1.5,
}  # fmt: skip


def test_outside_a_terminal_there_is_a_line_an_epoch_and_no_bar():
    out = io.StringIO()
    with ProgressView(Console(file=out), "l0", epochs=4, steps_per_epoch=10) as view:
        assert not view.due()
        view.epoch(RECORD)
        view.epoch({**RECORD, "dead_share": None})
    assert out.getvalue() == (
        "l0 2/4  loss 0.2500  accuracy 50.00%  validation 75.00%  dead 12.5%  1.5 s\n"
        "l0 2/4  loss 0.2500  accuracy 50.00%  validation 75.00%  1.5 s\n"
    )


def test_in_a_terminal_the_bar_tells_loss_accuracy_dead_groups_and_the_time_left():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    with ProgressView(console, "l0", epochs=4, steps_per_epoch=10) as view:
        assert view.due()
        assert not view.due()  # figures were just collected
        view.update(1, 5, loss=0.25, accuracy=0.5, dead_share=0.125)
    shown = out.getvalue()
    assert "l0 2/4" in shown
    assert "15/40 loss 0.2500  accuracy 50.00%  dead 12.5% -:--:--" in shown
