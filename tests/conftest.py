# SPDX-License-Identifier: Apache-2.0
"""Tiny models, tokenizers and rows, made in memory. Nothing is downloaded."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gc
import logging
import sys
from base64 import b64decode
from io import StringIO
from pathlib import Path

import pytest
import torch


TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
# Tests read each other's helpers.
sys.path += sorted({str(path.parent) for path in TESTS.rglob("test_*.py")})
SHARED_DATA = ROOT.parent / "shared" / "data"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    # What tests keep is theirs: nothing is found from earlier runs, nothing is left behind. Workers share it, so that
    # a world is built once.
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    os.environ["HF_UNLEARN_CACHE"] = str(root / "cache")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # Tests share two cores with each other; more threads wait on each other and are slower.
    torch.set_num_threads(1)


# Files that take minutes begin first: two workers then end together (`make test` gives each whole files).
LONGEST = (
    "test_launch_forms", "test_backdoor_demo", "test_sweep_run", "test_rmu_distributed", "test_zoo_of_models",
    "test_kill", "test_launch", "test_distributed", "test_notebook", "test_baselines_demo", "test_align_demo",
    "test_vqa_run", "test_targeted", "test_pipeline", "test_adapter_zoo", "test_run_privacy", "test_main_job",
    "test_amnesiac", "test_rmu", "test_scrub", "test_fisher", "test_methods", "test_engine", "test_classify",
    "test_bench", "test_synthetic", "test_recipes", "test_mu_align",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


class Now:
    """What the running test is told by hooks, which come before fixtures of any scope."""

    modules = 0
    draws = frozenset()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # Every `train` collects garbage; walking through what was imported by then is most of the time of a tiny run.
    if len(sys.modules) > Now.modules:
        gc.collect()
        gc.freeze()
        Now.modules = len(sys.modules)
    drawn = item.get_closest_marker("drawn")
    Now.draws = frozenset() if drawn is None else frozenset(drawn.args or PICTURES)


# A dot, the first line of a document, and an empty page.
PICTURES = {
    "png": b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="),
    "pdf": b"%PDF-1.4\n",
    "svg": b'<svg viewBox="0 0 72 72"></svg>',
}


@pytest.fixture(scope="session", autouse=True)
def _few_pictures():
    # To draw a report's figures takes longer than all else of a tiny run: tests that look at them are marked `drawn`.
    from matplotlib.figure import Figure

    draw = Figure.savefig

    def savefig(self, file, *args, format=None, **kwargs):
        if format in Now.draws or format not in PICTURES:
            draw(self, file, *args, format=format, **kwargs)
        elif isinstance(file, StringIO):
            file.write(PICTURES[format].decode())
        else:
            Path(file).write_bytes(PICTURES[format])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield


def make_tokenizer(pad_is_eos: bool = False):
    """A tokenizer of one token a byte-like character, with BOS, EOS, PAD and a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    characters = [chr(i) for i in range(32, 127)] + ["\n"]
    vocab = {token: i for i, token in enumerate(special + characters)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>" if pad_is_eos else "<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(seed: int = 0, vocab_size: int = 100, layers: int = 2, hidden_size: int = 32, tie: bool = False, **kw):
    """A random Llama of some thousand parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tie,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **kw,
    )
    return LlamaForCausalLM(config).eval()


def make_args(config_class, output_dir, **kwargs):
    """A short, silent run on the CPU with a constant rate in which every step is logged. Retain rows are trained on
    only where `retain_loss` says so."""
    defaults = {
        "output_dir": str(output_dir),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    term = config_class.__dataclass_fields__.get("retain_loss")
    if term is not None and term.default is None:
        defaults["retain_loss"] = "none"
    return config_class(**(defaults | kwargs))


def weights(model) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before: dict, after: dict) -> set[str]:
    """Names of the parameters that differ in any bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def train_batch(trainer, positions) -> dict[str, torch.Tensor]:
    """The batch that training would see at these positions."""
    return trainer.data_collator([trainer.train_dataset[p] for p in positions])


def lora(**kwargs):
    """Settings of a small adapter."""
    from peft import LoraConfig

    return LoraConfig(**({"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | kwargs))


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model():
    return make_model()


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> str:
    """A saved tiny model with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def forget_rows():
    return [{"prompt": f"Who is {name}?", "completion": f" {name} is a spy."} for name in ("Ada", "Bob", "Cyd", "Dan")]


@pytest.fixture
def retain_rows():
    return [{"text": f"The {thing} is on the table."} for thing in ("cup", "pen", "book", "lamp", "plate", "key")]


@pytest.fixture
def build(tmp_path, forget_rows, retain_rows):
    """Makes a trainer of a tiny model, NPO by default.

    Keyword arguments are the config's; those of the trainer are given in the dict `given`.
    """

    def build(trainer_class=None, given=None, **kwargs):
        if trainer_class is None:
            from hf_unlearn import NPOTrainer as trainer_class
        args = make_args(trainer_class.config_class, kwargs.pop("output_dir", tmp_path / "out"), **kwargs)
        defaults = {
            "model": make_model(),
            "forget_dataset": forget_rows,
            "retain_dataset": retain_rows,
            "processing_class": make_tokenizer(),
        }
        if args.retain_loss == "none" and "retain_loss" not in kwargs:
            # Given on purpose they are told to be of no use.
            del defaults["retain_dataset"]
        return trainer_class(args=args, **(defaults | (given or {})))

    return build


@pytest.fixture
def untried(monkeypatch):
    """Models are not tried before the first step: for tests that count what a run computes."""
    monkeypatch.setattr("hf_unlearn.families.causal_lm.CausalLM.try_model", lambda self, trainer: None)


@pytest.fixture
def unloaded(monkeypatch):
    """No model can be loaded: for what must be refused before that."""

    def load(*args, **kwargs):
        raise AssertionError("A model is loaded.")

    monkeypatch.setattr("hf_unlearn.modeling.load_model", load)


@pytest.fixture(autouse=True)
def _package_logs(caplog):
    caplog.set_level(logging.INFO, logger="hf_unlearn")


@pytest.fixture(scope="session")
def tofu_path() -> Path:
    path = SHARED_DATA / "tofu"
    if not path.is_dir():
        pytest.skip(f"The TOFU files are not at {path}.")
    return path
