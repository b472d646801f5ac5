"""Configs: those that come with the project can be run, and what a wrong one lacks is said in a sentence."""

import dataclasses

import pytest

from training.refvie import config, stages


@pytest.mark.parametrize("name", config.names())
def test_the_configs_that_come_with_the_project_name_models_options_and_bounds_that_there_are(name):
    given = config.read(name)
    assert given.name == name
    assert [*stages.plan(given)] == [*stages.CLASSES]
    assert given.keep
    assert config.parse(config.plain(given)) == given


def test_what_does_not_change_answers_does_not_change_keys():
    given = config.read("server")
    options = given.score.options | {"url": "https://elsewhere:1234/v1", "workers": 2}
    moved = config.parse(config.plain(given) | {"score": {"backend": "openai", "options": options, "batch_size": 1}})
    assert stages.plan(moved)["score"].key == stages.plan(given)["score"].key
    other = options | {"model": "another"}
    changed = config.parse(config.plain(given) | {"score": {"backend": "openai", "options": other}})
    assert stages.plan(changed)["score"].key != stages.plan(given)["score"].key
    assert stages.plan(changed)["locate"].key == stages.plan(given)["locate"].key


def test_an_option_that_is_its_default_is_as_one_that_is_not_given():
    given = config.read("models")

    def key(**more):
        changed = dataclasses.replace(given.synthesise, options=given.synthesise.options | more)
        return stages.plan(dataclasses.replace(given, synthesise=changed))["synthesise"].key

    assert {key(steps=40), key(guidance=4), key(guidance=4.0), key(device="cuda:1")} == {key()}
    assert key(steps=4) != key()


@pytest.mark.parametrize(("text", "sentence"), [
    ("ingest: {backend: classical}", "ingest has no field 'backend'; it has batch_size, workers, gpus."),
    ("ingest: {workers: 0}", "workers is 0; give a whole number"),
    ("frames: [", "is not YAML: "),
    ("- frames", "The config is no table; give name, frames, "),
    ("framse: 8", "The config has no field 'framse'; it has name, frames, "),
    ("frames: 0", "frames is 0; give a whole number of at least 1."),
    ("attempts: true", "attempts is True; give a whole number"),
    ("duplicates: 0", "duplicates is 0; give a cosine, such as 0.97, or 2 for never."),
    ("score: classical", "score is no table; give batch_size, workers, "),
    ("score: {options: 7}", "score.options is no table"),
    ("score: {workers: -1}", "workers is -1; give a whole number"),
    ("score: {gpus: -1}", "gpus is -1; give 0 or more."),
    ("keep: {score.overall: 6}", "keep score.overall is no table; give min, max."),
    ("keep: {score.overall: {}}", "A bound has neither min nor max; give one."),
    ("keep: {score.overall: {min: high}}", "A bound's min is 'high'; give a number."),
    ("keep: 7", "keep is no table; give lines such as score.overall: {min: 6}."),
])  # fmt: skip
def test_a_wrong_config_is_told_in_a_sentence_with_its_file(tmp_path, text, sentence):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as told:
        config.read(path)
    assert str(path) in str(told.value)
    assert sentence in str(told.value)


def test_a_config_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(FileNotFoundError, match="There is no config qwen; give a YAML file or one of classical, "):
        config.read("qwen")
