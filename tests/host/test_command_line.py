import pytest

from experiments.studies import seeds, training_choices
from rmas_jax.cli import ask, role_texts, run
from rmas_jax.cli.convert import main as convert
from rmas_jax.cli.report import main as report
from rmas_jax.cli.topology import main as topology

COMMANDS = {
    "ask": ask.main,
    "role-texts": role_texts.main,
    "run": run.main,
    "seeds": seeds.main,
    "training_choices": training_choices.main,
    "convert": convert,
    "report": report,
    "topology": topology,
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", "seed=1"] * 500_000,
        ["--" + "x" * 10_000],
        ["--out=a\0" + "\udcff" * 10_000, "mixture", "x" * 10_000],
        ["--seed", "9" * 10_000],
        ["--channel", "x" * 10_000],
    ],
    ids=["many", "option", "text", "number", "choice"],
)
def test_wrong_arguments_end_in_one_short_message(command, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        COMMANDS[command](arguments)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 1 and len(message) < 2000
