"""Triplets, chains, grammar, parser, constrained decoding and incremental generation."""

import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LogitsProcessorList, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from allocentric.graph.decode import MapGrammar, MapLogitsProcessor
from allocentric.graph.grammar import clean_label, map_to_json, parse_map, write_line, write_map
from allocentric.graph.grid import parse_grid
from allocentric.graph.incremental import IncrementalMap, model_writer, write_map_with
from allocentric.graph.triplets import Triplet, build_chain, chain, local_triplet, usable_triples
from allocentric.model import NANO

ABC = (("bed", 1), ("desk", 1), ("chair", 2))
LINE = "bed(2,7) desk(9,5) chair.2(6,3) r=3.4\n"
MAP = Triplet(ABC, ((2, 7), (9, 5), (6, 3)), 3.4)


# --- Triplets ---


def test_cells_are_isotropic_and_the_short_axis_is_centred():
    triplet = local_triplet(ABC, np.array([[1.0, 1.0], [5.0, 1.0], [3.0, 2.0]]))
    assert triplet.extent == 4.0
    assert [x for x, _ in triplet.cells] == [0, 9, 5]
    y = [y for _, y in triplet.cells]
    assert y[2] - y[0] == 2 and y[0] == 3  # 1 m of 4 m is 2.5 cells; 3 cells in the middle of 10


def test_ego_puts_the_second_object_straight_ahead():
    triplet = local_triplet(ABC, np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0]]), "ego")
    a, b, c = triplet.points
    assert b[0] == a[0] and b[1] - a[1] == 9
    assert c[0] < a[0]  # to the left of one who looks along x


def test_a_triplet_forgets_where_it_was():
    points = np.array([[0.0, 0.0], [2.0, 1.0], [1.0, 3.0]])
    assert local_triplet(ABC, points) == local_triplet(ABC, points + np.array([7, -4]))
    assert local_triplet(ABC, points, metric=False) == local_triplet(ABC, 2 * points, metric=False)


def test_bad_triplets_are_refused():
    with pytest.raises(ValueError, match="different"):
        Triplet((("a", 1), ("a", 1), ("b", 1)), ((0, 0), (1, 1), (2, 2)))
    with pytest.raises(ValueError, match="cells"):
        Triplet(ABC, ((0, 0), (1, 10), (2, 2)))
    with pytest.raises(ValueError, match="random"):
        local_triplet(ABC, np.zeros((3, 2)), "random")


def test_usable_triples_leave_out_lines_and_distant_things():
    points = np.array([[0.0, 0], [1, 0], [2, 0.01], [1, 1], [9, 9]])
    usable = usable_triples(points)
    assert usable[0, 1, 3] and not usable[0, 1, 2] and not usable[:, :, 4].any()
    gaps = np.full((5, 5), 0.1)
    assert not usable_triples(points, gaps).any()


@given(st.integers(3, 15), st.integers(1, 4), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_chain_introduces_one_object_at_a_time(n, redundancy, seed):
    points = np.random.default_rng(seed).random((n, 2)) * [6, 5]
    triples = chain(points, redundancy=redundancy)
    placed: set[int] = set()
    for k, triple in enumerate(triples):
        new = set(triple) - placed
        assert len(set(triple)) == 3 and (len(new) <= 1 if k else len(new) == 3)
        placed |= new
    assert placed == set(range(n))
    assert len({frozenset(t) for t in triples}) == len(triples)


def test_redundancy_adds_anchors():
    points = np.random.default_rng(1).random((12, 2)) * [6, 5]
    assert len(chain(points, redundancy=1)) == 10 < len(chain(points, redundancy=3)) <= 28
    assert chain(points[:2]) == []
    with pytest.raises(ValueError, match="redundancy"):
        chain(points, redundancy=0)


# --- Text ---


def test_the_specification_s_line():
    parsed = parse_map(f"<map>\n{LINE}</map>")
    assert parsed.triplets == (Triplet(ABC, ((2, 7), (9, 5), (6, 3)), 3.4),) and parsed.closed
    assert write_line(parsed.triplets[0]) == LINE
    assert json.loads(map_to_json(parsed.triplets)) == {
        "triplets": [{"objects": [["bed", 1, [2, 7]], ["desk", 1, [9, 5]], ["chair", 2, [6, 3]]], "extent_m": 3.4}]
    }


labels = st.from_regex(r"[a-z][a-z0-9_-]{0,5}( [a-z0-9_-]{1,5})?", fullmatch=True)
cells = st.tuples(st.integers(0, 9), st.integers(0, 9))
triplets = st.builds(
    Triplet,
    st.lists(st.tuples(labels, st.integers(1, 12)), min_size=3, max_size=3, unique=True).map(tuple),
    st.tuples(cells, cells, cells),
    st.none() | st.integers(3, 99).map(lambda tenths: tenths / 10),
)


@given(st.lists(triplets, max_size=4))
@settings(max_examples=40, deadline=None)
def test_writing_and_parsing_are_inverse(some):
    for text in (write_map(some), map_to_json(some)):
        parsed = parse_map(text)
        assert parsed.triplets == tuple(some) and parsed.n_bad == 0 and parsed.n_lines == len(some)


@given(st.text(max_size=200) | st.text(alphabet='<map>/\n bed.(),019r={}[]":`', max_size=200))
@settings(max_examples=300, deadline=None)
def test_the_parser_never_raises_and_counts_what_it_drops(text):
    parsed = parse_map(text)
    assert parsed.n_lines == len(parsed.triplets) + parsed.n_bad and len(parsed.dropped) == parsed.n_bad


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["triplets", "objects", "extent_m", "x"]), inner),
)


@given(json_values)
@settings(max_examples=200, deadline=None)
def test_the_parser_never_raises_on_json(value):
    parsed = parse_map(json.dumps({"triplets": [{"objects": value}, value]}))
    assert parsed.n_lines == 2 == len(parsed.triplets) + parsed.n_bad


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"triplets": ' + "9" * 5000 + "}", "a(1,1) b(2,2) c(3,3) r=" + "9" * 400, "<map>" * 1000]
)
def test_monstrous_input_is_dropped(text):
    assert parse_map(text).triplets == ()


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        (f"Here it is:\n```\n<map>\n{LINE}</map>\n```\nDone.", 1, 0),
        (f"<map>\n{LINE}bed(2,7) desk(9", 1, 1),  # cut off
        (LINE + LINE.replace("9,5", "10,5"), 1, 1),
        ("BED ( 2, 7 ), Desk(9,5),Chair.2(6,3)  r = 3.4 m", 1, 0),
        ("bed(1,1) bed(2,2) desk(3,3)", 0, 1),
        ("bed.0(1,1) sofa(2,2) desk(3,3)", 0, 1),
        ("bed(1,1) sofa(2,2) desk(3,3) r=0.0", 0, 1),
        ("```json\n" + json.dumps({"triplets": [{"objects": [["Bed", 1, [2, 7]], ["desk", 1, [9, 5]], ["sofa", 1, [0, 0]]]}]}) + "\n```", 1, 0),  # noqa: E501
        ("Here is the map:\n```json\n" + map_to_json([MAP]) + "\n```\nThat is all.", 1, 0),
        (map_to_json([MAP, MAP, MAP])[:-40], 2, 1),  # cut off
        (map_to_json([MAP]).replace("[2, 7]", '["2", 7.0]').replace("3.4", '"3.4"'), 1, 0),
        (map_to_json([MAP]).replace("[2, 7]", "[2.5, 7]"), 0, 1),
        ("".join(f"{mark} {LINE}" for mark in ("-", "*", "1.", "2)")), 4, 0),
        (f"<MAP>\n{LINE}</MAP>\nbed is left", 1, 0),
        (LINE.replace("2,7", "2.0, 7"), 1, 0),
        (LINE.replace("bed", "bed" * 200), 0, 1),
        ('[I think]\n' + LINE + '{"note": 1}', 1, 2),
    ],
)  # fmt: skip
def test_tolerance(text, good, bad):
    parsed = parse_map(text)
    assert (len(parsed.triplets), parsed.n_bad) == (good, bad), parsed


@pytest.mark.parametrize("parse", [parse_map, parse_grid])
def test_blanks_cost_no_time(parse):
    start = time.process_time()
    for n in (400, 3000):
        parse("a(1,2)a(1,2)a" + " " * n + "(1,2)" + " " * n + "!")
        parse("a(1,2" + " " * n + ")" + "a b" * n + "!")
    assert time.process_time() - start < 0.5


def test_what_was_cut_off_is_not_closed():
    assert parse_map(map_to_json([MAP])).closed and not parse_map(map_to_json([MAP, MAP])[:-9]).closed
    assert parse_map(f"<MAP>\n{LINE}</MAP>").closed


def test_labels_are_spelled_as_the_grammar_wants():
    assert clean_label("  TV-Stand (big)") == "tv-stand big"
    with pytest.raises(ValueError, match="letter"):
        clean_label("42")


# --- Constrained decoding ---


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([LINE * 3, "the sofa is é left.\n\n", "</map> <map>\nlamp(1,1)"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def sentence_piece_like():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    characters = [*"abcdefghijklmnopqrstuvwxyz0123456789_-.,()=<>/\n▁"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<eos>", "<unk>"], unk_token="<unk>", initial_alphabet=characters
    )
    tokenizer.train_from_iterator([LINE, "bed desk chair lamp sofa", "<map>", "</map>"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


TOKENIZERS = {"byte-level": byte_level, "metaspace": sentence_piece_like, "nano": lambda: AutoTokenizer.from_pretrained(NANO)}


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def tokenizer(request):
    return TOKENIZERS[request.param]()


def sampled(processor, vocabulary, steps, seed):
    """What a model that knows nothing writes under the grammar: uniform over what is allowed."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros((1, 1), dtype=torch.long)
    for _ in range(steps):
        scores = processor(ids, torch.zeros((1, vocabulary)))
        token = torch.multinomial(scores.softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, token], dim=1)
        if int(token) == processor.end:
            break
    return ids[0, 1:].tolist()


@pytest.mark.parametrize("room", [45, 90])
def test_random_models_write_only_complete_maps(tokenizer, room):
    processor = MapLogitsProcessor(tokenizer, 1, max_new_tokens=room)
    for seed in range(2):
        ids = sampled(processor, len(tokenizer) + 5, room + 1, seed)
        assert ids[-1] == processor.end and len(ids) <= room + 1
        text = tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False)
        assert text.strip().startswith("<map>\n") and text.endswith("</map>")
        parsed = parse_map(text)
        same = [
            reason for reason in parsed.dropped if "different objects" in reason
        ]  # the grammar does not forbid a(0,0) a(0,0) a(0,0)
        assert parsed.closed and parsed.n_bad == len(same), parsed.dropped


def test_labels_extent_and_lines_can_be_prescribed(tokenizer):
    grammar = MapGrammar(labels=["bed", "coffee table"], metric=True)
    processor = MapLogitsProcessor(tokenizer, 1, grammar, max_new_tokens=400, max_lines=2)
    text = tokenizer.decode(sampled(processor, len(tokenizer), 400, 0)[:-1], clean_up_tokenization_spaces=False)
    lines = text.strip().splitlines()[1:-1]
    assert len(lines) <= 2
    for line in lines:
        assert " r=" in line
        for word in line.split(" r=")[0].split(") "):
            assert word.split("(")[0].split(".")[0] in ("bed", "coffee table")


def test_with_labels_no_line_names_an_object_twice(tokenizer):
    processor = MapLogitsProcessor(tokenizer, 1, MapGrammar(labels=["bed", "bedside table"]), max_new_tokens=120)
    for seed in range(3):
        ids = sampled(processor, len(tokenizer), 121, seed)
        parsed = parse_map(tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False))
        assert parsed.closed and parsed.n_bad == 0, parsed.dropped


@pytest.mark.parametrize("labels", [["bed"], ["bed", "bedroom"], None])
def test_the_grammar_knows_how_far_the_end_is(labels):
    grammar = MapGrammar("line", labels)
    generator = np.random.default_rng(0)
    for _ in range(60):
        state, left = grammar.start, int(generator.integers(20, 80))
        while grammar.cost(state):
            can = [then for then in grammar.allowed(state).values() if grammar.cost(then) <= left - 1]
            assert can, (state, left)
            state, left = can[generator.integers(len(can))], left - 1


def test_after_the_map_an_answer_may_follow(tokenizer):
    free = MapLogitsProcessor(tokenizer, 1, MapGrammar("line", labels=["bed"]), free_after=True)
    ids = [free.texts.index(c) for c in "</map>"]  # character by character: every tokenizer can
    scores = torch.randn(1, len(tokenizer))
    torch.testing.assert_close(free(torch.tensor([[0, *ids]]), scores), scores)
    strict = MapLogitsProcessor(tokenizer, 1, MapGrammar("line", labels=["bed"]))
    allowed = strict(torch.tensor([[0, *ids]]), scores)[0].isfinite().nonzero().flatten().tolist()
    assert allowed == [tokenizer.eos_token_id]


def test_a_tokenizer_that_cannot_spell_maps_is_refused():
    small = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1, "a": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=small, eos_token="<eos>", unk_token="<unk>")
    with pytest.raises(ValueError, match="tokenizer"):
        MapLogitsProcessor(tokenizer, 1)(torch.zeros((1, 1), dtype=torch.long), torch.zeros((1, 3)))


# --- Incremental generation ---


@pytest.fixture
def true_map():
    rng = np.random.default_rng(3)
    nodes = [(label, 1) for label in ("bed", "desk", "lamp", "sofa", "tv", "rug")]
    return build_chain(nodes, rng.random((6, 2)) * [5, 4], redundancy=2)


def scripted(lines):
    remaining = iter(lines)
    return lambda text, temperature: next(remaining, "</map>")


def test_lines_are_accepted_refused_and_weighed(true_map):
    growing = IncrementalMap()
    assert [growing.accept(write_line(t)) for t in true_map] == [""] * len(true_map)
    assert "already" in growing.accept(write_line(true_map[0]))
    assert "introduces 2" in growing.accept("bed(0,0) fan(1,1) box(2,2)")
    assert growing.accept("hello") != ""
    assert growing.weights == [1.0] * len(true_map) and len(growing.placed) == 6
    pairs = {frozenset(t.nodes) for t in true_map}
    known = list(growing.placed)
    free = next((a, b, c) for a in known for b in known for c in known if len({a, b, c}) == 3 and frozenset((a, b, c)) not in pairs)
    points = np.array([growing.layout().place(node) for node in free])
    assert growing.accept(write_line(local_triplet(free, points * [-1, 1]))) == ""  # mirrored: contradicts the rest
    assert growing.weights[-1] == 0.3


def test_a_refused_line_is_written_once_more(true_map):
    lines = [write_line(t) for t in true_map]
    asked = []

    def write(text, temperature):
        asked.append(temperature)
        return next(script, "</map>")

    script = iter([lines[0], "fan(0,0) box(1,1) cup(2,2)\n", lines[1], *lines[2:]])
    grown = IncrementalMap().extend(write)
    assert len(grown.triplets) == len(lines) and grown.refused == [] and asked[2] == 0.3
    stuck = IncrementalMap().extend(scripted([lines[0], *["nonsense\n"] * 20]))
    assert len(stuck.triplets) == 1 and len(stuck.refused) == 3


def test_streaming_continues_where_the_last_chunk_stopped(true_map):
    lines = [write_line(t) for t in true_map]
    seen = []

    def chunk(some):
        remaining = iter(some)

        def write(text, temperature):
            seen.append(text.count("\n"))
            return next(remaining, "</map>")

        return write

    grown = IncrementalMap().stream([chunk(lines[:2]), chunk(lines[2:])])
    assert [t for t in grown.triplets] == true_map and grown.finished and grown.text.endswith("</map>")
    assert seen[3] == 3  # the second chunk begins behind two lines


def test_a_query_ends_the_map_as_soon_as_its_objects_hang_together(true_map):
    first = [label for label, _ in true_map[0].nodes]
    asked = IncrementalMap(queried=tuple(first)).extend(scripted([write_line(t) for t in true_map]))
    assert len(asked.triplets) == 1 and asked.finished
    read = IncrementalMap(queried=tuple(first)).read(write_map(true_map))
    assert len(read.triplets) == 1


def test_a_map_in_json_is_taken_like_one_in_lines(true_map):
    read = IncrementalMap().read(f"The map:\n{map_to_json([*true_map, true_map[0]])}")
    assert read.triplets == true_map and [why for _, why in read.refused] == ["these three objects have a line already"]
    spoiled = IncrementalMap().read(write_map(true_map).replace("</map>", "bed here\n</map>"))
    assert spoiled.triplets == true_map and spoiled.refused[0][0] == "'bed here'" and "expected three" in spoiled.refused[0][1]


def test_a_language_model_writes_maps_that_parse(monkeypatch):
    tokenizer = byte_level()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    write = model_writer(model, tokenizer, "Map: ", labels=["bed", "desk", "lamp"], max_new_tokens=64)
    line = write("<map>\n", 0.0)
    assert line == write("<map>\n", 0.0) and (line == "</map>" or (line.endswith("\n") and parse_map(line).n_lines == 1))
    state, devices = torch.get_rng_state(), {}  # random numbers of others go on as if nothing had been drawn, on every GPU
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        patch.setattr(torch.cuda, "get_rng_state", lambda device: f"state of {device}")
        patch.setattr(torch.cuda, "set_rng_state", lambda kept, device: devices.update({device: kept}))
        write("<map>\n", 0.9)
    assert torch.equal(torch.get_rng_state(), state) and devices == {0: "state of 0", 1: "state of 1"}
    grown = write_map_with(model, tokenizer, "Map: ", labels=["bed", "desk", "lamp", "sofa"], max_new_tokens=80)
    assert grown.finished and len(grown.triplets) + len(grown.refused) >= 0
    ids = tokenizer("Map: ", return_tensors="pt")["input_ids"].repeat(2, 1)
    constrain = MapLogitsProcessor(tokenizer, ids.shape[1], max_new_tokens=60)
    torch.manual_seed(1)
    written = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=61, pad_token_id=tokenizer.eos_token_id,
        logits_processor=LogitsProcessorList([constrain]),
    )  # fmt: skip
    for row in written[:, ids.shape[1] :]:
        assert parse_map(tokenizer.decode(row, skip_special_tokens=True)).closed
