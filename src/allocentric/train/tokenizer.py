"""A small byte-level BPE tokenizer in Qwen's format, for models that are trained from scratch."""

import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen's way to cut text before merging: words with their leading space, every digit alone, punctuation, line breaks.
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"

CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part.type == 'video' -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def fixed_phrases(texts: Iterable[str], slots: Iterable[str], least: int = 30) -> list[str]:
    """The stretches of a line between slots (words that vary, such as category names) and numbers that recur `least` times.

    Question templates are long and never vary. With each of their parts as one token a question takes a third of the length, and
    what does vary stands out.
    """
    slot = "|".join(re.escape(word) for word in sorted(slots, key=len, reverse=True))
    parts = re.compile(rf"\b(?:{slot})\b|\d+(?:\.\d+)?|\n|^[A-D]\. .*", re.MULTILINE)
    counts = Counter(part.rstrip() for text in texts for part in parts.split(text))
    # two words at least: what only stands between numbers ("x -") would swallow their signs
    return sorted(part for part, count in counts.items() if count >= least and len(re.findall(r"[^\W\d_]{2,}", part)) >= 2)


def train_tokenizer(texts: Iterable[str], vocab_size: int, sentences: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Train on `texts`; each of `sentences` (text that never varies, such as a prompt's last line) becomes one token.

    Any text can be encoded, since all 256 bytes are in the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    sentences = list(sentences)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(sentences),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(sentence, normalized=False) for sentence in sentences])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
