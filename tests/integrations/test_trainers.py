"""The recipes of the book in the trainers that people have.

Each trains a small model with random weights, once with C attached and once with C made by
`GradientCovariance.update`, or once in one go and once interrupted: both must agree.
"""

import pytest
import torch
from torch import nn

from parameter_ordering.covariance import GradientCovariance

STEPS, S = 4, 6

pytestmark = pytest.mark.filterwarnings("ignore")


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS * S, 4, generator=generator)
    return x, torch.randint(0, 3, (STEPS * S,), generator=generator)


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def by_update(model, lr, samples="first"):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    C = GradientCovariance(model, samples)
    x, y = data()
    for batch in torch.arange(len(x)).split(S):
        C.update(nn.functional.cross_entropy, x[batch], y[batch])
        optimizer.step()
    return C


def agree(C, other):
    assert C.t == other.t
    for have, want in zip(C.diagonal().values(), other.diagonal().values(), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-7)


def test_plain_loop_with_autocast_and_a_scaler(recipe):
    model, scaler = perceptron(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    names = {"GradientCovariance": GradientCovariance, "model": model}
    names |= {"optimizer": optimizer, "scaler": scaler}
    exec(recipe("A plain loop"), names)
    x, y = data()
    for batch in torch.arange(len(x)).split(S):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    C = names["C"]
    assert C.t == STEPS
    for have, want in zip(
        C.diagonal().values(), by_update(perceptron(), 0.01).diagonal().values(), strict=True
    ):
        assert (have - want).norm() < 0.1 * want.norm()  # in half precision


@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate(recipe, accumulate, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data()), batch_size=S // accumulate
    )
    names = {"GradientCovariance": GradientCovariance, "accelerator": accelerator}
    names |= {"model": model, "optimizer": optimizer, "loader": loader}
    exec(recipe("Accelerate"), names)
    C = names["C"]
    for x, y in names["loader"]:
        with accelerator.accumulate(names["model"]):
            loss = nn.functional.cross_entropy(names["model"](x), y)
            accelerator.backward(loss)
            names["optimizer"].step()
            names["optimizer"].zero_grad()
    agree(C, by_update(perceptron(), 0.01))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning(recipe, accumulate, tmp_path):
    L = pytest.importorskip("lightning")

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = perceptron()

        def training_step(self, batch, i):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.model.parameters(), lr=0.01)

    names = {"GradientCovariance": GradientCovariance, "L": L}
    exec(recipe("Lightning"), names)

    def fit(epochs, resume=None):
        module = Module()
        callback = names["Covariance"]()
        trainer = L.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, accumulate_grad_batches=accumulate, callbacks=[callback],
            enable_checkpointing=False,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(*data()), batch_size=S // accumulate
        )
        trainer.fit(module, loader, ckpt_path=resume)
        return trainer, callback.C

    trainer, C = fit(1)
    agree(C, by_update(perceptron(), 0.01))
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    _, resumed = fit(2, tmp_path / "state.ckpt")
    _, twin = fit(2)
    assert resumed.t == twin.t == 2 * STEPS
    for have, want in zip(resumed.diagonal().values(), twin.diagonal().values(), strict=True):
        assert torch.equal(have, want)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_transformers(recipe, accumulate, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    tokens = torch.randint(0, 11, (STEPS * S, 5), generator=torch.Generator().manual_seed(0))
    dataset = [{"input_ids": each, "labels": each} for each in tokens]
    names = {"GradientCovariance": GradientCovariance, "transformers": transformers}
    names["torch"] = torch
    exec(recipe("Transformers"), names)

    def train(max_steps, resume=None):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=S // accumulate, use_cpu=True,
            gradient_accumulation_steps=accumulate, max_steps=max_steps, report_to=[],
            save_steps=STEPS // 2, learning_rate=1e-2, lr_scheduler_type="constant", seed=0,
            disable_tqdm=True,
        )  # fmt: skip
        callback = names["Covariance"](model)
        if resume:
            callback.C.load_state_dict(torch.load(tmp_path / f"C-{STEPS // 2}.pt"))
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=dataset, callbacks=[callback]
        )
        trainer.train(resume_from_checkpoint=resume)
        return callback.C

    C = train(STEPS)
    assert C.t == STEPS
    assert all(d.isfinite().all() and (d >= 0).all() for d in C.diagonal().values())
    resumed = train(STEPS, str(tmp_path / f"checkpoint-{STEPS // 2}"))
    assert resumed.t == STEPS
    for have, want in zip(resumed.diagonal().values(), C.diagonal().values(), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-9)
