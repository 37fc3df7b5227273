"""What a compiled training step takes of memory: counted on inductor's own graphs, of which nothing is allocated.

Inductor differentiates the model ahead of time and decides what the forward pass keeps for the backward pass. Of these
two graphs only some results get memory: those of products, attention and reductions, what such an operation reads, and
what a graph returns. All else is fused into the operation that reads it. tests/test_hardware.py compares the count with
the code that inductor writes.
"""

import operator
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils._pytree import tree_leaves

from blockwise import matmul
from blockwise.hardware import autocast, heap_of, with_gaps

# Operators that inductor leaves to libraries, or that write where an index says; by parts of their names
UNFUSED = ("mm", "product", "attention", "convolution", "index_put", "scatter", "dense_backward")


@dataclass(frozen=True)
class Moment:
    """Bytes beside weights and earlier gradients: `fixed`, and `scaled`, which grow with the batch."""

    fixed: float = 0.0
    scaled: float = 0.0

    def with_more(self, other, times):
        """self after `times` further steps of the size from `other` to self."""
        fixed, scaled = self.fixed - other.fixed, self.scaled - other.scaled
        return Moment(self.fixed + times * fixed, max(self.scaled + times * scaled, 0.0))


def compiled_moments(make_model, layers, batch_size, block_size, device, dtype):
    """The fullest Moments of a compiled forward and backward pass: of the forward pass, and of both ends of backward.

    make_model: number of layers -> the model, on the default device. Models of one and two layers are traced; each
    further layer adds what the second one does. Raises whatever the compiler does where it cannot trace the model.
    """
    first, second = (
        moments_of(partial(make_model, n), batch_size, block_size, device, dtype) for n in (1, min(layers, 2))
    )
    return [b.with_more(a, max(layers - 2, 0)) for a, b in zip(first, second, strict=True)]


def compiled_memory(moments, ratio):
    """Bytes beside weights and earlier gradients, for `ratio` times the batch that the moments were found with."""
    return max(moment.fixed + ratio * moment.scaled for moment in moments)


def moments_of(make_model, batch_size, block_size, device, dtype):
    from torch._inductor.compile_fx import compile_fx  # slow to load
    from torch._subclasses.fake_tensor import FakeTensorMode

    graphs = {}

    def count(graph, inputs, is_backward=False, **more):
        if is_backward in graphs:
            raise RuntimeError("the model compiles to several graphs")
        graphs[is_backward] = graph

        def run(inputs):
            inputs.clear()
            return [empty_like(z.meta["val"]) if isinstance(z, torch.fx.Node) else z for z in outputs(graph)]

        run._boxed_call = True
        return run

    onednn, matmul.ONEDNN = matmul.ONEDNN, False  # the same memory, in fewer operators
    torch.compiler.reset()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
            model = torch.compile(make_model(), backend=partial(compile_fx, inner_compile=count), dynamic=False)
            tokens = torch.zeros(batch_size, block_size, dtype=torch.int64)
            with autocast(device, dtype):
                loss = model(tokens, tokens)
            loss.backward()
    finally:
        matmul.ONEDNN = onednn
        torch.compiler.reset()
    heap = heap_of(device)
    forward, backward = (timeline(graphs[is_backward], heap) for is_backward in (False, True))
    attention = [i for i, (name, _) in enumerate(backward) if "attention" in name] or [len(backward) - 1, 0]
    parts = forward, backward[: attention[0] + 1], backward[attention[-1] :]
    return [max((moment for _, moment in part), key=lambda moment: moment.fixed + moment.scaled) for part in parts]


def timeline(graph, heap=1.0):
    """[(operator, Moment while it runs)] of one of inductor's graphs; its results, if weights' gradients, are fixed.

    What a backward graph is given, but for weights and tokens, is freed after its last use. heap: as in LiveBytes.
    """
    order, base, held = buffers(graph)
    results = {base[node] for node in outputs(graph) if isinstance(node, torch.fx.Node)}
    backward = any(node.name.startswith("tangents") for node in base)
    given = [node for node in base if node.op == "placeholder" and not node.name.startswith("primals")]
    now = {node: size(node, heap) for node in given} if backward else {}
    moments = []
    for node, dying in order:
        dying = [other for other in dying if other in now and other not in results]
        bytes_ = size(node, heap)
        if not is_unfused(node):  # may write where it reads for the last time
            same = next((other for other in dying if now[other] == bytes_), None)
            now.pop(same, None)
        now[node] = bytes_
        fixed = sum(now[result] for result in results if backward and result in now)
        moments.append((str(node.target), Moment(fixed, sum(now.values()) - fixed)))
        for other in (*dying, *(() if node in held else (node,))):
            now.pop(other, None)
    return moments


def buffers(graph):
    """([(node that gets memory, nodes whose memory is read for the last time)], {node: what it is a view of}, kept).

    kept: the nodes with memory that something reads later, or that the graph returns.
    """
    base, real, sources, last = {}, set(), {}, {}
    for node in graph.graph.nodes:
        base[node] = base[node.all_input_nodes[0]] if is_view(node) else node
    real.update(base[node] for node in outputs(graph) if isinstance(node, torch.fx.Node))
    for node in base:
        if node.op == "call_function" and base[node] is node:
            inputs = node.all_input_nodes
            reduces = numbers(node) < max(map(numbers, inputs), default=0)
            real.update([node] if reduces or is_unfused(node) else [])
            real.update(base[other] for other in inputs if is_unfused(node))
    order = []
    for node in base:
        if base[node] is not node or node.op == "output":
            continue
        read = set().union(*(sources[base[other]] for other in node.all_input_nodes))
        own = node.op != "call_function" or node in real
        sources[node] = {node} if own else read
        if own and node.op == "call_function":
            last.update(dict.fromkeys(read, node))
            order.append((node, read))
    kept = set(last) | {base[node] for node in outputs(graph) if isinstance(node, torch.fx.Node)}
    return [(node, [other for other in read if last[other] is node]) for node, read in order], base, kept


def empty_like(z):
    """A tensor like z, which belongs to the compiler's fake tensors, in the mode that is on."""
    return torch.empty_strided(z.shape, z.stride(), dtype=z.dtype, device=z.device) if torch.is_tensor(z) else z


def outputs(graph):
    return tree_leaves(next(node for node in reversed(graph.graph.nodes) if node.op == "output").args)


def is_view(node):
    """Whether a node has the memory of its first input, or is one of the results of an operator with several."""
    if node.op != "call_function" or not node.all_input_nodes:
        return False
    returns = node.target._schema.returns if isinstance(node.target, torch._ops.OpOverload) else ()
    return node.target is operator.getitem or any(r.alias_info and not r.alias_info.is_write for r in returns)


def is_unfused(node):
    return not isinstance(node.target, torch._ops.OpOverload) or any(part in str(node.target) for part in UNFUSED)


def tensors(node):
    return [z for z in tree_leaves(node.meta.get("val")) if isinstance(z, torch.Tensor)]


def numbers(node):
    return max((z.numel() for z in tensors(node)), default=0)


def size(node, heap):
    return sum(with_gaps(z.nbytes, heap) for z in tensors(node))
