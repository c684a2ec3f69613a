import re
from pathlib import Path

import jax
import jax.numpy as jnp

ROOT = Path(__file__).parent.parent


def test_the_example_of_the_readme_runs_in_any_folder_and_is_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert code in "\n".join(text.splitlines()[:35])
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    team = names["team"]
    width = team.system.width("solver")
    for prompt in names["prompts"].values():  # slots as wide as what stands in them
        count = sum(slot >= 0 for slot in prompt.slot_index)
        assert count == len(prompt.senders) * team.system.latent_steps
    assert names["vectors"].shape == (2, 1, team.system.latent_steps, width)
    assert jax.tree.structure(names["gradients"]) == jax.tree.structure(names["links"])
    for name, gradient in names["gradients"].outer.items():  # the feedback link reaches round two
        assert jnp.any(gradient["proj1"]["kernel"] != 0), name


def test_the_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
