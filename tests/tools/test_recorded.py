import pytest

from rmas_jax.tools import NotRecordedError, SearchResult, open_bm25, open_recorded

DEEP = "[" * 10**5 + "]" * 10**5


class Counting:
    """A provider that counts its searches."""

    def __init__(self, provider):
        self.provider, self.searches = provider, 0

    def search(self, query):
        self.searches += 1
        return self.provider.search(query)


@pytest.fixture
def provider():
    texts = ["one fish", "two fish", "Zürich lies at a lake"]
    return Counting(open_bm25([SearchResult("", "", text) for text in texts]))


def test_a_recording_answers_without_the_provider(provider, tmp_path):
    path = tmp_path / "searches.jsonl"
    recording = open_recorded(provider, path)
    queries = ["fish", "Zürich", "nothing", "fish"]
    first = [recording.search(query) for query in queries]
    assert provider.searches == 3 and len(path.read_text("utf-8").splitlines()) == 3
    replay = open_recorded(None, path)
    assert [replay.search(query) for query in queries] == first
    assert first == [provider.search(query) for query in queries]


@pytest.mark.parametrize(
    "odd", ["\u2028", "\u2029", "\x85", "\x0b\x0c\x1c\x1d\x1e", "\r\n", "\x00"]
)
def test_what_breaks_lines_elsewhere_is_read_as_it_was_written(tmp_path, odd):
    class Odd:
        def search(self, query):
            return [SearchResult(f"a{odd}b", f"c{odd}", f"{odd}{query}")]

    path = tmp_path / "searches.jsonl"
    first = [open_recorded(Odd(), path).search(query) for query in (odd, f"{odd}x", "y")]
    replay = open_recorded(None, path)
    assert [replay.search(query) for query in (odd, f"{odd}x", "y")] == first
    assert path.read_bytes().count(b"\n") == 3


def test_a_query_that_is_no_text_is_recorded_too(provider, tmp_path):
    path = tmp_path / "searches.jsonl"
    found = open_recorded(provider, path).search("fish \ud800")
    assert open_recorded(None, path).search("fish \ud800") == found != []


def test_a_recording_drops_the_half_line_of_an_interruption(provider, tmp_path):
    path = tmp_path / "searches.jsonl"
    for query in ("fish", "lake"):
        open_recorded(provider, path).search(query)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    again = open_recorded(provider, path)
    again.search("lake")
    assert path.read_bytes() == whole and provider.searches == 3


def test_a_recording_goes_on_where_it_was_interrupted(provider, tmp_path):
    path = tmp_path / "searches.jsonl"
    open_recorded(provider, path).search("fish")
    again = open_recorded(provider, path)
    again.search("fish")
    assert provider.searches == 1
    again.search("lake")
    assert provider.searches == 2
    assert open_recorded(None, path).search("lake") == again.search("lake")


def test_a_replay_names_the_query_that_it_lacks_and_writes_nothing(provider, tmp_path):
    path = tmp_path / "searches.jsonl"
    open_recorded(provider, path).search("fish")
    before = path.read_bytes()
    with pytest.raises(NotRecordedError, match=r"searches\.jsonl: no record of the query 'bird'"):
        open_recorded(None, path).search("bird")
    assert path.read_bytes() == before


def test_a_failure_is_not_recorded(tmp_path):
    class Failing:
        def search(self, query):
            raise TimeoutError

    path = tmp_path / "searches.jsonl"
    with pytest.raises(TimeoutError):
        open_recorded(Failing(), path).search("fish")
    assert not path.exists()


@pytest.mark.parametrize("line", ['{"query": "a", "resul', '{"query": "a"}', "[]", "3", DEEP])
def test_a_damaged_recording_is_refused_by_file_and_line(tmp_path, line):
    path = tmp_path / "searches.jsonl"
    path.write_text('{"query": "fish", "results": []}\n' + line)
    with pytest.raises(ValueError, match=r"searches\.jsonl, line 2"):
        open_recorded(None, path)


def test_a_replay_needs_its_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_recorded(None, tmp_path / "searches.jsonl")
