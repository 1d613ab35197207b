"""Captured graphs under the native loop: right tokens, and no Python in a step."""

from __future__ import annotations

import ctypes

import torch
from core.core_engines import drain, greedy, options

from dlcore import _core

SEQS, TOKENS, VOCAB = 8, 64, 1000


class SeqLenModel:
    """Graphs that answer every sampled row with its context length modulo the vocabulary."""

    def __init__(self) -> None:
        self.options = options(max_num_seqs=SEQS, max_num_batched_tokens=TOKENS)
        sizes = (
            _core.StepLayout.max_input_bytes(self.options),
            _core.StepLayout.max_output_bytes(self.options),
        )
        self.arenas = [torch.zeros(n, dtype=torch.uint8, device="cuda") for n in sizes]
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.engine = _core.Engine(
            self.options,
            device="cuda",
            input_arena=self.arenas[0].data_ptr(),
            output_arena=self.arenas[1].data_ptr(),
        )
        for kind, tokens in (("decode", SEQS), ("mixed", TOKENS)):
            key = _core.StepKey(kind, "full", tokens, SEQS)
            self.engine.add_graphs(key, [self.capture(key)])
        torch.cuda.synchronize()
        self.engine.start()

    def capture(self, key: _core.StepKey) -> int:
        layout = _core.StepLayout(self.options, key)
        places = {name: offset for name, _, offset, _ in [*layout.inputs(), *layout.outputs()]}
        lens, sampled = (
            arena[places[name] : places[name] + 4 * SEQS].view(torch.int32)
            for arena, name in zip(self.arenas, ("seq_lens", "sampled_tokens"), strict=True)
        )
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph):
            torch.remainder(lens, VOCAB, out=sampled)
        graph.instantiate()
        self.graphs.append(graph)
        return int(graph.raw_cuda_graph_exec())


def test_graphs_give_each_request_its_own_tokens() -> None:
    model = SeqLenModel()
    for request_id in range(20):
        model.engine.submit(request_id, [1] * (request_id + 1), greedy(50))
    finished = drain(model.engine, 20)
    model.engine.stop()
    for request_id in range(20):
        assert finished[request_id][0] == list(range(request_id + 1, request_id + 51))


def test_graphs_are_launched_while_the_gil_is_held() -> None:
    model = SeqLenModel()
    for request_id in range(SEQS):
        model.engine.submit(request_id, [1, 2, 3], greedy(4000))
    assert model.engine.poll(5.0) is not None
    before = model.engine.stats()["num_steps"]
    ctypes.PyDLL(None).usleep(100_000)  # PyDLL, unlike CDLL, keeps the GIL
    steps = model.engine.stats()["num_steps"] - before
    model.engine.stop()
    # One that is in flight and one launched before, if the engine needed the GIL.
    assert steps > 10, f"{steps} steps in 100 ms"
