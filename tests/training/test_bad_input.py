# SPDX-License-Identifier: Apache-2.0
"""Bad input gives one clear error, before the model is loaded wherever that is possible."""

import pytest
from conftest import make_args, make_model, make_tokenizer
from datasets import Dataset

from hf_unlearn import GAConfig, GATrainer, NPOConfig, NPOTrainer, UnlearnConfig
from hf_unlearn.modeling import load_checkpoint


FORGET = [{"prompt": f"Who is {name}?", "completion": " A spy."} for name in ("Ada", "Bob", "Cyd")]
RETAIN = [{"text": f"The {thing} is red."} for thing in ("cup", "pen")]


@pytest.fixture
def loaded(monkeypatch) -> list:
    """Whatever was asked of `from_pretrained` of a model; nothing is loaded."""
    asked = []

    def from_pretrained(*args, **kwargs):
        asked.append((args, kwargs))
        raise RuntimeError("the model was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    return asked


@pytest.fixture
def build(tmp_path, model_path, loaded):
    """Makes a trainer of a model on disk, of which an error is expected."""

    def build(trainer_class=NPOTrainer, given=None, **kwargs):
        defaults = {"model": model_path, "forget_dataset": FORGET, "retain_dataset": RETAIN}
        args = make_args(trainer_class.config_class, tmp_path / "out", **({"retain_loss": "kl"} | kwargs))
        return trainer_class(**({"args": args} | defaults | (given or {})))

    return build


def test_good_input_would_load_the_model(build, loaded):
    with pytest.raises(RuntimeError, match="the model was loaded"):
        build()
    assert len(loaded) == 1


BAD_ROWS = {
    "no forget rows": ({"forget_dataset": None}, "No forget rows were given. Pass `forget_dataset`"),
    "empty forget": ({"forget_dataset": []}, "The forget set is empty. Give at least one row"),
    "empty retain": ({"retain_dataset": Dataset.from_dict({"text": []})}, "The retain set is empty"),
    "no retain rows": (
        {"retain_dataset": None},
        "retain_loss='kl' needs retain rows. Pass `retain_dataset`, or take retain_loss='none'",
    ),
    "no usable column": (
        {"forget_dataset": [{"question": "a", "answer": "b"}]},
        r"No usable column among \['answer', 'question'\]. Give `input_ids` .*`text`",
    ),
    "a split is missing": ({"forget_dataset": {"train": FORGET}}, "`forget_dataset` is a dict"),
    "rows of no type": ({"forget_dataset": "locuslab/TOFU"}, "`forget_dataset` is a str"),
    "an evaluation set that is empty": ({"eval_dataset": {"forget": []}}, "The eval_forget set is empty"),
    "a conversation half spelled out": (
        {"forget_dataset": [{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}]},
        "must both be strings or both be lists of messages",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_are_checked_before_the_model_is_loaded(build, loaded, case):
    given, message = BAD_ROWS[case]
    with pytest.raises(ValueError, match=message):
        build(given=given)
    assert not loaded


def test_prompts_that_fill_max_length_leave_nothing_to_train(build, loaded):
    with pytest.raises(ValueError, match=r"None of the 3 forget rows keeps a token.*max_length=8.*Raise `max_length`"):
        build(max_length=8)
    assert not loaded


def test_rows_in_both_sets_are_counted_and_one_is_shown(build, loaded):
    retain = [FORGET[2], *RETAIN[:1], FORGET[0], FORGET[0]] + [{"prompt": "x", "completion": "y"}]
    retain = [row if "prompt" in row else {"prompt": "", "completion": row["text"]} for row in retain]
    with pytest.raises(ValueError, match="3 of 5 retain rows are forget rows too, the first: 'Who is Cyd") as error:
        build(given={"retain_dataset": retain})
    assert "allow_overlap=True" in str(error.value)
    assert not loaded
    with pytest.raises(RuntimeError, match="the model was loaded"):
        build(given={"retain_dataset": retain}, allow_overlap=True)
    # Where no term trains on the retain rows, sharing them is of no consequence.
    with pytest.raises(RuntimeError, match="the model was loaded"):
        build(given={"retain_dataset": retain}, retain_loss="none")


def test_rows_shared_through_different_types_are_found(build):
    forget = [{"prompt": "Ada", "completion": " spies"}]
    with pytest.raises(ValueError, match="1 of 1 retain rows are forget rows too"):
        build(given={"forget_dataset": forget, "retain_dataset": [{"text": "Ada spies"}]})


BAD_SETTINGS = {
    "weight below 0": ({"forget_weight": -1.0}, "forget_weight=-1.0; give a finite number at least 0"),
    "weight that is no number": ({"retain_weight": float("nan")}, "retain_weight=nan"),
    "rate below 0": ({"learning_rate": -1e-5}, "learning_rate=-1e-05"),
    "weight without end": ({"retain_weight": float("inf")}, "retain_weight=inf"),
    "weight as text": ({"forget_weight": "1.0"}, "forget_weight='1.0'; give a finite number"),
    "weight as a truth": ({"forget_weight": True}, "forget_weight=True"),
    "beta of 0": ({"beta": 0}, "beta=0; give a finite number above 0"),
    "beta below 0": ({"beta": -0.1}, "beta=-0.1"),
    "beta as text": ({"beta": "0.1"}, "beta='0.1'"),
    "unknown retain loss": ({"retain_loss": "klr"}, "retain_loss='klr'; allowed: 'none', 'nll', 'kl'"),
    "unknown reference": ({"reference": "copy"}, "reference='copy'; allowed: 'auto'"),
    "max_length of 1": ({"max_length": 1}, "max_length=1; give a whole number of at least 2"),
    "max_length with a fraction": ({"max_length": 16.5}, "max_length=16.5"),
    "max_length as text": ({"max_length": "16"}, "max_length='16'"),
    "padding to nothing": ({"pad_to_multiple_of": 0}, "pad_to_multiple_of=0; give a whole number of at least 1"),
    "guard at 0": ({"max_forget_loss": 0.0}, "max_forget_loss=0.0; give a finite number above 0"),
    "a pattern that is none": ({"trainable_modules": ["(lm_head"]}, r"'\(lm_head' is no regular expression"),
    "patterns of no type": ({"trainable_modules": [3]}, "3 is no regular expression"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_out_of_range_are_refused_as_they_are_made(case):
    settings, message = BAD_SETTINGS[case]
    with pytest.raises(ValueError, match=message):
        NPOConfig(use_cpu=True, **settings)


def test_a_misspelt_setting_is_named():
    with pytest.raises(TypeError, match="betta"):
        NPOConfig(betta=0.1)


def test_settings_at_the_edge_of_their_range_are_taken(tmp_path):
    config = NPOConfig(
        output_dir=str(tmp_path), use_cpu=True, forget_weight=0, retain_weight=0, beta=1e-6, max_length=None
    )
    assert config.max_length is None


def test_epochs_are_counted_by_a_role_that_is_trained_on(build, loaded):
    with pytest.raises(ValueError, match=r"epoch_by='retian' names no role.*\['forget', 'retain', 'longest'\]"):
        build(epoch_by="retian")
    with pytest.raises(ValueError, match=r"epoch_by='retain' names no role.*\['forget', 'longest'\]"):
        build(GATrainer, retain_loss="none", epoch_by="retain")
    assert not loaded


def test_a_config_of_another_method_is_refused(build, loaded, tmp_path):
    for args in (GAConfig(use_cpu=True), UnlearnConfig(use_cpu=True)):
        with pytest.raises(ValueError, match=f"NPOTrainer takes a NPOConfig; got {type(args).__name__}"):
            build(given={"args": args})
    assert not loaded


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere/at/all", "No model folder at '/nowhere/at/all'. Give an existing folder or a Hub id"),
        ("./missing", "No model folder at './missing'"),
        ("~/missing", "No model folder at '~/missing'"),
        ("a/b/c", "No model folder at 'a/b/c'"),
        (None, "`model` is a NoneType. Pass a path, a Hub id or a loaded model"),
        (3, "`model` is a int"),
    ],
)
def test_a_model_that_is_not_there_is_named(build, loaded, model, message):
    with pytest.raises(ValueError, match=message):
        build(given={"model": model, "processing_class": make_tokenizer()})
    assert not loaded


def test_a_folder_without_a_model_is_named(build, loaded, tmp_path):
    for folder in (str(tmp_path), tmp_path):
        with pytest.raises(ValueError, match=r"holds no `config.json`. Give a folder written by `save_pretrained`"):
            build(given={"model": folder})
    assert not loaded


@pytest.mark.parametrize("tie", [False, True])
def test_a_checkpoint_without_all_weights_is_no_model_that_forgot(tmp_path, tie):
    model, path = make_model(tie=tie), tmp_path / "whole"
    for part, folder in ((model, path), (model.model, tmp_path / "body")):
        part.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
    args = make_args(GAConfig, tmp_path / "out", retain_loss="none")
    GATrainer(str(path), args, forget_dataset=FORGET)
    load_checkpoint(str(path))
    if tie:
        # The head is the embedding.
        load_checkpoint(str(tmp_path / "body"))
        return
    for load in (load_checkpoint, lambda folder: GATrainer(folder, args, forget_dataset=FORGET)):
        with pytest.raises(ValueError, match=r"body has no weights of lm_head.weight, which a LlamaForCausalLM needs"):
            load(str(tmp_path / "body"))


def test_a_tokenizer_of_other_words_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(9)])
    with pytest.raises(ValueError, match=r"tokenizer has 109 tokens, the model 100.*resize_token_embeddings"):
        NPOTrainer(make_model(), NPOConfig(use_cpu=True), forget_dataset=FORGET, processing_class=tokenizer)


def test_a_tokenizer_without_pad_and_end_is_refused(build, loaded):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a pad nor an EOS token. Set `tokenizer.pad_token`"):
        build(given={"processing_class": tokenizer})
    assert not loaded


def test_a_model_in_memory_must_bring_its_tokenizer():
    with pytest.raises(ValueError, match="Pass its tokenizer as `processing_class`"):
        NPOTrainer(make_model(), NPOConfig(use_cpu=True), forget_dataset=FORGET)


def test_settings_that_contradict_each_other_are_refused(build, loaded):
    from peft import LoraConfig

    adapter = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="`peft_config` or `trainable_modules`, not both"):
        build(given={"peft_config": adapter}, trainable_modules=["lm_head"])
    with pytest.raises(ValueError, match="reference='adapter' needs a PEFT model"):
        build(reference="adapter")
    assert not loaded
    with pytest.raises(ValueError, match="decide how a model is loaded, and this one is loaded already"):
        build(
            given={"model": make_model(), "processing_class": make_tokenizer()},
            model_init_kwargs={"dtype": "bfloat16"},
        )


def test_modules_of_a_model_with_an_adapter_are_picked_in_its_config(build):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="under PEFT pick with `target_modules`"):
        build(given={"model": model, "processing_class": make_tokenizer()}, trainable_modules=["lora_A"])


def test_several_gpus_in_one_process_are_refused(build, loaded, monkeypatch):
    # T15: `nn.DataParallel` would cut the roles of a batch apart.
    monkeypatch.setattr(NPOConfig, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="2 GPUs are visible to one process.*accelerate launch"):
        build()
    assert not loaded


def test_code_of_a_repository_runs_only_if_asked_for(build, loaded):
    for asked in (False, True):
        with pytest.raises(RuntimeError, match="the model was loaded"):
            build(trust_remote_code=asked)
        assert loaded[-1][1]["trust_remote_code"] is asked


def test_keywords_reach_the_loading_of_model_and_tokenizer(build, loaded, monkeypatch):
    asked = []

    def from_pretrained(name, **kwargs):
        asked.append(kwargs)
        return make_tokenizer()

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", from_pretrained)
    with pytest.raises(RuntimeError, match="the model was loaded"):
        build(model_init_kwargs={"revision": "v2", "dtype": "bfloat16"}, trust_remote_code=True)
    assert asked == [{"trust_remote_code": True, "revision": "v2"}]
    given = {"trust_remote_code": True, "revision": "v2", "dtype": "bfloat16"}
    assert loaded[0][1] == {**given, "output_loading_info": True}


def test_a_stream_of_rows_is_refused(build, loaded):
    from datasets import IterableDataset

    with pytest.raises(ValueError, match="`retain_dataset` is streamed"):
        build(given={"retain_dataset": IterableDataset.from_generator(lambda: iter(RETAIN))})
    assert not loaded


def test_nothing_to_train_is_refused():
    model = make_model().requires_grad_(False)
    with pytest.raises(ValueError, match="No parameter of the model is trainable"):
        GATrainer(model, GAConfig(use_cpu=True), forget_dataset=FORGET, processing_class=make_tokenizer())
