"""Incremental generation of a map (spec 6.2): line by line, each introducing at most one object beside two that are placed.

Three ways to write one, all ending in the same `IncrementalMap`:

    single pass         one decode under the grammar, then `IncrementalMap().read(text)`
    line by line        `IncrementalMap().extend(writer)`, where a refused line is sampled once more
    streaming           `extend` once per chunk of frames, each with the writer of that chunk; the text so far is all it sees

Query-conditioned: `IncrementalMap(queried=["bed", "desk", "lamp"])` stops as soon as those hang together.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import GenerationMixin, LogitsProcessorList, PreTrainedTokenizerBase

from allocentric.graph.decode import MapGrammar, MapLogitsProcessor
from allocentric.graph.grammar import CLOSE, OPEN, parse_map, write_line
from allocentric.graph.solve import Layout, solve_layout
from allocentric.graph.triplets import Node, Triplet, local_triplet

MAX_LINES, MAX_DROPS = 64, 3
CONSISTENT = 2.0  # cells between a line's third object and where the others say it is; beyond, the line counts less
LESS = 0.3
RETRY_TEMPERATURE = 0.3

# (text of the map so far, temperature) -> the next line, or "</map>". Temperature 0 is greedy.
Writer = Callable[[str, float], str]


@dataclass
class IncrementalMap:
    """A map that grows line by line.

    queried      labels that the map is about; it is finished once all of them hang together. Empty: everything.
    triplets     accepted lines in order, with their `weights` (1, or less where a line contradicts the others).
    refused      lines that were dropped, and why.
    finished     whether the map was ended, by the writer or by a limit.
    """

    queried: tuple[str, ...] = ()
    triplets: list[Triplet] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    finished: bool = False

    @property
    def placed(self) -> dict[Node, None]:
        """Objects in order of introduction."""
        return dict.fromkeys(node for t in self.triplets for node in t.nodes)

    @property
    def text(self) -> str:
        """The map so far, without its end unless finished: what a writer continues."""
        repeated = {label for label, instance in self.placed if instance > 1}
        lines = "".join(write_line(t, repeated) for t in self.triplets)
        return f"{OPEN}\n{lines}{CLOSE if self.finished else ''}"

    def layout(self) -> Layout:
        """All accepted lines solved jointly, by weight."""
        return solve_layout(self.triplets, weights=self.weights)

    def accept(self, line: str) -> str:
        """Add a line, or say why not; "" when it was added."""
        parsed = parse_map(line)
        if len(parsed.triplets) != 1 or parsed.n_bad:
            return parsed.dropped[0] if parsed.dropped else f"expected one line, found {parsed.n_lines}"
        triplet = parsed.triplets[0]
        placed = self.placed
        known = [node for node in triplet.nodes if node in placed]
        if placed and len(known) < 2:
            return f"introduces {3 - len(known)} objects, expected at most one"
        if any(set(triplet.nodes) == set(other.nodes) for other in self.triplets):
            return "these three objects have a line already"
        weight = LESS if len(known) == 3 and self._off(triplet) > CONSISTENT else 1.0
        self.triplets.append(triplet)
        self.weights.append(weight)
        return ""

    def read(self, text: str) -> "IncrementalMap":
        """Take a map that was written in one pass, lines or JSON, line by line under the same rules."""
        parsed = parse_map(text)
        self.refused += [tuple(dropped.rsplit(": ", 1)) for dropped in parsed.dropped]
        for triplet in parsed.triplets:
            if not self.finished:
                self._take(write_line(triplet))
        self.finished = True
        return self

    def extend(self, write: Writer, max_lines: int = MAX_LINES, max_drops: int = MAX_DROPS) -> "IncrementalMap":
        """Write lines until the writer ends the map, `max_lines` stand, or `max_drops` in a row are refused.

        A refused line is written once more at a higher temperature. The end of a chunk does not end the map: call again with
        the next writer.
        """
        drops = 0
        while not self.finished and len(self.triplets) < max_lines and drops < max_drops:
            line = write(self.text, 0.0)
            if CLOSE in line:
                break
            if self.accept(line):
                line = write(self.text, RETRY_TEMPERATURE)
                if CLOSE in line:
                    break
                drops = 0 if self._take(line) else drops + 1
                continue
            drops = 0
            self.finished = self._answers_query()
        return self

    def stream(self, writers: Iterable[Writer], max_lines: int = MAX_LINES, max_drops: int = MAX_DROPS) -> "IncrementalMap":
        """`extend` by one writer after the other, one per chunk of frames; then the map is finished."""
        for write in writers:
            self.extend(write, max_lines, max_drops)
        self.finished = True
        return self

    def _take(self, line: str) -> bool:
        reason = self.accept(line)
        if reason:
            self.refused.append((line.strip(), reason))
        else:
            self.finished = self._answers_query()
        return not reason

    def _answers_query(self) -> bool:
        return bool(self.queried) and set(self.queried) <= {label for label, _ in self.placed}

    def _off(self, triplet: Triplet) -> float:
        """Cells between where a line of known objects puts its last one and where the lines before do."""
        layout = self.layout()
        points = [layout.place(node) for node in triplet.nodes]
        if any(point is None for point in points):
            return 0.0
        expected = local_triplet(triplet.nodes, np.array(points)).points
        own = triplet.points
        return float(np.linalg.norm((expected[2] - expected[0]) - (own[2] - own[0])))


def model_writer(
    model: GenerationMixin,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    labels: Iterable[str] | None = None,
    metric: bool | None = None,
    max_new_tokens: int = 96,
    seed: int = 0,
    **inputs,
) -> Writer:
    """A writer that lets a language model write each line under the grammar.

    prompt   text before the map. `inputs` go to `generate` as they are: pixel values, grids, or features computed before.
    """
    grammar = MapGrammar("line", labels, metric)

    def write(text: str, temperature: float) -> str:
        ids = tokenizer(prompt + text, return_tensors="pt", add_special_tokens=False)["input_ids"].to(model.device)
        constrain = MapLogitsProcessor(tokenizer, ids.shape[1], grammar, max_new_tokens - 1)
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # manual_seed seeds all of them
            torch.manual_seed(seed + len(text))
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                logits_processor=LogitsProcessorList([constrain]),
                pad_token_id=tokenizer.eos_token_id,
                **sampling,
                **inputs,
            )
        return "".join(constrain.texts[token] for token in written[0, ids.shape[1] :].tolist())

    return write


def write_map_with(
    model: GenerationMixin,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    labels: Iterable[str] | None = None,
    max_new_tokens: int = 1024,
    queried: tuple[str, ...] = (),
    **inputs,
) -> IncrementalMap:
    """A map in one decode under the grammar, then taken line by line (single pass)."""
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"].to(model.device)
    constrain = MapLogitsProcessor(tokenizer, ids.shape[1], MapGrammar("map", labels), max_new_tokens - 1, MAX_LINES)
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        logits_processor=LogitsProcessorList([constrain]),
        pad_token_id=tokenizer.eos_token_id,
        **inputs,
    )
    text = "".join(constrain.texts[token] for token in written[0, ids.shape[1] :].tolist())
    return IncrementalMap(queried).read(text)
