"""Split evidence: facts and questions, the texts of roles, splits, dials, and their use as data."""

from __future__ import annotations

import collections
import itertools
import re

import pytest

from rmas_jax.config import DataConfig, EvidenceConfig, load_benchmark_config, load_config
from rmas_jax.config.files import ConfigError
from rmas_jax.data import DataError
from rmas_jax.data.evidence import SPLITS, pool, read
from rmas_jax.data.loading import load_dataset
from rmas_jax.evaluation.benchmarks import find_benchmarks, grader_of
from rmas_jax.evaluation.benchmarks.loading import checksum_of, load_benchmark

ROLES = ("planner", "solver")
CROSSINGS = ("words", "names", "numbers", "codes")
# All words of the sentences but names of persons and places, and codes.
FRAME = {
    *("What", "is", "the", "code", "of", "place", "where", "Go", "to", "then", "its", "keeper"),
    *("that", "in", "The", "room"),
}


def made(rounds=4, roles=ROLES, seed=42, **dials):
    """Examples by split."""
    sizes = {"train": 30, "validation": 20, "test": 20}
    config = DataConfig(
        dataset="split-evidence", seed=seed, evidence=EvidenceConfig(**sizes | dials)
    )
    splits, bad = read(config, roles, rounds)
    assert not bad
    return splits


def all_of(splits):
    return list(itertools.chain.from_iterable(splits.values()))


def names_in(*texts):
    return {word for text in texts for word in re.findall(r"\w+", text)} - FRAME


# Roles that know only the sentences, written without the generator.
PLACE = r"(?:the |room )?(\w+)"


def look_up(evidence, name):
    """The entity that a fact about a name leads to, which may stand in its phrase."""
    facts = dict(re.findall(rf"(\w+) is in {PLACE}\.", evidence))
    for found in (
        re.findall(rf"The keeper of {PLACE} is (\w+)\.", evidence),
        re.findall(rf"The code of {PLACE} is (\d+)\.", evidence),
    ):
        assert not facts.keys() & dict(found).keys()
        facts |= dict(found)
    assert len(facts) == evidence.count(".")
    return facts[name.split()[-1]]


def start_of(question):
    """The person or the place at which a question begins."""
    person = re.search(r"the place where (\w+) is", question)
    return (person or re.search(rf"(?:Go to|code of) {PLACE}", question))[1]


def planner_says(evidence, question, received):
    """The place as its sentence has it, with its article or "room"."""
    start = received or start_of(question)
    if received or f"where {start} is" in question:
        return re.search(rf"\b{start} is in ([^.]+)\.", evidence)[1]
    return re.search(r"(?:Go to|code of) ((?:the |room )?\w+)", question)[1]


def conversation(example, rounds):
    """The texts of a planner and a solver who know their own evidence and the other's last text."""
    said = {role: [] for role in ROLES}
    received = ""
    for _ in range(rounds):
        place = planner_says(example.fields["evidence_planner"], example.question, received)
        received = look_up(example.fields["evidence_solver"], place)
        said["planner"].append(place)
        said["solver"].append(received)
    return said


@pytest.mark.parametrize("crossing", CROSSINGS)
@pytest.mark.parametrize("hops", range(1, 9))
def test_planner_and_solver_reach_the_answer_by_what_they_know_and_send(hops, crossing):
    needed = -(-hops // 2)
    for example in all_of(made(hops=hops, crossing=crossing, pairs=3, rounds=needed)):
        said = conversation(example, needed)
        assert said["solver"][-1] == example.answer and example.difficulty == hops
        assert {role: tuple(texts) for role, texts in said.items()} == example.texts
        assert all(text.isalpha() for text in said["solver"][:-1])
        assert re.fullmatch(r"\d{3}", example.answer)


def test_further_rounds_repeat_the_last_one():
    for example in all_of(made(hops=4, rounds=4)):
        for texts in example.texts.values():
            assert texts[0] != texts[1] == texts[2] == texts[3]


@pytest.mark.parametrize("crossing", CROSSINGS)
@pytest.mark.parametrize(("hops", "pairs"), [(2, 4), (5, 2), (8, 12)])
def test_splits_share_no_question_and_no_entity(hops, pairs, crossing):
    splits = made(hops=hops, pairs=pairs, crossing=crossing)
    questions = [{example.question for example in of} for of in splits.values()]
    names = [
        names_in(*(text for e in of for text in (e.question, e.answer, *e.fields.values())))
        for of in splits.values()
    ]
    for a, b in itertools.combinations(range(3), 2):
        assert not questions[a] & questions[b]
        assert not names[a] & names[b]
    assert all(len(of) > 3 * pairs for of in names)


@pytest.mark.parametrize("kind", ["persons", *CROSSINGS])
def test_pools_are_large_and_of_one_word_each(kind):
    pools = [pool(kind, split) for split in SPLITS]
    everything = [*itertools.chain.from_iterable(pools)]
    assert len({name.lower() for name in everything}) == len(everything)
    assert min(map(len, pools)) >= 48  # the largest item has 12 x 4 of a kind
    assert all(re.fullmatch(r"\w+", name) and name not in FRAME for name in everything)


@pytest.mark.parametrize(("hops", "pairs"), [(1, 2), (2, 4), (3, 4), (4, 4), (7, 2), (8, 12)])
def test_an_item_has_distinct_entities_and_as_many_facts_of_each_hop(hops, pairs):
    held = {"planner": hops // 2, "solver": -(-hops // 2)}  # hops by role
    for example in all_of(made(hops=hops, pairs=pairs, crossing="numbers")):
        for role, count in held.items():
            assert example.fields[f"evidence_{role}"].count(".") == count * pairs
        objects = collections.Counter(
            word
            for role in ROLES
            for word in re.findall(r"(\w+)\.", example.fields[f"evidence_{role}"])
        )
        assert set(objects.values()) == {1} and len(objects) == hops * pairs
        names = names_in(*example.fields.values())
        assert len(names) == (hops + 1) * pairs
        assert example.fields["evidence_solver"].count("The code of") == pairs


def test_the_place_of_a_fact_does_not_tell_whether_it_is_asked_about():
    splits = made(train=600)
    for role in ROLES:
        places = collections.Counter()
        for example in splits["train"]:
            sentences = example.fields[f"evidence_{role}"].split(". ")
            asked = start_of(example.question) if role == "planner" else example.answer
            words = [re.findall(r"\w+", sentence) for sentence in sentences]
            (place,) = [i for i, of_fact in enumerate(words) if asked in of_fact]
            places[place] += 1
        assert len(places) == 4 and min(places.values()) > 110  # of 150 expected


def test_a_solver_without_a_message_can_only_guess():
    """The codes in its evidence are equally often right, in the order of their size, too."""
    ranks = collections.Counter()
    for example in made(train=600)["train"]:
        codes = re.findall(r"is (\d{3})", example.fields["evidence_solver"])
        assert len(codes) == 4 and not names_in(example.question) & names_in(
            example.fields["evidence_solver"]
        )
        ranks[sorted(codes).index(example.answer)] += 1
    assert min(ranks.values()) > 110


def test_an_item_depends_on_seed_split_and_number_alone():
    few, many = made(train=3, test=5), made(train=9, validation=2, test=7)
    for split in SPLITS:
        count = min(len(few[split]), len(many[split]))
        assert few[split][:count] == many[split][:count]
    assert made(seed=43)["train"][0].fields != few["train"][0].fields
    everything = [str(e.fields) for e in all_of(made(train=300))]
    assert len(set(everything)) == len(everything)


def test_the_first_items_of_the_default_seed_are_these():
    splits = made()
    train, test = splits["train"][0], splits["test"][0]
    assert train.question == "What is the code of the place where Mae is?"
    assert train.fields == {
        "evidence_planner": "Cesar is in the gherkin. Penny is in the junker. "
        "Mae is in the textual. Marilyn is in the artificer.",
        "evidence_solver": "The code of the artificer is 556. The code of the textual is 793. "
        "The code of the gherkin is 619. The code of the junker is 481.",
    }
    assert (train.answer, test.answer) == ("793", "174")
    assert splits["validation"][0].texts == {"planner": ("the forge",) * 4, "solver": ("830",) * 4}
    longer = made(hops=4, crossing="codes", rounds=2)["test"][0]
    assert longer.texts == {"planner": ("AG45", "DZ15"), "solver": ("Ella", "174")}
    skill = made(hops=4, role="planner")["test"][0]
    assert (skill.fields["message"], skill.answer) == ("Ivan", "the warehouse")


@pytest.mark.parametrize(
    ("dials", "question", "fact"),
    [
        ({"hops": 1}, r"What is the code of the [a-z]+\?", r"^The code of the [a-z]+ is \d{3}\."),
        (
            {},
            r"What is the code of the place where [A-Z][a-z]+ is\?",
            r"^The code of the [a-z]+ is \d{3}\.",
        ),
        (
            {"hops": 4, "crossing": "names"},
            r"Go to the place where \w+ is, then to where its keeper is\. "
            r"What is the code of that place\?",
            r"The keeper of [A-Z][a-z]+ is [A-Z][a-z]+\.",
        ),
        (
            {"hops": 3, "crossing": "numbers"},
            r"Go to room \d{3}, then to where its keeper is\. What is the code of that place\?",
            r"The keeper of room \d{3} is [A-Z][a-z]+\.",
        ),
        (
            {"hops": 5, "crossing": "codes"},
            r"Go to [A-Z]{2}\d{2}(, then to where its keeper is){2}\. "
            r"What is the code of that place\?",
            r"The code of [A-Z]{2}\d{2} is \d{3}\.",
        ),
    ],
)
def test_sentences(dials, question, fact):
    for example in all_of(made(**dials)):
        assert re.fullmatch(question, example.question)
        assert re.search(fact, example.fields["evidence_solver"])


def test_a_planner_that_is_not_asked_sends_all_its_pairs():
    for example in all_of(made(asked=False, pairs=5, rounds=2)):
        facts = re.findall(r"(\w+) is in the (\w+)\.", example.fields["evidence_planner"])
        assert len(facts) == 5
        assert example.texts["planner"] == (" ".join(itertools.chain.from_iterable(facts)),) * 2
        (place,) = [place for person, place in facts if person == start_of(example.question)]
        assert look_up(example.fields["evidence_solver"], place) == example.answer


@pytest.mark.parametrize("hops", [2, 3, 6])
@pytest.mark.parametrize("role", ROLES)
def test_a_skill_is_one_roles_part_of_one_round(role, hops):
    seen = collections.Counter()
    for example in all_of(made(hops=hops, role=role, roles=(role,), train=60)):
        evidence, message = example.fields[f"evidence_{role}"], example.fields["message"]
        assert set(example.fields) == {f"evidence_{role}", "message"}
        if role == "planner":
            assert example.answer == planner_says(evidence, example.question, message)
        else:
            assert example.answer == look_up(evidence, message)
        assert example.texts == {role: (example.answer,)}
        seen[message == "" if role == "planner" else example.answer.isdigit()] += 1
    assert set(seen) == ({True} if hops == 2 else {True, False})


def test_the_skill_of_a_solver_that_receives_all_pairs_is_the_whole_look_up():
    for example in all_of(made(role="solver", asked=False)):
        pairs = example.fields["message"].split()
        place = dict(zip(pairs[::2], pairs[1::2], strict=True))[start_of(example.question)]
        assert example.answer == look_up(example.fields["evidence_solver"], place)
    for example in all_of(made(role="planner", asked=False)):
        assert example.fields["message"] == "" and len(example.answer.split()) == 8


def test_a_skill_has_the_entities_of_its_split_and_no_item_of_the_team():
    team = made(hops=4, train=200)
    for role in ROLES:
        column = f"evidence_{role}"
        skill = made(hops=4, role=role, train=200)
        for split in SPLITS:
            known = {e.fields[column] for of in team.values() for e in of}
            assert not known & {e.fields[column] for e in skill[split]}
            others = [pool(kind, s) for s in SPLITS if s != split for kind in ("persons", "words")]
            names = names_in(*(e.fields[column] for e in skill[split]))
            assert not names & set(itertools.chain.from_iterable(others))


def loaded(tmp_path, roles=ROLES, rounds=2, **dials):
    sizes = {"train": 6, "validation": 4, "test": 5}
    config = DataConfig(dataset="split-evidence", evidence=EvidenceConfig(**sizes | dials))
    return load_dataset(config, roles=roles, rounds=rounds, data_dir=tmp_path)


def test_it_is_a_data_set_like_others(tmp_path):
    data = loaded(tmp_path, hops=4)
    assert data.sizes == {"train": 6, "validation": 4, "test": 5}
    assert data.text_roles == ROLES and not data.bad_rows
    stored = sorted(data.load("train"), key=lambda example: example.id)
    assert stored == made(hops=4, train=6, rounds=2)["train"]
    assert len(data.load("test[:2]")) == 2
    # Other roles, rounds and dials are other data; the answerer always has a text.
    for other in (
        loaded(tmp_path, hops=4, rounds=1),
        loaded(tmp_path, hops=4, roles=("planner", "judge")),
        loaded(tmp_path, hops=4, pairs=3),
    ):
        assert other.version != data.version
    judged = loaded(tmp_path, roles=("planner", "judge"), rounds=3).load("train")
    assert all(e.texts["judge"] == (e.answer,) * 3 and "solver" not in e.texts for e in judged)
    assert loaded(tmp_path, roles=(), rounds=1).load("test")[0].texts == {}


def test_skills_have_texts_of_their_role(tmp_path):
    data = loaded(tmp_path, role="planner", hops=4, roles=("planner",), rounds=1)
    assert data.text_roles == ("planner",)
    assert all(e.texts == {"planner": (e.answer,)} for e in data.load("train"))


def test_rounds_of_texts_are_those_of_the_run(tmp_path):
    for rounds in (1, 3):
        data = loaded(tmp_path, hops=4, rounds=rounds)
        assert {len(e.texts["solver"]) for e in data.load("train")} == {rounds}


BENCHMARK = """
name: hops-4
data: {dataset: split-evidence, evidence: {hops: 4, test: 6}}
"""


def test_benchmarks_of_a_run_have_dials_of_their_own(tmp_path):
    file = tmp_path / "hops_4.yaml"
    file.write_text(BENCHMARK)
    longer = load_benchmark_config(file)
    overrides = (
        "data={dataset: split-evidence, evidence: {test: 6}}",
        f"evaluation.benchmarks=[{{name: data}}, {{name: {file}}}]",
    )
    config = load_config("experiments/configs/outer_gain.yaml", overrides)
    own, other = find_benchmarks(config)
    assert (own.name, other.name) == ("split-evidence", "hops-4")
    assert own.data.evidence.hops == 2 and other.data == longer.data
    assert grader_of(other).name == "text"
    data = load_benchmark(other, tmp_path / "data", ("evidence_planner", "evidence_solver"))
    examples = data.load("test")
    assert len(examples) == 6 and {e.difficulty for e in examples} == {4}
    names = names_in(*(text for e in examples for text in e.fields.values()))
    allowed = {name for kind in ("persons", "words", "numbers") for name in pool(kind, "test")}
    assert names <= allowed  # as the questions of two hops
    assert all(conversation(e, 2)["solver"][-1] == e.answer for e in examples)


def test_a_checksum_covers_the_evidence_whatever_prompts_read(tmp_path, caplog):
    file = tmp_path / "pinned.yaml"
    file.write_text(BENCHMARK)
    checksum = checksum_of(load_benchmark(load_benchmark_config(file), tmp_path).load("test"))
    file.write_text(f"{BENCHMARK}items: {{test: 6}}\nchecksum: {{test: '{checksum}'}}\n")
    for prompted in ((), ("evidence_planner",), ("evidence_planner", "evidence_solver")):
        load_benchmark(load_benchmark_config(file), tmp_path, prompted)
    file.write_text(file.read_text().replace("hops: 4", "hops: 4, pairs: 5"))
    with pytest.raises(DataError, match="the checksum of test must be"):
        load_benchmark(load_benchmark_config(file), tmp_path)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{dataset: split-evidence}", "data.evidence must be set with dataset: split-evidence"),
        ("{evidence: {}}", "data.evidence must be set with dataset: split-evidence and null"),
        (
            "{dataset: split-evidence, evidence: {asked: false, hops: 4}}",
            "data.evidence.hops must be 2 with asked: false, got 4",
        ),
        (
            "{dataset: split-evidence, evidence: {hops: 9}}",
            "data.evidence.hops must be an integer of at least 1 and at most 8, got 9",
        ),
        (
            "{dataset: split-evidence, evidence: {pairs: 1}}",
            "data.evidence.pairs must be an integer of at least 2 and at most 12, got 1",
        ),
        (
            "{dataset: split-evidence, evidence: {crossing: letters}}",
            "data.evidence.crossing must be one of words, names, numbers, codes, got 'letters'",
        ),
        (
            "{dataset: split-evidence, evidence: {role: critic}}",
            "data.evidence.role must be one of planner, solver or null, got 'critic'",
        ),
        (
            "{dataset: split-evidence, evidence: {hop: 2}}",
            "data.evidence.hop is an unknown key (value 2); did you mean hops",
        ),
        (
            "{dataset: split-evidence, evidence: {}, columns: {solver: x}}",
            "data.columns must be null with dataset: split-evidence",
        ),
        (
            "{dataset: split-evidence, evidence: {}, rule: gsm8k}",
            "data.rule must be null with dataset: split-evidence, got 'gsm8k'",
        ),
        (
            "{dataset: split-evidence, evidence: {}, revision: a}",
            "data.revision must be null with dataset: split-evidence, got 'a'",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, section, words):
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\ndata: {section}\n")
    with pytest.raises(ConfigError) as error:
        load_benchmark_config(file)
    assert words in str(error.value)
