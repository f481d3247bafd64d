"""Proves what the card says about a run: every figure from the history, nothing of the machine that it was made on."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hf_gpt_scratch.training.command_line import parse_settings
from hf_gpt_scratch.training.reporting.card_sections import card_details, describe_texts, loss_table
from hf_gpt_scratch.training.reporting.history import History
from hf_gpt_scratch.training.settings import TrainingSettings


@pytest.fixture
def settings(tiny_settings: Callable[..., TrainingSettings]) -> TrainingSettings:
    return tiny_settings(push_to_hub="alice/lamp", license="cc0-1.0", sample_prompt="The | lamp")


@pytest.fixture
def history(settings: TrainingSettings, tmp_path: Path) -> History:
    (tmp_path / "run").mkdir()
    history = History(tmp_path / "run" / "history.jsonl")
    versions = {"python": "3.11.7", "torch": "2.13.0"}
    facts = {"device": "cpu (2 threads)", "processes": 2, "precision": "bf16", "versions": versions}
    history.append(
        "run", **facts, train_tokens=5054, validation_tokens=555, texts=describe_texts(settings), settings={}
    )
    for step in range(0, 101, 2):
        history.append(
            "evaluation",
            global_step=step,
            epoch=step / 40,
            tokens_seen=128 * step,
            train_loss=10 - step / 20,
            validation_loss=10 - step / 25,
        )
    history.append("sample", global_step=40, epoch=1, text="The lamp ```\nwent")
    history.append("sample", global_step=80, epoch=2, text="The lamp two")
    history.append("sample", global_step=100, epoch=2, text="The lamp went out")
    return history


def test_the_sections_hold_the_run(settings: TrainingSettings, history: History, short_text: Path) -> None:
    history.append("end", validation_loss=6.0, perplexity=403.4, seconds=1234.5)
    details = card_details(settings, history)
    text = details.sections
    sha256 = hashlib.sha256(short_text.read_bytes()).hexdigest()
    assert f"| training | short.txt | {short_text.stat().st_size:,} | `{sha256}` |" in text
    assert "5,054 tokens to train on, 555 to validate on. The training part is the first 0.9 of the text." in text
    assert "2 x cpu (2 threads), precision bf16, 1,234 seconds." in text
    assert "Versions: python 3.11.7, torch 2.13.0." in text
    assert "| 0 | 0.00 | 0 | 10.000 | 10.000 | 22,026.5 |" in text
    assert "| 100 | 2.50 | 12,800 | 5.000 | 6.000 | 403.4 |" in text
    # The first and the last sample, in fences that what was generated cannot close.
    assert "After step 40:\n\n````text\nThe lamp ```\nwent\n````" in text
    assert "After step 100:\n\n```text\nThe lamp went out\n```" in text
    assert "The lamp two" not in text
    assert (details.title, details.repo_id, details.license) == ("lamp", "alice/lamp", "cc0-1.0")
    (result,) = details.eval_results
    assert (result.metric_type, result.dataset_name) == ("perplexity", "short.txt")
    assert result.metric_value == pytest.approx(403.4288, abs=1e-4)


def test_nothing_names_this_machine(settings: TrainingSettings, history: History, short_text: Path) -> None:
    details = card_details(settings, history)
    for part in (settings.output_dir, str(short_text), str(short_text.parent), "The | lamp"):
        assert part not in details.sections
    # The negative control: the settings do hold them.
    assert settings.output_dir in json.dumps(settings.to_dict())


def test_the_settings_are_read_back(settings: TrainingSettings, history: History, tmp_path: Path) -> None:
    body = card_details(settings, history).sections.split("```yaml\n")[1].split("```")[0]
    config = tmp_path / "settings.yaml"
    config.write_text(body, encoding="utf-8")
    again = parse_settings(["--config", str(config)])
    for name in yaml.safe_load(body):
        assert getattr(again, name) == getattr(settings, name)
    assert {"seed", "learning_rate", "hidden_size", "attn_implementation"} <= set(yaml.safe_load(body))


def test_an_unfinished_run_claims_no_result(settings: TrainingSettings, history: History) -> None:
    details = card_details(settings, history)
    assert details.eval_results == ()
    assert "not finished yet" in details.sections


def test_the_plot_is_shown_where_it_is_there(settings: TrainingSettings, history: History) -> None:
    assert card_details(settings, history).pictures == ()
    assert "![" not in card_details(settings, history).sections
    picture = history.path.with_name("loss.png")
    picture.write_bytes(b"png")
    assert card_details(settings, history).pictures == (picture,)
    assert "![losses](loss.png)" in card_details(settings, history).sections


@pytest.mark.parametrize("num_rows", [0, 1, 2, 11, 12, 13, 1000])
def test_the_table_of_losses_is_short_and_ends_with_the_last(num_rows: int) -> None:
    evaluations = [
        {"global_step": step, "epoch": 0.0, "tokens_seen": 0, "train_loss": 1.0, "validation_loss": 1.0}
        for step in range(num_rows)
    ]
    steps = [int(line.split(" ")[1].replace(",", "")) for line in loss_table(evaluations).splitlines()[2:]]
    assert len(steps) == len(set(steps)) == min(num_rows, 12)
    assert steps[:1] + steps[-1:] == ([0, num_rows - 1] if num_rows else [])


def test_the_table_of_losses_has_bits_per_byte_and_the_error_of_a_part_of_the_text() -> None:
    row = {"global_step": 1, "epoch": 0.5, "tokens_seen": 64, "train_loss": 2.0, "validation_loss": 3.0}
    assert loss_table([row]).count("bits per byte") == 0
    part = row | {"global_step": 2, "standard_error": 0.0614, "bits_per_byte": 1.2345}
    assert loss_table([row, part]).splitlines() == [
        "| step | epoch | tokens seen | training loss | validation loss | validation perplexity | bits per byte |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 1 | 0.50 | 64 | 2.000 | 3.000 | 20.1 |  |",
        "| 2 | 0.50 | 64 | 2.000 | 3.000 ± 0.061 | 20.1 | 1.234 |",
    ]


def test_a_name_cannot_break_the_table(tiny_settings: Callable[..., TrainingSettings], tmp_path: Path) -> None:
    odd = tmp_path / "a|b.txt"
    odd.write_text("text", encoding="utf-8")
    (text,) = describe_texts(tiny_settings(train_file=[str(odd)]))
    assert text["name"] == "a|b.txt"
    from hf_gpt_scratch.training.reporting.card_sections import data_table

    assert "| training | a\\|b.txt | 4 |" in data_table({"texts": [text]})


def test_the_texts_of_a_folder_and_of_prepared_tokens(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path
) -> None:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("a", encoding="utf-8")
    (tmp_path / "texts" / "deep" / "b.md").write_text("b", encoding="utf-8")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "tokens" / "shard.bin").write_bytes(b"0" * 9)
    settings = tiny_settings(train_file=[str(tmp_path / "texts")], validation_file=[str(tmp_path / "tokens")])
    rows = [(text["part"], text["name"]) for text in describe_texts(settings)]
    assert rows == [("training", "a.txt"), ("training", "b.md"), ("validation", "index.json")]
