"""Static memory: weight bytes, and the peak of activation bytes in the best order of execution.

What a planner for a microcontroller would need at least, by the graph of the file alone:

- A value takes its bytes from the node that makes it to the last node that reads it; inputs of the graph from the
  start, outputs to the end. While a node runs, its inputs and outputs are there together. Weights, and what is
  computed of weights alone, are counted as weights; scratch memory of kernels is not counted.
- A node that only names its input anew (`VIEWS`) takes nothing.
- An elementwise node (`ELEMENTWISE`) writes over an input that nobody reads afterwards, if the bytes are the same; the
  graph's inputs too. So Conv and Relu need what a fused kernel needs.
- Quantised graphs are counted as integer kernels run them: what is dequantised stays as it was stored, and what goes
  into nothing but QuantizeLinear, through elementwise nodes or not, is made as the quantised value at once.

The best order is found by a search over sets of executed nodes for the path whose largest step is the smallest
(Dijkstra's algorithm with the maximum in place of the sum). Nodes that need no more than the path already took, and
leave no more behind, are executed at once: it can only help. The search is exact unless it meets `MAX_STATES`; then the
better one of the file's and a greedy order is an upper bound, and the smallest open path a lower one.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.measure.values import computing, values_of
from bench.onnx_graph import Graph, Node, read_graph
from bench.protocol import Value
from bench.report import Settings, StaticMemory

MAX_STATES = 20_000  # a few seconds in Python; ResNets, MobileNets and Inceptions take some hundred

VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "DequantizeLinear"}
ELEMENTWISE = {
    *("Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip", "Elu", "Selu", "Celu", "Gelu", "Mish", "Swish"),
    *("Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign", "Erf", "Abs", "Neg", "Exp", "Log", "Sqrt"),
    *("Reciprocal", "Floor", "Ceil", "Round", "Sign", "Not", "Cast", "BatchNormalization"),
    *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "And", "Or", "Xor", "Where"),
}


@dataclass(frozen=True)
class Step:
    """A node by numbers: the steps it waits for, and the storages that it reads, makes, and may write over."""

    after: frozenset[int]
    reads: frozenset[int]
    makes: frozenset[int]
    over: frozenset[int] = frozenset()


class Plan:
    """The graph as a question of storages.

    Args:
        steps: In an order in which they can be executed.
        sizes: Bytes of each storage.
        start: Storages that are there before the first step.
        kept: Storages that stay to the end.
    """

    def __init__(self, steps: Sequence[Step], sizes: Sequence[int], start: Iterable[int], kept: Iterable[int]) -> None:
        self.steps, self.sizes, self.kept = steps, sizes, frozenset(kept)
        self.live_at_start = sum(sizes[storage] for storage in set(start))
        self.everything = (1 << len(steps)) - 1
        self._after = [sum(1 << number for number in step.after) for step in steps]
        self._readers = [0] * len(sizes)
        for number, step in enumerate(steps):
            for storage in step.reads:
                self._readers[storage] |= 1 << number

    def ready(self, done: int) -> Iterator[int]:
        """Steps that can be executed after the set `done`: bit i stands for step i."""
        for number, after in enumerate(self._after):
            if not done >> number & 1 and not after & ~done:
                yield number

    def execute(self, number: int, done: int, live: int) -> tuple[int, int]:
        """Bytes while step `number` runs, and after it, if `live` bytes are there after the set `done`."""
        step, further = self.steps[number], done | 1 << number
        freed = {
            storage
            for storage in step.reads | step.makes
            if storage not in self.kept and not self._readers[storage] & ~further
        }
        during = live + sum(self.sizes[storage] for storage in step.makes)
        written_over = max((self.sizes[storage] for storage in step.over & freed), default=0)
        return during - written_over, during - sum(self.sizes[storage] for storage in freed)


def peak_of(plan: Plan, order: Iterable[int]) -> int:
    """The most bytes at once in one order."""
    done, live = 0, plan.live_at_start
    peak = live
    for number in order:
        during, live = plan.execute(number, done, live)
        done |= 1 << number
        peak = max(peak, during)
    return peak


def greedy_order(plan: Plan) -> list[int]:
    """Always the step that leaves the least behind, and of these the one that needs the least."""
    done, live = 0, plan.live_at_start
    order = []
    while done != plan.everything:
        _, _, number, live = min(
            (after, during, number, after)
            for number in plan.ready(done)
            for during, after in [plan.execute(number, done, live)]
        )
        order.append(number)
        done |= 1 << number
    return order


def best_peak(plan: Plan, max_states: int = MAX_STATES) -> tuple[int, int]:
    """Upper and lower bound of the smallest peak of any order; equal where the search came to its end."""
    live = plan.live_at_start
    queue = [(live, 0, 0, live)]
    seen: set[int] = set()
    while queue and len(seen) < max_states:
        peak, _, done, live = heapq.heappop(queue)
        if done == plan.everything:
            return peak, peak
        if done in seen:
            continue
        seen.add(done)
        free = _free_step(plan, peak, done, live)
        for number in plan.ready(done) if free is None else [free]:
            during, after = plan.execute(number, done, live)
            further = done | 1 << number
            if further not in seen:
                heapq.heappush(queue, (max(peak, during), -further.bit_count(), further, after))
    upper = min(peak_of(plan, range(len(plan.steps))), peak_of(plan, greedy_order(plan)))
    return upper, min(queue[0][0], upper)


def _free_step(plan: Plan, peak: int, done: int, live: int) -> int | None:
    """A step that can only help: it needs no more than `peak`, and leaves no more than `live` behind."""
    for number in plan.ready(done):
        during, after = plan.execute(number, done, live)
        if during <= peak and after <= live:
            return number
    return None


def plan_of(graph: Graph, values: Mapping[str, Value]) -> Plan:
    """The storages and steps of a graph.

    Raises:
        BenchError: A part of the graph cannot be planned; the message says which.
    """
    nodes, constants = computing(graph)
    for node in nodes:
        if node.has_body:
            raise BenchError(f"node {node.name or node.outputs[0]} ({node.operator}) computes graphs of its own")
    names = {name for node in nodes for name in (*node.inputs, *node.outputs) if name} | set(graph.inputs)
    for name in names - constants:
        if name in values and not values[name].dtype.startswith("tensor("):
            raise BenchError(f"value {name} is a {values[name].dtype}, no tensor")
    home = _homes(graph, nodes, constants)
    storages = sorted({_root(home, name) for name in names - constants})
    unknown = [name for name in storages if name not in values]
    if unknown:
        raise BenchError(f"the size of value {unknown[0]} is not known")
    place = {name: number for number, name in enumerate(storages)}
    sizes = [values[name].value_bytes for name in storages]

    def of(found: Iterable[str]) -> frozenset[int]:
        return frozenset(place[_root(home, name)] for name in found if name and name not in constants)

    made = set(of(graph.inputs))
    maker: dict[str, int] = {}
    steps = []
    for number, node in enumerate(nodes):
        reads, makes = of(node.inputs), of(node.outputs) - made
        elementwise = node.operator in ELEMENTWISE and node.domain == "" and makes
        over = {storage for storage in reads if elementwise and sizes[storage] == sizes[min(makes)]}
        after = frozenset(maker[name] for name in node.inputs if name in maker)
        steps.append(Step(after, reads, makes, frozenset(over)))
        made |= makes
        maker |= dict.fromkeys(node.outputs, number)
    return Plan(steps, sizes, start=of(graph.inputs), kept=of(graph.outputs))


def _homes(graph: Graph, nodes: list[Node], constants: set[str]) -> dict[str, str]:
    """The value in whose storage another one lies, step by step; `_root` follows the steps."""
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    fixed = {*graph.inputs, *graph.outputs}
    home: dict[str, str] = {}
    for node in reversed(nodes):  # what becomes quantised is known from behind
        name = node.outputs[0]
        if len(readers.get(name, ())) != 1 or name in fixed or node.operator in VIEWS:
            continue
        (reader,) = readers[name]
        single = [other for other in reader.inputs if other and other not in constants] == [name]
        narrowed = reader.operator in ELEMENTWISE and reader.outputs[0] in home
        if single and (reader.operator == "QuantizeLinear" or narrowed):
            home[name] = reader.outputs[0]
    for node in nodes:
        if node.operator in VIEWS and node.domain == "" and node.inputs[0] not in constants:
            home[node.outputs[0]] = node.inputs[0]
    return home


def _root(home: Mapping[str, str], name: str) -> str:
    while name in home:
        name = home[name]
    return name


def static_memory(path: Path, settings: Settings, timeout_s: float) -> StaticMemory:
    """The figures of one file; the sizes of values come from one inference on this machine.

    Raises:
        BenchError: The file is no ONNX file.
    """
    graph = read_graph(path)
    try:
        plan = plan_of(graph, values_of(path, graph, settings, timeout_s))
    except BenchError as error:
        return StaticMemory(
            weight_bytes=graph.weight_bytes,
            peak_activation_bytes=None,
            peak_is_exact=None,
            lower_bound_bytes=None,
            file_order_bytes=None,
            unknown_because=str(error),
        )
    upper, lower = best_peak(plan)
    return StaticMemory(
        weight_bytes=graph.weight_bytes,
        peak_activation_bytes=upper,
        peak_is_exact=upper == lower,
        lower_bound_bytes=lower,
        file_order_bytes=peak_of(plan, range(len(plan.steps))),
        unknown_because=None,
    )
