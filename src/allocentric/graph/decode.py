"""Constrained decoding: a logits processor that lets a model write nothing but maps of the grammar (`graph.grammar`).

The grammar is a regular language, so what may come next depends on a small state. For each state that is met, every token of the
vocabulary is tried once, character by character, and what it would cost in characters to end the map after it is kept; a step of
generation is then one look-up. Tokens may span any number of the grammar's symbols, so any tokenizer serves.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from allocentric.graph.grammar import CLOSE, OPEN, clean_label
from allocentric.graph.triplets import Node

LETTERS, DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"
LABEL_CHARACTERS = LETTERS + DIGITS + " _-"
LONGEST_LABEL = 32
NEVER = 1 << 14  # cost of what cannot be ended any more

# (place in the grammar, object of the line 0 to 2, what has been written there, objects of the line so far)
State = tuple[str, int, str, tuple[Node, ...]]
DONE: State = ("done", 0, "", ())


class MapGrammar:
    """The grammar as a machine that reads characters.

    start     "map": from "<map>" to "</map>"; "line": one line, with its line break, or "</map>".
    labels    the only labels allowed, no object twice in a line; None: any the grammar allows, up to 32 characters (then a line may
              name an object twice, which the parser drops: of free labels only their length is kept).
    metric    True: every line ends in an extent; False: none does; None: as the model likes.
    """

    def __init__(
        self, start: Literal["map", "line"] = "map", labels: Iterable[str] | None = None, metric: bool | None = None
    ):
        if start not in ("map", "line"):
            raise ValueError(f'start: expected "map" or "line", found {start!r}')
        self.labels = None if labels is None else sorted({clean_label(label) for label in labels})
        if self.labels == []:
            raise ValueError("labels: expected at least one, found none")
        self.metric, self.one_line = metric, start == "line"
        self.start: State = ("open" if start == "map" else "begin", 0, "", ())
        self._follow: dict[State, dict[str, State]] = {}
        self._cost: dict[State, int] = {}

    def allowed(self, state: State) -> dict[str, State]:
        """The characters that may come next, and the state after each."""
        if state not in self._follow:
            self._follow[state] = self._next(state)
        return self._follow[state]

    def cost(self, state: State) -> int:
        """Characters of the shortest text that ends the map from here; NEVER when there is none."""
        if state not in self._cost:
            follow = self.allowed(state)
            there = state == DONE
            self._cost[state] = 0 if there else 1 + self.cost(follow[self._shortest(state, follow)]) if follow else NEVER
        return min(self._cost[state], NEVER)

    def _next(self, state: State) -> dict[str, State]:
        place, k, written, used = state
        if place == "open":
            full = OPEN + "\n"
            rest = full[len(written)]
            return {rest: ("begin", 0, "", ()) if written + rest == full else ("open", 0, written + rest, ())}
        if place == "begin":
            return {"<": ("close", 0, "<", ())} | self._label(k, "", ())
        if place == "close":
            rest = CLOSE[len(written)]
            return {rest: DONE if written + rest == CLOSE else ("close", 0, written + rest, ())}
        if place == "label":
            follow = self._label(k, written, used)
            if written and self._is_label(written):
                kept = written if self.labels is not None else ""
                follow |= {".": ("instance", k, f"{kept}.", used)} | self._cell(k, (written, 1), used)
            return follow
        if place == "instance":  # 1 to 99
            label, _, number = written.rpartition(".")
            digits = (DIGITS if number else DIGITS[1:]) if len(number) < 2 else ""
            if number:  # a second digit that makes an object of the line once more leads nowhere
                digits = [d for d in digits if (label, int(number + d)) not in used]
            more = {d: ("instance", k, written + (d if label else "1"), used) for d in digits}
            return more | (self._cell(k, (label, int(number)), used) if number else {})
        if place == "x":
            return {d: ("comma", k, "", used) for d in DIGITS}
        if place == "comma":
            return {",": ("y", k, "", used)}
        if place == "y":
            return {d: ("shut", k, "", used) for d in DIGITS}
        if place == "shut":
            return {")": ("gap", k, "", used) if k < 2 else ("end", k, "", ())}
        if place == "gap":
            return {" ": ("label", k + 1, "", used)}
        after: State = DONE if self.one_line else ("begin", 0, "", ())
        if place == "end":
            broken = {} if self.metric is True else {"\n": after}
            return broken | ({} if self.metric is False else {" ": ("extent", k, " ", ())})
        if place == "extent":  # " r=" and 0.1 to 99.9; of digits only as much is kept as matters
            if len(written) < 3:
                return {" r="[len(written)]: ("extent", k, written + " r="[len(written)], ())}
            whole, point, tenth = written[3:].partition(".")
            if tenth:
                return {"\n": after}
            if point:
                return {d: ("extent", k, written + "1", ()) for d in (DIGITS[1:] if whole == "0" else DIGITS)}
            more = {d: ("extent", k, written + min(d, "1" if not whole else "0"), ()) for d in DIGITS}
            return (more if whole in ("", "1") else {}) | ({".": ("extent", k, written + ".", ())} if whole else {})
        return {}  # done

    def _label(self, k: int, written: str, used: tuple[Node, ...]) -> dict[str, State]:
        if self.labels is not None:
            fitting = {label[len(written)] for label in self.labels if label.startswith(written) and len(label) > len(written)}
            return {c: ("label", k, written + c, used) for c in fitting}
        if len(written) >= LONGEST_LABEL:
            return {}
        # Of a free label only its length and whether it ends in a space matter: few states, whatever is written.
        allowed = LABEL_CHARACTERS if written else LETTERS
        kept = {c: "a" * len(written) + (" " if c == " " else "a") for c in allowed}
        return {c: ("label", k, text, used) for c, text in kept.items() if not (c == " " and written.endswith(" "))}

    def _is_label(self, written: str) -> bool:
        return not written.endswith(" ") if self.labels is None else written in self.labels

    def _cell(self, k: int, node: Node, used: tuple[Node, ...]) -> dict[str, State]:
        """What opens the cell of an object, unless the line has it already."""
        if self.labels is None:
            return {"(": ("x", k, "", ())}
        return {} if node in used else {"(": ("x", k, "", (*used, node) if k < 2 else ())}

    def _shortest(self, state: State, follow: dict[str, State]) -> str:
        """The character with which the shortest end begins."""
        place, _, written, used = state
        if place == "label" and self.labels is not None:
            fitting = (label for label in self.labels if label.startswith(written))
            label = min(fitting, key=lambda label: len(label) + 2 * ((label, 1) in used))
            if label != written:
                return label[len(written)]
        if place == "instance" and written.endswith("."):
            return next(d for d in DIGITS[1:] if (written[:-1], int(d)) not in used)
        return min(follow, key=lambda c: f"\n<(.{c}".index(c))


class MapLogitsProcessor(LogitsProcessor):
    """Masks every token that would leave the grammar, or leave too little room to end the map.

    With `max_new_tokens` the map is complete when generation ends, provided the tokenizer has a token for every single
    character of the grammar (byte-level and character tokenizers have).

    tokenizer         any transformers tokenizer. Its end-of-text token ends generation.
    prompt_length     tokens before the map, padding included.
    grammar           where to start and which labels to allow; default: a whole map with free labels.
    max_new_tokens    that generation is limited to.
    max_lines         after which the map must end.
    free_after        after the map, True: anything may follow (an answer); False: only the end of the text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_length: int,
        grammar: MapGrammar | None = None,
        max_new_tokens: int | None = None,
        max_lines: int = 64,
        free_after: bool = False,
    ):
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: expected an end-of-text token, found none")
        self.grammar = grammar or MapGrammar()
        self.prompt_length, self.max_new_tokens, self.max_lines = prompt_length, max_new_tokens, max_lines
        self.end, self.free_after = tokenizer.eos_token_id, free_after
        self.texts = token_texts(tokenizer)
        self._beginning: dict[str, list[int]] = {}
        for token, text in enumerate(self.texts):
            # A token holds at most one line break, and nothing behind it: lines are counted between tokens.
            if text and "\n" not in text[:-1]:
                self._beginning.setdefault(text[0], []).append(token)
        self._costs: dict[State, Int[Tensor, " v"]] = {}
        self._moves: dict[tuple[State, int], State | None] = {}
        self._rows: dict[tuple[int, ...], tuple[State, int]] = {}

    def __call__(self, input_ids: Int[Tensor, "b s"], scores: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """Scores with minus infinity for what may not come next."""
        masked = scores.clone()
        rows = {}
        for i, ids in enumerate(input_ids[:, self.prompt_length :].tolist()):
            key = tuple(ids)
            state, lines = self._state(key)
            rows[key] = (state, lines)
            if state[0] == "done":
                if not self.free_after:
                    masked[i] = float("-inf")
                    masked[i, self.end] = scores[i, self.end]
                continue
            costs = self._cost_after(state, closing=lines >= self.max_lines).to(scores.device)
            room = NEVER - 1 if self.max_new_tokens is None else self.max_new_tokens - len(ids) - 1
            allowed = costs <= max(room, 0)
            if not allowed.any():
                allowed = costs < NEVER  # there never was room; end it as soon as can be
            if not allowed.any():
                raise ValueError(f"tokenizer: found no token that continues a map here ({state[0]}), expected one per character")
            masked[i, : len(costs)] = masked[i, : len(costs)].masked_fill(~allowed, float("-inf"))
            masked[i, len(costs) :] = float("-inf")  # rows of the head beyond the vocabulary
        self._rows = rows
        return masked

    def _state(self, ids: tuple[int, ...]) -> tuple[State, int]:
        """Where the grammar is after these tokens, and how many lines have begun."""
        if not ids:
            return self.grammar.start, 0
        state, lines = self._rows.get(ids[:-1]) or self._state(ids[:-1])
        if state[0] == "done":
            return state, lines
        then = self._move(state, ids[-1])
        if then is None:
            raise ValueError(f"map: found token {ids[-1]} ({self.texts[ids[-1]]!r}), which the grammar does not allow there")
        return then, lines + self.texts[ids[-1]].count("\n") - (state[0] == "open" and then[0] != "open")

    def _move(self, state: State, token: int) -> State | None:
        key = (state, token)
        if key not in self._moves:
            at: State | None = state
            for place, character in enumerate(self.texts[token] or "\0"):
                if at is not None and at[0] == "done":
                    at = at if self.free_after and place else None
                    break
                at = None if at is None else self.grammar.allowed(at).get(character)
            self._moves[key] = at
        return self._moves[key]

    def _cost_after(self, state: State, closing: bool) -> Int[Tensor, " v"]:
        """Characters to the end of the map after each token; NEVER for those not allowed. `closing`: the map must end now."""
        if closing and state[0] == "begin":
            state = ("close", 0, "", ())
        if state not in self._costs:
            costs = torch.full((len(self.texts),), NEVER, dtype=torch.int32)
            for first in self.grammar.allowed(state):
                for token in self._beginning.get(first, ()):
                    if (then := self._move(state, token)) is not None:
                        costs[token] = self.grammar.cost(then)
            self._costs[state] = costs
        return self._costs[state]


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each token adds to a text, leading space included; "" for special tokens and for parts of characters."""
    (anchor,) = _anchor(tokenizer)
    before = _decode(tokenizer, [[anchor]])[0]
    size = len(tokenizer)
    texts = _decode(tokenizer, [[anchor, token] for token in range(size)])
    special = set(tokenizer.all_special_ids)
    return [
        text[len(before) :] if text.startswith(before) and token not in special and "\ufffd" not in text else ""
        for token, text in enumerate(texts)
    ]


def _anchor(tokenizer: PreTrainedTokenizerBase) -> tuple[int]:
    """A token behind which others decode as within a text (alone, some lose their leading space)."""
    for text in ("(", "a", "0", "<"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) >= 1 and ids[-1] != tokenizer.unk_token_id and _decode(tokenizer, [[ids[-1]]])[0].strip():
            return (ids[-1],)
    raise ValueError("tokenizer: found no token for any of ( a 0 <, expected the characters of the map grammar")


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]]) -> list[str]:
    return tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
