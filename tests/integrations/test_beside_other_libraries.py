"""Plans beside libraries that train: losses and weights of training without a plan, bit for bit.

Each test is skipped, and says so, where its library is not installed. docs/any-model.md names versions.
"""

import socket

import pytest
import torch

from megaselect import recompute

pytest.importorskip("transformers", reason="the model is transformers'")

from small_training import BATCH, SETTINGS, STEPS, Samples, assert_same, batches, copies, gpt2


def planned(model, setting):
    """None for no plan."""
    return None if setting is None else recompute(model, setting)


def assert_followed(plan):
    assert (plan.recorded, plan.departed) == (1, 0)
    assert plan.followed > 0


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("order", ["plan first", "prepared first"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_accelerate(setting, order, precision):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

    def trained(setting):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
        model = gpt2()
        plan = planned(model, setting) if order == "plan first" else None
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        model, optimizer, loader = accelerator.prepare(model, optimizer, batches())
        plan = plan or planned(model, setting)
        losses = []
        for batch in loader:
            with accelerator.accumulate(model):
                losses.append(model(**batch).loss)
                accelerator.backward(losses[-1])
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        return copies([*losses, *model.parameters()]), plan

    expected, _ = trained(None)
    found, plan = trained(setting)
    assert_same(expected, found)
    assert_followed(plan)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_peft_lora(setting, checkpointing):
    peft = pytest.importorskip("peft", reason="peft is not installed")

    def trained(setting):
        config = peft.LoraConfig(r=2, target_modules=["c_attn", "c_fc"], lora_dropout=0.2, task_type="CAUSAL_LM")
        model = peft.get_peft_model(gpt2(), config).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        plan = planned(model, setting)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        losses = []
        for batch in batches():
            losses.append(model(**batch).loss)
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        return copies([*losses, *model.parameters()]), plan

    expected, _ = trained(None)
    found, plan = trained(setting)
    assert_same(expected, found)
    assert_followed(plan)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_lightning(tmp_path, setting, precision):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.losses = gpt2(), []

        def training_step(self, batch, number):
            self.losses.append(self.model(**batch).loss)
            return self.losses[-1]

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-3)

    def trained(setting):
        module = Module()
        plan = planned(module.model, setting)
        lightning.Trainer(
            accelerator="cpu",
            precision=precision,
            max_steps=STEPS,
            accumulate_grad_batches=2,
            gradient_clip_val=1.0,
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, batches())
        return copies([*module.losses, *module.parameters()]), plan

    expected, _ = trained(None)
    found, plan = trained(setting)
    assert_same(expected, found)
    assert_followed(plan)


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_trl_sft_with_the_callback(tmp_path, setting, with_lora):
    """Adapters are trl's to put on: the callback gets what it trains."""
    trl = pytest.importorskip("trl", reason="trl is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed") if with_lora else None
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from megaselect.integrations.transformers import SAVED_BYTES, RecomputeCallback

    words = {str(number): number for number in range(39)} | {"<end>": 39}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="0")), eos_token="<end>", pad_token="<end>"
    )
    dataset = Dataset.from_list([{"input_ids": Samples()[number]["input_ids"].tolist()} for number in range(8)])

    def trained(callback):
        arguments = trl.SFTConfig(
            str(tmp_path),
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            seed=3,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        lora = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM") if with_lora else None
        trainer = trl.SFTTrainer(
            gpt2(),
            args=arguments,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[callback] if callback else [],
        )
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "loss" in entry]
        losses = torch.tensor([entry["loss"] for entry in entries])
        return [losses, *copies(trainer.model.parameters())], [entry.get(SAVED_BYTES) for entry in entries]

    callback = RecomputeCallback(setting)
    expected, _ = trained(None)
    found, saved = trained(callback)
    assert_same(expected, found)
    assert_followed(callback.plan)
    assert saved == [callback.plan.bytes] * STEPS


@pytest.fixture(scope="module")
def deepspeed():
    """In a process group of this process alone, on gloo."""
    with pytest.MonkeyPatch.context() as patch:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0"}
        for name, value in {**settings, "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}.items():
            patch.setenv(name, value)
        yield pytest.importorskip("deepspeed", reason="deepspeed is not installed")
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.mark.soak  # deepspeed compiles an operator of its own the first time
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("setting", SETTINGS)
def test_deepspeed(deepspeed, setting, stage):
    config = {
        "train_micro_batch_size_per_gpu": BATCH,
        "gradient_accumulation_steps": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_optimization": {"stage": stage},
    }

    def trained(setting):
        model = gpt2()
        plan = planned(model, setting)
        engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
        torch.manual_seed(1)
        losses = []
        for batch in batches():
            losses.append(engine(**batch).loss)
            engine.backward(losses[-1])
            engine.step()
        with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
            weights = copies(model.parameters())
        engine.destroy()
        return [*copies(losses), *weights], plan

    expected, _ = trained(None)
    found, plan = trained(setting)
    assert_same(expected, found)
    assert plan.recorded + plan.followed == len(batches())
