"""BLEU, ROUGE-L, CIDEr and METEOR of many captions, as the COCO caption evaluation computes them (pycocoevalcap).

Each takes the candidates and, for each, its references: strings whose words are separated by spaces. Scores are fractions.
"""

import math
import shutil
import subprocess
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

Ngrams = Counter[tuple[str, ...]]


def ngrams(sentence: str, longest: int = 4) -> Ngrams:
    """How often each sequence of one to `longest` words occurs."""
    words = sentence.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], longest: int = 4) -> list[float]:
    """BLEU-1 to BLEU-`longest` of the corpus (Papineni et al. 2002): clipped counts, closest reference length, brevity penalty."""
    _check(candidates, references)
    right, made = [0] * longest, [0] * longest
    length, target = 0, 0
    for candidate, options in zip(candidates, references, strict=True):
        allowed: Ngrams = Counter()
        for option in options:
            allowed |= ngrams(option, longest)
        for gram, count in (ngrams(candidate, longest) & allowed).items():
            right[len(gram) - 1] += count
        words = len(candidate.split())
        for n in range(longest):
            made[n] += max(0, words - n)
        length += words
        target += min((abs(n - words), n) for n in (len(option.split()) for option in options))[1]

    ratio = (length + 1e-15) / (target + 1e-9)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n in range(longest):
        product *= (right[n] + 1e-15) / (made[n] + 1e-9)
        scores.append(product ** (1 / (n + 1)) * penalty)
    return scores


def rouge_l(candidate: str, references: Sequence[str], beta: float = 1.2) -> float:
    """ROUGE-L of one caption (Lin 2004); the best precision and the best recall may come from different references.

    Words are split at every single space, so that two spaces make an empty word, as published.
    """
    said = candidate.split(" ")
    options = [reference.split(" ") for reference in references]
    shared = [longest_common_subsequence(option, said) for option in options]
    precision = max(s / len(said) for s in shared)
    recall = max(s / len(option) for s, option in zip(shared, options, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest sequence that is left of both, of words or of characters, when some are struck out."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def mean_rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean of `rouge_l`."""
    _check(candidates, references)
    return float(np.mean([rouge_l(c, r) for c, r in zip(candidates, references, strict=True)]))


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]], longest: int = 4, sigma: float = 6.0) -> float:
    """CIDEr-D (Vedantam et al. 2015), 0 to 10. Word weights come from the references given, so a subset has another score.

    The length that is penalised counts pairs of words, as published.
    """
    _check(candidates, references)
    options = [[ngrams(reference, longest) for reference in group] for group in references]
    frequency = Counter(gram for group in options for gram in set().union(*group))
    log_count = math.log(len(options))

    def weigh(grams: Ngrams) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(longest)]
        for gram, count in grams.items():
            weights[len(gram) - 1][gram] = count * (log_count - math.log(max(1, frequency[gram])))
        norms = [math.sqrt(sum(w * w for w in weight.values())) for weight in weights]
        return weights, norms, sum(count for gram, count in grams.items() if len(gram) == 2)

    scores = []
    for candidate, group in zip(candidates, options, strict=True):
        said, said_norms, said_length = weigh(ngrams(candidate, longest))
        total = 0.0
        for option in group:
            wanted, norms, length = weigh(option)
            near = math.exp(-((said_length - length) ** 2) / (2 * sigma**2))
            for n in range(longest):
                overlap = sum(min(w, wanted[n].get(gram, 0.0)) * wanted[n].get(gram, 0.0) for gram, w in said[n].items())
                if said_norms[n] and norms[n]:
                    overlap /= said_norms[n] * norms[n]
                total += overlap * near
        scores.append(10 * total / longest / len(group))
    return float(np.mean(scores))


def meteor_jar() -> tuple[Path | None, str]:
    """The METEOR 1.5 program, or None and what is missing. There is no METEOR 1.5 but the one written in Java."""
    if shutil.which("java") is None:
        return None, "METEOR needs Java, and no `java` is on the path"
    package = find_spec("pycocoevalcap")
    jar = Path(package.submodule_search_locations[0], "meteor", "meteor-1.5.jar") if package else None
    if jar is None or not jar.is_file():
        return None, "METEOR needs the Java program in the package pycocoevalcap: pip install pycocoevalcap"
    return jar, ""


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR 1.5 (Denkowski and Lavie 2014) of the corpus, English, normalised. ValueError when Java or the program is missing."""
    _check(candidates, references)
    jar, missing = meteor_jar()
    if jar is None:
        raise ValueError(missing)
    command = ["java", "-jar", "-Xmx2G", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as program:
        evaluate = ["EVAL"]
        for candidate, options in zip(candidates, references, strict=True):
            said = candidate.replace("|||", "").replace("  ", " ")
            line = " ||| ".join(["SCORE", *options, said]).replace("\n", " ")
            evaluate.append(_answer(program, line))
        program.stdin.write(" ||| ".join(evaluate) + "\n")
        program.stdin.flush()
        answers = [program.stdout.readline() for _ in range(len(candidates) + 1)]
        program.stdin.close()
    if not answers[-1]:
        raise ValueError(f"METEOR: {jar} stopped without a score")
    return float(answers[-1])


def caption_metrics(said: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1 to BLEU-4, ROUGE-L, CIDEr and, where Java is at hand, METEOR, each times 100."""
    numbers = {f"BLEU-{n}": 100 * value for n, value in enumerate(bleu(said, references), start=1)}
    numbers["ROUGE-L"] = 100 * mean_rouge_l(said, references)
    numbers["CIDEr"] = 100 * cider(said, references)
    jar, missing = meteor_jar()
    if jar is None:
        warnings.warn(f"no METEOR among the scores: {missing}", stacklevel=2)
    else:
        numbers["METEOR"] = 100 * meteor(said, references)
    return numbers


def _answer(program: subprocess.Popen, line: str) -> str:
    program.stdin.write(line + "\n")
    program.stdin.flush()
    return program.stdout.readline().strip()


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not candidates or len(candidates) != len(references) or not all(references):
        raise ValueError(
            f"captions: found {len(candidates)} and {len(references)} lists of references, expected as many, none empty"
        )
