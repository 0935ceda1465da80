"""benchmarks/teacher_forced.py: the likeliest tokens one by one are the greedy answer."""

from collections import Counter

from fixtures_eval import tiny_llama, train_tokenizer
from made_scripts import script
from skipalign.transformers_engine import TransformersGenerator

teacher_forced = script("benchmarks/teacher_forced.py")


def test_forced_is_right_for_the_greedy_answer_and_for_no_other():
    generator = TransformersGenerator(tiny_llama(), train_tokenizer())
    prompt = [3, 5, 8, 13]
    (answer,) = generator.generate([prompt], max_new_tokens=4, min_new_tokens=4)
    assert teacher_forced.forced(generator.model, prompt, answer.ids)
    for place in range(len(answer.ids)):
        other = [*answer.ids]
        other[place] = (other[place] + 1) % 10
        assert not teacher_forced.forced(generator.model, prompt, other)


def test_a_row_counts_what_one_way_alone_finds():
    counts = Counter({(True, True): 5, (True, False): 2, (False, True): 1, (False, False): 2})
    assert teacher_forced.row("x", counts) == {
        **{"method": "x", "num_prompts": 10, "free": 0.7, "forced": 0.6},
        **{"only_free": 2, "only_forced": 1},
    }
