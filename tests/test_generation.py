"""generation.py: where an answer ends, and how answers are handed over."""

import pytest

from fixtures_eval import tiny_llama, train_tokenizer
from skipalign.generation import Completion, answers_of, completion_of, stop_ids, tokens_at_once
from skipalign.transformers_engine import TransformersGenerator

NEW = 6


def test_stop_ids_are_eos_and_the_templates_end_of_turn():
    model, tokenizer = tiny_llama(), train_tokenizer()
    end, pad = tokenizer.convert_tokens_to_ids(["<|end|>", "<pad>"])
    tokenizer.eos_token = "<pad>"
    model.generation_config.eos_token_id = [7, 9]
    assert stop_ids(model, tokenizer) == {7, 9, end, pad}
    tokenizer.chat_template = None
    assert stop_ids(model, tokenizer) == {7, 9, pad}
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n\n{% endfor %}"
    assert stop_ids(model, tokenizer) == {7, 9, pad}  # its end of turn is ordinary text


@pytest.mark.parametrize(("stops", "kept"), [((), 3), ((9, 7), 1), ((5,), 0)])
def test_an_answer_is_what_stands_before_its_first_stop(stops, kept):
    tokenizer, ids = train_tokenizer(), [5, 7, 9]
    assert completion_of(ids, stops, tokenizer) == Completion(
        ids[:kept], tokenizer.decode(ids[:kept], skip_special_tokens=True)
    )


def test_answers_come_all_at_once_or_as_a_backend_gives_them():
    generator = TransformersGenerator(tiny_llama(), train_tokenizer())
    prompts = [list(range(5, 17)), list(range(20, 29))]
    wanted = list(enumerate(generator.generate(prompts, max_new_tokens=NEW)))
    assert list(answers_of(generator, prompts, max_new_tokens=NEW)) == wanted
    assert tokens_at_once(generator) == 65536

    class OneByOne:
        tokens_at_once = 99

        def stream(self, prompts, **options):
            yield from reversed(wanted)
            raise KeyboardInterrupt

    found = answers_of(OneByOne(), prompts, max_new_tokens=NEW)
    assert [next(found), next(found)] == wanted[::-1]
    with pytest.raises(KeyboardInterrupt):
        next(found)
    assert tokens_at_once(OneByOne()) == 99
