"""The layer profile on the page: time by operator and by node, the baseline's beside the model's."""

from collections.abc import Sequence

from bench.html.parts import Bar, Panel, Part, Tile, figure, percent
from bench.report import NodeProfile, OperatorProfile, ProfileReport, ProfileResult, results_of

SHOWN_NODES = 24  # of a profile; the others are one bar
SHOWN_OPERATORS = 7  # colours that can be told apart; the others are one part


def profile_content(report: ProfileReport) -> tuple[list[Tile], list[Panel]]:
    """Operators and nodes by time, the baseline's beside the model's."""
    results = results_of(report)
    profile = report.model.profile
    hottest = max(profile.nodes, key=lambda node: node.share, default=None)
    tiles = [
        Tile(label="p50 without the profiler", value=f"{figure(profile.p50_ms)} ms"),
        Tile(
            label="multiply-accumulates",
            value="unknown" if profile.macs is None else f"{profile.macs:,}",
            note=f"no rule for {', '.join(profile.uncounted)}" if profile.uncounted else "",
        ),
    ]
    if hottest is not None:
        tiles.append(Tile(label="largest node", value=f"{hottest.share:.1%}", note=hottest.name))
    full = max((node.time_us for _, result in results for node in result.profile.nodes), default=0.0)
    panels = [_operators(results)]
    panels += [_nodes(kind, result, full) for kind, result in results]
    panels += [_operator_table(kind, result) for kind, result in results]
    return tiles, panels


def _operators(results: Sequence[tuple[str, ProfileResult]]) -> Panel:
    totals: dict[str, float] = {}
    for _, result in results:
        for one in result.profile.operators:
            totals[one.operator] = totals.get(one.operator, 0.0) + one.time_us
    names = sorted(totals, key=lambda name: -totals[name])
    styles = {name: f"op{place}" if place < SHOWN_OPERATORS else "rest" for place, name in enumerate(names)}
    full = max(sum(one.time_us for one in result.profile.operators) for _, result in results)
    bars = []
    for kind, result in results:
        ordered = sorted(result.profile.operators, key=lambda one: names.index(one.operator))
        parts = tuple(
            Part(
                styles[one.operator],
                percent(one.time_us, full),
                f"{one.operator}: {_time(one.time_us)}, {one.share:.1%}",
            )
            for one in ordered
        )
        bars.append(Bar(label=kind, parts=parts, value=_time(sum(one.time_us for one in ordered))))
    legend = [(styles[name], name) for name in names[:SHOWN_OPERATORS]]
    legend += [("rest", "others")] if len(names) > SHOWN_OPERATORS else []
    return Panel(
        kind="stack",
        title="Time by operator",
        caption="of one inference, as ONNX Runtime's profiler sees it.",
        data={"bars": bars, "legend": legend},
        wide=True,
    )


def _nodes(kind: str, result: ProfileResult, full: float) -> Panel:
    nodes = result.profile.nodes
    largest = sorted(sorted(nodes, key=lambda node: -node.time_us)[:SHOWN_NODES], key=nodes.index)
    bars = [_node_bar(kind, node, full) for node in largest]
    others = [node for node in nodes if node not in largest]
    if others:
        time = sum(node.time_us for node in others)
        share = sum(node.share for node in others)
        part = Part("rest", percent(time, full), f"{len(others)} other nodes")
        bars.append(Bar(label=f"{len(others)} other nodes", parts=(part,), value=_time(time), note=f"{share:.1%}"))
    shown = "in the order in which they run" + (f"; the {len(largest)} largest" if others else "")
    return Panel(
        kind="bars",
        title=f"Nodes of the {kind}: {result.file.file_name}",
        caption=f"{shown}. MACs: multiply-accumulates.",
        data=bars,
    )


def _node_bar(kind: str, node: NodeProfile, full: float) -> Bar:
    details = [node.operator, "×".join(map(str, node.output_shape)), f"{node.share:.1%}"]
    details += [] if node.macs is None or node.macs == 0 else [f"{node.macs:,} MACs"]
    details += [] if not node.gflops else [f"{node.gflops:.3g} GFLOP/s"]
    part = Part(kind, percent(node.time_us, full), f"{node.name}: {_time(node.time_us)}")
    return Bar(
        label=node.name, parts=(part,), value=_time(node.time_us), note=" · ".join(text for text in details if text)
    )


def _operator_table(kind: str, result: ProfileResult) -> Panel:
    rows = [_operator_row(one) for one in sorted(result.profile.operators, key=lambda one: -one.time_us)]
    return Panel(
        kind="table",
        title=f"Operators of the {kind}",
        caption="",
        data={"head": ("operator", "nodes", "time", "share", "MACs", "GFLOP/s"), "rows": rows},
        wide=True,
    )


def _operator_row(one: OperatorProfile) -> tuple[str, ...]:
    return (
        one.operator,
        f"{one.nodes}",
        _time(one.time_us),
        f"{one.share:.1%}",
        "" if one.macs is None else f"{one.macs:,}",
        "" if not one.gflops else f"{one.gflops:.3g}",
    )


def _time(microseconds: float) -> str:
    return f"{microseconds:.3g} µs" if microseconds < 1000 else f"{microseconds / 1000:.3g} ms"
